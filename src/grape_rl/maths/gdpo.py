"""GDPO: normalization of each rubric item within its group, before the items are summed."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from grape_rl.maths.advantage import group_relative
from grape_rl.maths.grape import Weight, item_sum
from grape_rl.maths.groups import group_count


def normalize_then_sum(
    score: Float[Tensor, "b k"], confidence: Float[Tensor, "b k"], weight: Weight, group: Int[Tensor, " b"]
) -> Float[Tensor, " b"]:
    """Weighted sum of the group-relative scores of all items: ``Σ_k weight_k z_k``.

    ``z_k = (score_k − mean) / (std + 1e-6)`` over the item's valid scores in the group, as in ``group_relative``. GDPO
    (arXiv 2601.05242); the method then centers and scales the sum over the batch. TRL calls it ``normalize_then_sum``.
    The result is not a reward: its mean over a group is 0 for good and bad groups alike.

    Summing first would have two defects. Different scores can have one sum, and so one advantage: with two items of
    weight 1, a correct long response and a wrong brief one. And an item would count by the spread of its scores in the
    group as well as by its weight. Here an item that varies counts by its weight alone, and a constant item adds 0.

    Missing verdicts are treated as in ``confidence_weighted``. A verdict without a score or a confidence is missing. A
    missing score is replaced by the item's mean in the group, whose z is 0. An item with under half of its verdicts in
    a group is left out for that group. A response without verdicts on over half of the weight is NaN, and so is a group
    without any remaining item of non-zero weight. The values of the confidences are not used.

    Raises:
        ValueError: an infinite score, or a weight that is not finite.

    >>> score = torch.tensor([[1.0, 0.0], [0.0, 30.0], [0.0, 0.0]])
    >>> normalize_then_sum(score, torch.ones(3, 2), torch.ones(2), torch.tensor([0, 0, 0])).round(decimals=3)
    tensor([ 0.5770,  0.5770, -1.1550])
    """
    if score.isinf().any():
        raise ValueError("score has an infinite entry; a score must be finite, or NaN where missing")
    if not weight.isfinite().all():
        raise ValueError(f"weight is {weight}; every item's weight must be finite")
    valid = ~(score.isnan() | confidence.isnan())
    known = score.masked_fill(~valid, torch.nan)
    used = 2 * group_count(known, group) >= group_count(torch.zeros_like(score), group)
    z = torch.stack([group_relative(item, group) for item in known.unbind(1)], dim=1)
    total = item_sum(weight * z.masked_fill(~(valid & used), 0))

    missing = (weight.abs() * ~valid).sum(1)
    # The margin absorbs rounding: of the weights 0.1, 0.2 and 0.3 the first two are exactly half.
    unknown = missing > (0.5 + 1e-6) * weight.abs().sum(-1)
    return total.masked_fill(unknown | ~(used & (weight != 0)).any(1), torch.nan)
