"""Running means of the critics' confidence, for rewards by the confidence of all steps so far."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Running:
    """The running mean confidence in each item of a rubric, of which the reward is made.

    ``step`` (confidence, the means so far → the means a batch further, as ``grape_rl.maths.grape.running_confidence``)
    makes what a batch leaves; ``memory`` holds what the last one left, under the names of ``running_name``. Items that
    single rows bring along have none: no other row's is the same.
    """

    step: Callable[[Float[Tensor, "b k"], Float[Tensor, " k"]], Float[Tensor, " k"]]
    memory: Mapping[str, float]

    def means(self, category: str, items: Sequence[str], columns: int) -> Float[Tensor, " k"]:
        """The means so far of the ``items``, which are the first of so many columns; NaN where there is none."""
        known = [self.memory.get(running_name(category, item), math.nan) for item in items]
        return torch.tensor(known + [math.nan] * (columns - len(items)), dtype=torch.float64)

    def left(self, category: str, items: Sequence[str], confidence: Float[Tensor, "b k"]) -> dict[str, float]:
        """The means after a batch, by name."""
        moved = self.step(confidence, self.means(category, items, confidence.shape[1])).tolist()[: len(items)]
        known = [(item, mean) for item, mean in zip(items, moved, strict=True) if not math.isnan(mean)]
        return {running_name(category, item): mean for item, mean in known}


def running_name(category: str, item: str) -> str:
    """What a running mean is kept and told under."""
    return f"confidence/{category}/{item}"
