"""The training loop: one for every method."""

import time
from collections.abc import Callable
from typing import Any

from grape_rl.training.experience import ExperienceSource
from grape_rl.training.log import Log

Warn = Callable[[str, str], None]
"""A warning's key and message."""

Update = Callable[[Any, int, Warn], dict[str, float]]
"""(experience, step from 0, warn) → metrics. It changes the policy's weights."""


def fit(
    source: ExperienceSource,
    update: Update,
    log: Log,
    start: int,
    total: int,
    end_step: Callable[[int, Any], None],
) -> None:
    """Run steps ``start`` to ``total``: get an experience, update the policy, log, call ``end_step``.

    In short: ``for experience in source: update(experience)``. The source of an online method samples from the model
    that is being trained. ``end_step`` gets the number of steps done, and the experience.
    """
    for step in range(start, total):
        experience = source(step)
        for key, message in experience.warnings:
            log.warn(key, message)
        began = time.perf_counter()
        metrics = update(experience, step, log.warn)
        log.step(step + 1, experience.metrics | metrics | {"update_seconds": time.perf_counter() - began})
        end_step(step + 1, experience)
