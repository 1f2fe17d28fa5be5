"""GDPO's comparison of responses: item by item, before the items are summed."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from grape_rl.maths.advantage import group_count, group_relative
from grape_rl.maths.grape import Weight, item_sum


def items_normalized(
    score: Float[Tensor, "b k"], confidence: Float[Tensor, "b k"], weight: Weight, group: Int[Tensor, " b"]
) -> Float[Tensor, " b"]:
    """How much better each response is than its group, summed over items: ``Σ_k weight_k z_k``.

    z_k = (score_k − mean) / (std + 1e-6) of the item's valid scores in the group, as ``group_relative`` has it for the
    reward. GDPO (arXiv 2601.05242), which then centers and scales the sum over the batch; TRL has it as
    ``normalize_then_sum``. It is no reward: its mean over every group is 0, however good the group.

    Why not sum first: there different scores can come to one sum, and so to one advantage (with two items of weight 1,
    right but long and wrong but brief), and an item counts by how far its scores spread in the group, whatever its
    weight. Here each item that varies counts by its weight alone, and one that does not adds nothing.

    The rules for what is missing are those of ``confidence_weighted``: a verdict without a score or a confidence is
    missing; a missing score is read as the item's mean in the group, whose z is 0; an item with under half of its
    verdicts in a group is left out for that group; a response without verdicts on over half of the weight is NaN, and
    so is a group in which every item of any weight is left out. The confidence itself counts for nothing.

    Raises:
        ValueError: an infinite score, or a weight that is not finite.

    >>> score = torch.tensor([[1.0, 0.0], [0.0, 30.0], [0.0, 0.0]])
    >>> items_normalized(score, torch.ones(3, 2), torch.ones(2), torch.tensor([0, 0, 0])).round(decimals=3)
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
    # The margin keeps rounding from deciding: of weights 0.1, 0.2 and 0.3 the first two are exactly half.
    unknown = missing > (0.5 + 1e-6) * weight.abs().sum(-1)
    return total.masked_fill(unknown | ~(used & (weight != 0)).any(1), torch.nan)
