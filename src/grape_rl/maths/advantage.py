"""Advantages: by how much a response, or a token, was better than its baseline.

The reward of a response is one number. ``group`` holds integer ids, in any order: responses with equal ids answer one
prompt. A NaN reward is missing: it enters no mean and no standard deviation, and its advantage is NaN.
"""

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from grape_rl.maths.bounds import UnitInterval
from grape_rl.maths.groups import EPSILON, group_count, group_mean, group_std, require_finite

Scale = Literal["group", "batch", "none"]
"""The standard deviation that divides: of the group, of the batch, or no division."""


def group_relative(
    reward: Float[Tensor, " b"],
    group: Int[Tensor, " b"],
    scale: Scale = "group",
    baseline: Literal["group", "leave_one_out"] = "group",
) -> Float[Tensor, " b"]:
    """Group-relative advantage: ``(reward − mean) / (std + 1e-6)``, the mean over the group's valid rewards.

    ``scale`` selects the standard deviation that divides: "group" is the group's (GRPO, arXiv 2402.03300, section 4.1),
    "batch" the batch's (Lite PPO, arXiv 2508.08221), and "none" leaves the division out (Dr. GRPO, arXiv 2503.20783).
    Each is over valid rewards, with Bessel's correction. The correction and the 1e-6 are our choice; the papers leave
    them open. The advantage is exactly 0 if all rewards of a group are equal, or if only one is valid.

    Without scaling, the expected policy gradient is (G−1)/G times the true one for groups of G. Scaling changes the
    objective: with groups of two and ``scale="group"``, only the order of the two rewards matters.

    ``baseline`` selects the mean: "group" is the mean of the whole group, and "leave_one_out" the mean of the *other*
    rewards, as in the function ``leave_one_out``. The latter multiplies the deviation by G/(G−1) and leaves the
    standard deviation as it is; a reward that is alone in its group then has the advantage NaN.

    Raises:
        ValueError: an infinite reward, or an unknown ``scale`` or ``baseline``.

    >>> group_relative(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([7, 4, 7]), scale="none")
    tensor([-2.,  0.,  2.])
    """
    require_finite(reward)
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
            return deviation / (group_std(reward, group) + EPSILON)
        case "batch":
            return deviation / (group_std(reward, torch.zeros_like(group)) + EPSILON)
        case _:
            raise ValueError(f"scale is {scale!r}; it must be 'group', 'batch' or 'none'")


def leave_one_out(reward: Float[Tensor, " b"], group: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
    """Reward minus the mean of the *other* valid rewards of its group (RLOO, arXiv 2402.14740): unbiased.

    It equals G/(G−1) times ``group_relative(…, scale="none")``. NaN if the group has no other valid reward.

    Raises:
        ValueError: an infinite reward.

    >>> leave_one_out(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 1]))
    tensor([-2.,  2., nan])
    """
    require_finite(reward)
    count = group_count(reward, group)
    return (reward - group_mean(reward, group)) * count / (count - 1)  # 0/0 for a single valid reward


def baseline_advantage(
    reward: Float[Tensor, " b"],
    group: Int[Tensor, " b"],
    baseline: Literal["none", "batch", "leave_one_out", "moving_average"] = "batch",
    moving_average: float = math.nan,
) -> Float[Tensor, " b"]:
    """REINFORCE advantage: the reward minus a baseline. Williams (1992).

    ``baseline`` selects what is subtracted: "none" is 0, "batch" the mean reward of the batch, "leave_one_out" the mean
    of the other rewards of the group, and "moving_average" a mean over earlier steps. All but "batch" are unbiased: the
    batch mean contains the response's own reward, so with B responses to one prompt the expected gradient is (B−1)/B
    times the true one.

    The argument ``moving_average`` is the value of ``maths.reward.moving_average``. At the first step it is NaN, and
    the mean of the batch is used.

    Raises:
        ValueError: an infinite reward, or an unknown ``baseline``.
    """
    require_finite(reward)
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


def batch_normalized(
    reward: Float[Tensor, " b"], group: Int[Tensor, " b"], center: Literal["batch", "group"] = "batch"
) -> Float[Tensor, " b"]:
    """Batch-normalized advantage: the centered reward divided by its standard deviation over the *batch* plus 1e-6.

    ``center`` selects the mean that is subtracted: "batch" is the batch's (REINFORCE++, arXiv 2501.03262), and "group"
    the group's (REINFORCE++-baseline). With "group", the standard deviation is over the group-centered rewards;
    ``group_relative`` with ``scale="batch"`` divides by the standard deviation of the raw rewards instead. Equal
    rewards have the advantage 0.

    Raises:
        ValueError: an infinite reward, or an unknown ``center``.

    >>> batch_normalized(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 1])).round(decimals=3)
    tensor([-1.,  0.,  1.])
    """
    require_finite(reward)
    batch = torch.zeros_like(group)
    match center:
        case "batch":
            deviation = reward - group_mean(reward, batch)
        case "group":
            deviation = reward - group_mean(reward, group)
        case _:
            raise ValueError(f"center is {center!r}; it must be 'batch' or 'group'")
    return deviation / (group_std(deviation, batch) + EPSILON)


def gae(
    token_reward: Float[Tensor, "b t"],
    value: Float[Tensor, "b t"],
    mask: Bool[Tensor, "b t"],
    gamma: UnitInterval = 1.0,
    lam: UnitInterval = 0.95,
) -> Float[Tensor, "b t"]:
    """Generalized advantage estimate of each token: ``A_t = Σ_l (gamma lam)^l δ_{t+l}``.

    ``δ_t = token_reward_t + gamma value_{t+1} − value_t`` is the temporal-difference error. GAE (arXiv 1506.02438),
    eq. 16. ``gamma`` discounts the rewards of later tokens. ``lam`` trades bias for variance: 1 gives the return minus
    the value, and 0 the one-step error.

    ``mask`` is True on the tokens that the policy sampled. Tokens outside the mask are not steps: "the next token" is
    the next masked-in one, ``token_reward`` and ``value`` are not read outside the mask, and the result there is 0. The
    value after a row's last token is 0, whether the policy ended the response or the token limit truncated it. A row
    whose last reward is missing (NaN) is NaN on all its tokens.

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
        sampled = mask[:, t]
        delta = token_reward[:, t] + gamma * next_value - value[:, t]
        advantage = torch.where(sampled, delta + gamma * lam * advantage, advantage)
        next_value = torch.where(sampled, value[:, t], next_value)
        columns.append(torch.where(sampled, advantage, 0))
    return torch.stack(columns[::-1], 1) if columns else torch.zeros_like(value)
