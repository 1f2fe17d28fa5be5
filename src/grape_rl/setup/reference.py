"""Log-probs of data rows under the reference, cached before the first step, so that no step runs the reference."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from grape_rl.model.fingerprint import fingerprint
from grape_rl.model.reference_logprobs import LogprobFunction
from grape_rl.setup.run_folder import REFERENCE_FOLDER
from grape_rl.setup.setup import Setup
from grape_rl.training.experience import Experience, ExperienceSource
from grape_rl.training.fit import Warn
from grape_rl.training.reference_cache import ReferenceLogprobCache, fill_cache, first_epoch_batches
from grape_rl.types import Sequences


def cached_reference(
    setup: Setup,
    count: int,
    stack: Callable[[Sequence[int]], Sequences],
    reference: LogprobFunction,
    source: Callable[[LogprobFunction], ExperienceSource],
) -> ExperienceSource:
    """A source whose batches read the reference's log-probs from a cache, which is filled before the first step.

    The first experience's metrics contain the seconds that this took.

    Args:
        setup: the run.
        count: number of data rows.
        stack: row numbers → their sequences.
        reference: computes the log-probs that the cache does not contain yet.
        source: a function that creates the source, given the cache as its reference.
    """
    config = setup.config
    folder = Path(config.reference_cache).expanduser() if config.reference_cache else config.folder / REFERENCE_FOLDER
    cache = ReferenceLogprobCache(folder)
    seconds: list[float] = []

    def fill(warn: Warn) -> None:
        began = time.perf_counter()
        unread = cache.read(f"{fingerprint(setup.start.model)}, {config.precision}, temperature 1")
        if unread:
            warn(
                "reference_cache",
                f"not used: {len(unread)} files in {folder}, for example {unread[0]}; they are broken, or of another "
                "reference or precision",
            )
        rows = first_epoch_batches(count, config.prompts_per_step, config.steps, config.seed)
        fill_cache(cache, map(stack, rows), reference)
        seconds.append(time.perf_counter() - began)

    setup.before_first_step.append(fill)
    cached_source = source(cache)

    def timed_source(step: int) -> Experience:
        experience = cached_source(step)
        if seconds:
            experience.metrics["reference_seconds"] = seconds.pop()
        return experience

    return timed_source
