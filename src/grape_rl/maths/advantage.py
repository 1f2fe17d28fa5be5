"""From rewards to advantages: how much better a response, or a token, was than what was to be expected.

A response's reward is one number, and ``group`` says which responses share a prompt (any integers, in any order). A
NaN reward is missing: it enters no mean and no spread, and its own advantage is NaN.
"""

import math
from typing import Literal, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from grape_rl.maths.bounds import AtLeastOne, Share

EPSILON = 1e-6
"""Added to a standard deviation before dividing by it."""

Scale = Literal["group", "batch", "none"]
"""Whose standard deviation divides."""


def group_relative(
    reward: Float[Tensor, " b"],
    group: Int[Tensor, " b"],
    scale: Scale = "group",
    baseline: Literal["group", "leave_one_out"] = "group",
) -> Float[Tensor, " b"]:
    """Reward relative to its group: ``(reward − mean) / (std + 1e-6)``, the mean over the group's valid rewards.

    ``scale`` is whose standard deviation divides (with Bessel's correction, over valid rewards): the group's (GRPO,
    arXiv 2402.03300, section 4.1), that of all rewards of the batch (Lite PPO, arXiv 2508.08221) or none's (Dr. GRPO,
    arXiv 2503.20783). The correction and the 1e-6 are our choice; the papers leave them open. Where a group's rewards
    are all equal, or only one is valid, the advantage is exactly 0.

    Without scaling, the expected policy gradient is (G−1)/G times the true one for groups of G. Scaling changes the
    objective: groups of two with ``scale="group"``, for one, see only which of the rewards is the larger.

    ``baseline`` "leave_one_out" takes the mean of the *others* in the group, as ``leave_one_out`` does: all that is
    G/(G−1) times as large, the deviation that divides is the same, and a reward without another in its group is NaN.

    Raises:
        ValueError: an infinite reward, or an unknown ``scale`` or ``baseline``.

    >>> group_relative(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([7, 4, 7]), scale="none")
    tensor([-2.,  0.,  2.])
    """
    _refuse_infinite(reward)
    match baseline:
        case "group":
            deviation = reward - group_mean(reward, group)
        case "leave_one_out":
            deviation = leave_one_out(reward, group)
        case _:
            raise ValueError(f"baseline is {baseline!r}; it must be 'group' or 'leave_one_out'")
    match scale:
        case "none":
            return deviation
        case "group":
            return deviation / (_std(reward, group) + EPSILON)
        case "batch":
            return deviation / (_std(reward, torch.zeros_like(group)) + EPSILON)
        case _:
            raise ValueError(f"scale is {scale!r}; it must be 'group', 'batch' or 'none'")


