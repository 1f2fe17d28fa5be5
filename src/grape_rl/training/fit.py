"""The loop: one for every method."""

import time
from collections.abc import Callable

from grape_rl.rollout.source import Experience
from grape_rl.training.labels import LabelExperience
from grape_rl.training.log import Log
from grape_rl.training.pairs import PairExperience
from grape_rl.training.reward_modeling import Compared, Judged

AnyExperience = Experience | PairExperience | LabelExperience | Compared | Judged

AnySource = Callable[[int], AnyExperience]
"""The step's number, from 0 → its experience."""

Warn = Callable[[str, str], None]
"""A warning's key and message."""

Update = Callable[[AnyExperience, int, Warn], dict[str, float]]
"""An experience and the step's number, from 0 → what the update says of itself. The policy has changed after it."""


def fit(
    source: AnySource,
    update: Update,
    log: Log,
    start: int,
    total: int,
    ended: Callable[[int, AnyExperience], None],
) -> None:
    """Steps ``start`` to ``total``: draw an experience, update the policy by it, log, and say that the step ended.

    for batch in source: update(batch). An online method is a source that samples from the model being trained.
    ``ended`` gets the number of steps done.
    """
    for step in range(start, total):
        experience = source(step)
        for key, message in experience.warnings:
            log.warn(key, message)
        began = time.perf_counter()
        changed = update(experience, step, log.warn)
        log.step(step + 1, experience.metrics | changed | {"update_seconds": time.perf_counter() - began})
        ended(step + 1, experience)
