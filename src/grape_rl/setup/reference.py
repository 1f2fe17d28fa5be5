"""The reference of data rows: its log-probs are computed before the first step, so that no step needs the model."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from grape_rl.model.fingerprint import fingerprint
from grape_rl.model.reference_logprobs import LogprobFunction
from grape_rl.setup.run_folder import REFERENCE
from grape_rl.setup.setup import Setup
from grape_rl.training.experience import Experience, ExperienceSource
from grape_rl.training.fit import Warn
from grape_rl.training.reference_cache import ReferenceLogprobCache, fill_cache, first_epoch_batches
from grape_rl.types import Sequences


def cached_reference(
    setup: Setup,
    count: int,
    stacked: Callable[[Sequence[int]], Sequences],
    reference: LogprobFunction,
    source: Callable[[LogprobFunction], ExperienceSource],
) -> ExperienceSource:
    """A source whose batches take the log-probs of the reference from files, where they are put before the first step.

    ``stacked`` makes a batch of some of the ``count`` rows, ``reference`` is asked for those that are not kept yet, and
    ``source`` is given what reads them. The first batch tells the seconds that all of this took.
    """
    config = setup.config
    kept = ReferenceLogprobCache(
        Path(config.reference_cache).expanduser() if config.reference_cache else config.folder / REFERENCE
    )
    seconds: list[float] = []

    def begin(warn: Warn) -> None:
        began = time.perf_counter()
        unread = kept.read(f"{fingerprint(setup.start.model)}, {config.precision}, temperature 1")
        if unread:
            among = f"{len(unread)} of the files in {kept.folder}, {unread[0]} among them"
            warn("reference_cache", f"{among}, are of another reference or precision, or broken: not used")
        rows = first_epoch_batches(count, config.prompts_per_step, config.steps, config.seed)
        fill_cache(kept, map(stacked, rows), reference)
        seconds.append(time.perf_counter() - began)

    setup.first.append(begin)
    inner = source(kept)

    def told(step: int) -> Experience:
        found = inner(step)
        if seconds:
            found.metrics["reference_seconds"] = seconds.pop()
        return found

    return told