def leave_one_out(reward: Float[Tensor, " b"], group: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
    """Reward less the mean of the *other* valid rewards of its group (RLOO, arXiv 2402.14740): unbiased.

    It is G/(G−1) times ``group_relative(…, scale="none")``. NaN where the group has no other valid reward.

    Raises:
        ValueError: an infinite reward.

    >>> leave_one_out(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 1]))
    tensor([-2.,  2., nan])
    """
    _refuse_infinite(reward)
    count = group_count(reward, group)
    return (reward - group_mean(reward, group)) * count / (count - 1)  # without another: 0/0


def baselined(
    reward: Float[Tensor, " b"],
    group: Int[Tensor, " b"],
    baseline: Literal["none", "batch", "leave_one_out", "moving_average"] = "batch",
    moving_average: float = math.nan,
) -> Float[Tensor, " b"]:
    """REINFORCE's reward less a baseline: nothing, the batch's mean, that of the others in the group, or a past one.

    "none", "leave_one_out" and "moving_average" are unbiased. The batch mean holds the response's own reward, so with B
    responses to one prompt the expected gradient is (B−1)/B times the true one. Williams (1992).

    ``moving_average`` is that of the rewards of earlier steps (``maths.reward.moving_average``). Where there is none
    yet (NaN), the batch's mean stands in for it: the first step is like one with "batch".

    Raises:
        ValueError: an infinite reward, or an unknown ``baseline``.
    """
    _refuse_infinite(reward)
    match baseline:
        case "none":
            return reward
        case "batch":
            return reward - group_mean(reward, torch.zeros_like(group))
        case "leave_one_out":
            return leave_one_out(reward, group)
        case "moving_average" if not math.isnan(moving_average):
            return reward - moving_average
        case "moving_average":
            return reward - group_mean(reward, torch.zeros_like(group))
        case _:
            raise ValueError(
                f"baseline is {baseline!r}; it must be 'none', 'batch', 'leave_one_out' or 'moving_average'"
            )


def normalized(
    reward: Float[Tensor, " b"], group: Int[Tensor, " b"], center: Literal["batch", "group"] = "batch"
) -> Float[Tensor, " b"]:
    """Reward centered, then divided by the standard deviation over the *batch* of what is left (plus 1e-6).

    ``center`` is whose mean goes: the batch's (REINFORCE++, arXiv 2501.03262), or first the group's (its
    REINFORCE++-baseline), where the deviation is that of the group-centered rewards; ``group_relative`` with
    ``scale="batch"`` divides by that of the raw ones. Equal rewards have the advantage 0.

    Raises:
        ValueError: an infinite reward, or an unknown ``center``.

    >>> normalized(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 1])).round(decimals=3)
    tensor([-1.,  0.,  1.])
    """
    _refuse_infinite(reward)
    batch = torch.zeros_like(group)
    match center:
        case "batch":
            deviation = reward - group_mean(reward, batch)
        case "group":
            deviation = reward - group_mean(reward, group)
        case _:
            raise ValueError(f"center is {center!r}; it must be 'batch' or 'group'")
    return deviation / (_std(deviation, batch) + EPSILON)


def best_of_group(
    reward: Float[Tensor, " b"],
    group: Int[Tensor, " b"],
    keep: AtLeastOne = 1,
    threshold: float = -math.inf,
) -> Float[Tensor, " b"]:
    """Rejection sampling's advantage: 1 for the ``keep`` best of each group, NaN (leave it out) for every other.

    A response must also have ``reward ≥ threshold``. Of equal rewards the earliest goes first, so a group whose
    rewards are all equal still keeps its first ``keep``. The policy gradient with this advantage is SFT on what is
    kept.

    Raises:
        ValueError: an infinite reward, ``keep`` under 1, or a NaN ``threshold``.

    >>> best_of_group(torch.tensor([1.0, 3.0, 3.0, 0.0]), torch.tensor([0, 0, 0, 1]))
    tensor([nan, 1., nan, 1.])
    """
    _refuse_infinite(reward)
    if keep < 1:
        raise ValueError(f"keep is {keep}; at least 1 response of a group must be kept")
    if math.isnan(threshold):
        raise ValueError("threshold is NaN; it must be a number, or -inf for no threshold")
    kept = (group_rank(reward, group) < keep) & (reward >= threshold)
    return torch.where(kept, torch.ones_like(reward), torch.nan)


def gae(
    token_reward: Float[Tensor, "b t"],
    value: Float[Tensor, "b t"],
    mask: Bool[Tensor, "b t"],
    gamma: Share = 1.0,
    lam: Share = 0.95,
) -> Float[Tensor, "b t"]:
    """Generalized advantage of each token: the errors of one step from there on, discounted by ``gamma lam`` a token.

    ``Σ_l (gamma lam)^l δ_{t+l}`` with ``δ_t = token_reward_t + gamma value_{t+1} − value_t``. GAE (arXiv 1506.02438),
    eq. 16.

    ``mask`` is True on the policy's own tokens. The others are no steps: "the next token" is the next True one, the
    result is 0 on them, and what ``token_reward`` and ``value`` hold there is not read. The value after a row's last
    token is 0, whether the policy ended the response or the token limit cut it off: nothing more is to come. A row
    whose last reward is missing (NaN) is NaN on all its tokens.

    ``lam = 1`` is the return less the value, ``lam = 0`` the one-step error.

    Raises:
        ValueError: ``gamma`` or ``lam`` is not in [0, 1].

    >>> tokens = torch.ones(1, 3, dtype=torch.bool)
    >>> gae(torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.5, 0.5, 0.5]]), tokens, lam=1.0)
    tensor([[0.5000, 0.5000, 0.5000]])
    """
    for name, number in (("gamma", gamma), ("lam", lam)):
        if not 0 <= number <= 1:
            raise ValueError(f"{name} is {number}; it must be in [0, 1]")
    columns: list[Tensor] = []
    advantage = next_value = value.new_zeros(len(value))
    for t in reversed(range(value.shape[1])):
        ours = mask[:, t]
        delta = token_reward[:, t] + gamma * next_value - value[:, t]
        advantage = torch.where(ours, delta + gamma * lam * advantage, advantage)
        next_value = torch.where(ours, value[:, t], next_value)
        columns.append(torch.where(ours, advantage, 0))
    return torch.stack(columns[::-1], 1) if columns else torch.zeros_like(value)


def group_mean(value: Float[Tensor, "b ..."], group: Int[Tensor, " b"]) -> Float[Tensor, "b ..."]:
    """For each response, the mean of its group's values, NaN ones left out. The mean of equal values is that value.

    >>> group_mean(torch.tensor([1.0, 3.0, torch.nan]), torch.tensor([0, 5, 5]))
    tensor([1., 3., 3.])
    """
    member, groups = _numbered(group)
    valid = ~value.isnan()
    # Three times 0.1 has a sum whose third is not 0.1. Measured from the lowest, equal values are all 0, their mean is
    # exactly their value, and an advantage that must be 0 is not a residue that a tiny deviation blows up.
    lowest = value.new_full((groups, *value.shape[1:]), torch.inf)
    row = member.reshape(-1, *[1] * (value.ndim - 1)).expand_as(value)
    lowest = lowest.scatter_reduce(0, row, value.masked_fill(~valid, torch.inf), "amin")[member]
    above = (value - lowest).masked_fill(~valid, 0)
    return lowest + _group_sum(above, group) / group_count(value, group)


def group_count(value: Float[Tensor, "b ..."], group: Int[Tensor, " b"]) -> Float[Tensor, "b ..."]:
    """For each response, how many values of its group are not NaN.

    >>> group_count(torch.tensor([1.0, 3.0, torch.nan]), torch.tensor([0, 5, 5]))
    tensor([1., 1., 1.])
    """
    return _group_sum((~value.isnan()).to(value.dtype), group)


def group_rank(value: Float[Tensor, " b"], group: Int[Tensor, " b"]) -> Int[Tensor, " b"]:
    """How many of its group come before each response: larger values first, equal ones as they stand, NaN last.

    >>> group_rank(torch.tensor([1.0, 3.0, 3.0, torch.nan]), torch.tensor([0, 0, 0, 5]))
    tensor([2, 0, 1, 0])
    """
    member, groups = _numbered(group)
    # Sorted by value, then by group with a stable sort: each group is one run, largest first.
    order = value.masked_fill(value.isnan(), -torch.inf).argsort(descending=True, stable=True)
    order = order[member[order].argsort(stable=True)]
    size = torch.bincount(member, minlength=groups)
    start = size.cumsum(0) - size
    rank = torch.empty_like(member)
    rank[order] = torch.arange(len(member), device=member.device) - start[member[order]]
    return rank


def _group_sum(value: Tensor, group: Tensor) -> Tensor:
    member, groups = _numbered(group)
    return value.new_zeros(groups, *value.shape[1:]).index_add(0, member, value)[member]


def _numbered(group: Tensor) -> tuple[Tensor, int]:
    """Each response's group as a number from 0, and how many groups there are."""
    ids, member = cast(
        tuple[Tensor, Tensor],
        torch.unique(group, return_inverse=True),  # pyright: ignore[reportUnknownMemberType]
    )
    return member, len(ids)


def _std(reward: Tensor, group: Tensor) -> Tensor:
    """For each response, the standard deviation (Bessel's correction) of its group's valid rewards; of one, 0."""
    deviation = reward - group_mean(reward, group)
    square = _group_sum(deviation.masked_fill(deviation.isnan(), 0).square(), group)
    return (square / (group_count(reward, group) - 1).clamp(min=1)).sqrt()


def _refuse_infinite(reward: Tensor) -> None:
    if reward.isinf().any():
        row = int(reward.isinf().nonzero()[0])
        raise ValueError(f"reward[{row}] is {reward[row].item()}; rewards must be finite, or NaN where missing")
