"""Statistics within groups of responses: mean, count, rank and standard deviation, each returned per response.

``group`` holds integer ids, in any order: responses with equal ids answer one prompt. NaN values are missing and are
left out.
"""

from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

EPSILON = 1e-6
"""Added to a standard deviation before division."""


def group_mean(value: Float[Tensor, "b ..."], group: Int[Tensor, " b"]) -> Float[Tensor, "b ..."]:
    """Mean of the valid values in each response's group. The mean of equal values is exactly that value.

    >>> group_mean(torch.tensor([1.0, 3.0, torch.nan]), torch.tensor([0, 5, 5]))
    tensor([1., 3., 3.])
    """
    member, groups = _numbered(group)
    valid = ~value.isnan()
    # Three times 0.1 has a sum whose third is not 0.1. Measured from the lowest, equal values are all 0 and their mean
    # is exact. Otherwise a rounding residue divided by a tiny standard deviation would replace an advantage of 0.
    lowest = value.new_full((groups, *value.shape[1:]), torch.inf)
    index = member.reshape(-1, *[1] * (value.ndim - 1)).expand_as(value)
    lowest = lowest.scatter_reduce(0, index, value.masked_fill(~valid, torch.inf), "amin")[member]
    above = (value - lowest).masked_fill(~valid, 0)
    return lowest + group_sum(above, group) / group_count(value, group)


def group_count(value: Float[Tensor, "b ..."], group: Int[Tensor, " b"]) -> Float[Tensor, "b ..."]:
    """Number of valid values in each response's group.

    >>> group_count(torch.tensor([1.0, 3.0, torch.nan]), torch.tensor([0, 5, 5]))
    tensor([1., 1., 1.])
    """
    return group_sum((~value.isnan()).to(value.dtype), group)


def group_rank(value: Float[Tensor, " b"], group: Int[Tensor, " b"]) -> Int[Tensor, " b"]:
    """Rank of each response in its group, from 0 for the largest value. Ties keep their order; NaN ranks last.

    >>> group_rank(torch.tensor([1.0, 3.0, 3.0, torch.nan]), torch.tensor([0, 0, 0, 5]))
    tensor([2, 0, 1, 0])
    """
    member, groups = _numbered(group)
    # Sorted by value, then by group with a stable sort: each group is contiguous, largest value first.
    order = value.masked_fill(value.isnan(), -torch.inf).argsort(descending=True, stable=True)
    order = order[member[order].argsort(stable=True)]
    size = torch.bincount(member, minlength=groups)
    start = size.cumsum(0) - size
    rank = torch.empty_like(member)
    rank[order] = torch.arange(len(member), device=member.device) - start[member[order]]
    return rank


def group_std(value: Float[Tensor, " b"], group: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
    """Standard deviation (Bessel's correction) of the valid values in each response's group; 0 for a single value.

    >>> group_std(torch.tensor([1.0, 3.0, 2.0]), torch.tensor([0, 0, 5]))
    tensor([1.4142, 1.4142, 0.0000])
    """
    deviation = value - group_mean(value, group)
    square = group_sum(deviation.masked_fill(deviation.isnan(), 0).square(), group)
    return (square / (group_count(value, group) - 1).clamp(min=1)).sqrt()


def group_sum(value: Float[Tensor, "b ..."], group: Int[Tensor, " b"]) -> Float[Tensor, "b ..."]:
    """Sum of the values in each response's group. A NaN value makes the sum of its group NaN."""
    member, groups = _numbered(group)
    return value.new_zeros(groups, *value.shape[1:]).index_add(0, member, value)[member]


def require_finite(reward: Float[Tensor, " b"]) -> None:
    """Raise ``ValueError`` if a reward is infinite. NaN (a missing reward) is allowed."""
    if reward.isinf().any():
        index = int(reward.isinf().nonzero()[0])
        raise ValueError(f"reward[{index}] is {reward[index].item()}; rewards must be finite, or NaN where missing")


def _numbered(group: Tensor) -> tuple[Tensor, int]:
    """Group of each response as an index from 0, and the number of groups."""
    ids, member = cast(
        tuple[Tensor, Tensor],
        torch.unique(group, return_inverse=True),  # pyright: ignore[reportUnknownMemberType]
    )
    return member, len(ids)
