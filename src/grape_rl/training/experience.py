"""The protocol of an experience: the training data of one step, of any kind."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from grape_rl.types import Sequences


@runtime_checkable
class Experience(Protocol):
    """Fields that the experience of every kind of training data has. The training loop reads only these."""

    @property
    def sequences(self) -> Sequences:
        """The prompts and responses."""
        ...

    @property
    def metrics(self) -> dict[str, float]:
        """Numbers for the log."""
        ...

    @property
    def warnings(self) -> tuple[tuple[str, str], ...]:
        """Keys and messages for the log."""
        ...

    @property
    def records(self) -> tuple[dict[str, Any], ...]:
        """The sampled responses as plain data; empty if nothing was sampled."""
        ...

    @property
    def memory(self) -> Mapping[str, float]:
        """Numbers for the next step, by name."""
        ...


ExperienceSource = Callable[[int], Experience]
"""A function from the step (from 0) to its experience."""
