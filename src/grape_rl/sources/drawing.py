"""The examples of a step, from data."""

from collections.abc import Sequence
from typing import TypeVar

from grape_rl.config.config import Config
from grape_rl.data.order import rows_of_step

T = TypeVar("T")


def draw_examples(examples: Sequence[T], config: Config, step: int) -> list[T]:
    """The examples of one step: each epoch is a new permutation of all of them."""
    rows = rows_of_step(len(examples), config.prompts_per_step, step, config.seed)
    return [examples[i] for i in rows]
