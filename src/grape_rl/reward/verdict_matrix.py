"""The verdicts of a category as matrices, where prompts may have items of their own beside the shared ones."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from grape_rl.maths.grape import Weight
from grape_rl.maths.groups import group_mean
from grape_rl.reward.item import Item
from grape_rl.types import Verdict


@dataclass(frozen=True)
class Columns:
    """The verdicts of one category as numbers: a column for each of its items, and for each item of each group's own.

    ``weight`` is ``" k"`` where no row has items of its own. ``gate`` and ``positive`` (a weight above 0) are False
    where the item is none of the response's, whose score and confidence are NaN there.
    """

    score: Float[Tensor, "b k"]
    confidence: Float[Tensor, "b k"]
    weight: Weight
    gate: Bool[Tensor, "b k"]
    positive: Bool[Tensor, "b k"]


def laid_out(
    shared: Sequence[Item],
    items: Sequence[Sequence[Item]],
    verdicts: Sequence[Sequence[Verdict]],
    group: Int[Tensor, " b"],
) -> Columns:
    """The columns of one category, of which each response has the ``shared`` items and then those of its group.

    Raises:
        ValueError: responses of one group have different items.
    """
    own: dict[int, Sequence[Item]] = {}
    for number, each in zip(group.tolist(), items, strict=True):
        if own.setdefault(number, each[len(shared) :]) != each[len(shared) :]:
            raise ValueError(f"group {number} has responses whose rows bring different items")
    of = [*(None for _ in shared), *(number for number, each in own.items() for _ in each)]
    columns = [*shared, *(item for each in own.values() for item in each)]
    score = [[math.nan] * len(columns) for _ in items]
    confidence = [[math.nan] * len(columns) for _ in items]
    start, width = dict[int, int](), len(shared)
    for number, each in own.items():
        start[number], width = width, width + len(each)
    for row, (number, each, told) in enumerate(zip(group.tolist(), items, verdicts, strict=True)):
        found = {verdict.item: verdict for verdict in told}
        places = [*range(len(shared)), *range(start[number], start[number] + len(each) - len(shared))]
        for k, item in zip(places, each, strict=True):
            score[row][k], confidence[row][k] = found[item.id].score, found[item.id].confidence
    has = torch.tensor([[each is None or each == number for each in of] for number in group.tolist()])
    weight = torch.tensor([item.weight for item in columns], dtype=torch.float64)
    return Columns(
        _matrix(score),
        _matrix(confidence),
        weight if len(columns) == len(shared) else weight * has,
        torch.tensor([item.gate for item in columns]) & has,
        (weight > 0) & has,
    )


def _matrix(values: list[list[float]]) -> Float[Tensor, "b k"]:
    return torch.tensor(values, dtype=torch.float64)


def gated(of: Columns, group: Int[Tensor, " b"]) -> tuple[Float[Tensor, "b k"], Float[Tensor, "b k"]]:
    """The scores, 0 for the items of positive weight where a gate scored 0; and the confidence.

    That 0 holds whatever the item's own verdict would have been, so a missing one is known here. It takes the item's
    mean confidence in the group, which leaves the weight of the item there where it was.
    """
    closed = ((of.score == 0) & of.gate).any(dim=1, keepdim=True) & of.positive
    filled = torch.where(closed & of.confidence.isnan(), group_mean(of.confidence, group), of.confidence)
    return of.score.masked_fill(closed, 0), filled
