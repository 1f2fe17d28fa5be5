"""The verdicts of a category as matrices: a row per response, a column per item."""

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
class VerdictMatrix:
    """The verdicts of one category as numbers.

    There is a column for each shared item, then a column for each item that only one group has. A response without an
    item has NaN as its score and confidence there, weight 0, and False in ``gate`` and ``positive``.

    Attributes:
        weight: ``" k"`` if no row has items of its own, else ``"b k"``.
        gate: True where the item is a gate.
        positive: True where the item's weight is above 0.
    """

    score: Float[Tensor, "b k"]
    confidence: Float[Tensor, "b k"]
    weight: Weight
    gate: Bool[Tensor, "b k"]
    positive: Bool[Tensor, "b k"]


def build_matrix(
    shared: Sequence[Item],
    items: Sequence[Sequence[Item]],
    verdicts: Sequence[Sequence[Verdict]],
    group: Int[Tensor, " b"],
) -> VerdictMatrix:
    """The matrix of one category. Each response's ``items`` are the ``shared`` ones, then those of its group.

    Raises:
        ValueError: responses of one group have different items.
    """
    group_ids = group.tolist()
    own: dict[int, Sequence[Item]] = {}
    for group_id, response_items in zip(group_ids, items, strict=True):
        own_items = response_items[len(shared) :]
        if own.setdefault(group_id, own_items) != own_items:
            raise ValueError(f"group {group_id} has responses whose rows hold different items")

    # The columns: their items, the group that each belongs to (None: shared), and where each group's columns start.
    columns = [*shared, *(item for own_items in own.values() for item in own_items)]
    owner = [*(None for _ in shared), *(group_id for group_id, own_items in own.items() for _ in own_items)]
    start, width = dict[int, int](), len(shared)
    for group_id, own_items in own.items():
        start[group_id], width = width, width + len(own_items)

    # Fill in the verdicts.
    score = [[math.nan] * len(columns) for _ in items]
    confidence = [[math.nan] * len(columns) for _ in items]
    for row, (group_id, response_items, row_verdicts) in enumerate(zip(group_ids, items, verdicts, strict=True)):
        by_item = {verdict.item: verdict for verdict in row_verdicts}
        first_own = start[group_id]
        places = [*range(len(shared)), *range(first_own, first_own + len(response_items) - len(shared))]
        for k, item in zip(places, response_items, strict=True):
            score[row][k], confidence[row][k] = by_item[item.id].score, by_item[item.id].confidence

    has_item = torch.tensor([[place is None or place == group_id for place in owner] for group_id in group_ids])
    weight = torch.tensor([item.weight for item in columns], dtype=torch.float64)
    return VerdictMatrix(
        torch.tensor(score, dtype=torch.float64),
        torch.tensor(confidence, dtype=torch.float64),
        weight if len(columns) == len(shared) else weight * has_item,
        torch.tensor([item.gate for item in columns]) & has_item,
        (weight > 0) & has_item,
    )


def apply_gates(matrix: VerdictMatrix, group: Int[Tensor, " b"]) -> tuple[Float[Tensor, "b k"], Float[Tensor, "b k"]]:
    """Score and confidence, where items of positive weight score 0 if a gate of the response scored 0.

    The 0 holds whatever the item's own verdict would have been, so a missing score becomes 0 as well. Its confidence is
    then the item's mean confidence in the group, which leaves the item's weight there unchanged.
    """
    closed = ((matrix.score == 0) & matrix.gate).any(dim=1, keepdim=True) & matrix.positive
    missing = closed & matrix.confidence.isnan()
    confidence = torch.where(missing, group_mean(matrix.confidence, group), matrix.confidence)
    return matrix.score.masked_fill(closed, 0), confidence
