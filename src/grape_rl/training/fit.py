"""The training loop: one for every method."""

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from grape_rl.training.log import Log


@runtime_checkable
class StepExperience(Protocol):
    """The fields of an experience that the loop reads, whatever a step learns from."""

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics for the log."""
        ...

    @property
    def warnings(self) -> tuple[tuple[str, str], ...]:
        """Keys and messages of warnings for the log."""
        ...

    @property
    def records(self) -> tuple[dict[str, Any], ...]:
        """The step's responses as plain data; empty if none were sampled."""
        ...

    @property
    def memory(self) -> Mapping[str, float]:
        """Numbers that the step leaves to the next, by name."""
        ...


ExperienceSource = Callable[[int], StepExperience]
"""The step's number, from 0 → its experience."""

Warn = Callable[[str, str], None]
"""A warning's key and message."""

Update = Callable[[Any, int, Warn], dict[str, float]]
"""An experience and the step's number, from 0 → metrics of the update, which has changed the policy."""


def fit(
    source: ExperienceSource,
    update: Update,
    log: Log,
    start: int,
    total: int,
    end_step: Callable[[int, Any], None],
) -> None:
    """Run steps ``start`` to ``total``: draw an experience, update the policy by it, log, and call ``end_step``.

    for experience in source: update(experience). An online method is a source that samples from the model that is
    trained. ``end_step`` gets the number of steps done.
    """
    for step in range(start, total):
        experience = source(step)
        for key, message in experience.warnings:
            log.warn(key, message)
        began = time.perf_counter()
        metrics = update(experience, step, log.warn)
        log.step(step + 1, experience.metrics | metrics | {"update_seconds": time.perf_counter() - began})
        end_step(step + 1, experience)
