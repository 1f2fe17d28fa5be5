"""Running means of the critics' confidence, for rewards weighted by the confidence of all steps so far."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class RunningMeans:
    """The running mean confidence in each item of a rubric. Items of a single row have none.

    Attributes:
        step: (confidence, means so far) → the means after the batch, as ``grape_rl.maths.grape.running_confidence``.
        memory: the means after the last step, by ``mean_name``.
    """

    step: Callable[[Float[Tensor, "b k"], Float[Tensor, " k"]], Float[Tensor, " k"]]
    memory: Mapping[str, float]

    def means(self, category: str, items: Sequence[str], columns: int) -> Float[Tensor, " k"]:
        """The means so far of ``items``, which are the first of ``columns`` columns; NaN where there is no mean."""
        known = [self.memory.get(mean_name(category, item), math.nan) for item in items]
        return torch.tensor(known + [math.nan] * (columns - len(items)), dtype=torch.float64)

    def updated(self, category: str, items: Sequence[str], confidence: Float[Tensor, "b k"]) -> dict[str, float]:
        """The means after a batch, by name."""
        means = self.step(confidence, self.means(category, items, confidence.shape[1])).tolist()[: len(items)]
        return {
            mean_name(category, item): mean for item, mean in zip(items, means, strict=True) if not math.isnan(mean)
        }


def mean_name(category: str, item: str) -> str:
    """The name of an item's running mean in the memory and in the metrics."""
    return f"confidence/{category}/{item}"
