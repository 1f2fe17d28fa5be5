"""Advantages that do more than subtract a mean: they rescale, penalize length, drop responses or weight them.

As in ``advantage``: a NaN reward is missing, and its advantage is NaN.
"""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from grape_rl.maths.advantage import Scale, group_relative
from grape_rl.maths.bounds import NonNegativeInt, Positive
from grape_rl.maths.groups import group_count, group_mean, group_rank


def gpg_advantage(reward: Float[Tensor, " b"], group: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
    """Reward minus the group mean, rescaled for groups without signal: ``B/(B−M) (reward − mean)``.

    B is the number of valid rewards. M of them are in zero-variance groups (all rewards equal). The factor turns the
    mean over B responses into a mean over the B−M that have an advantage. If all groups have zero variance, every
    advantage is 0. GPG (arXiv 2504.02546), with its normalizer at 1; our reading.

    Raises:
        ValueError: an infinite reward.

    >>> gpg_advantage(torch.tensor([1.0, 3.0, 2.0, 2.0]), torch.tensor([0, 0, 1, 1]))
    tensor([-2.,  2.,  0.,  0.])
    """
    deviation = group_relative(reward, group, "none")
    differs = (deviation.nan_to_num() != 0).to(reward.dtype)
    varied = group_mean(differs, group)[~reward.isnan()] > 0
    return deviation * (len(varied) / varied.sum().clamp(min=1).to(reward.dtype))


def length_penalized(
    reward: Float[Tensor, " b"],
    group: Int[Tensor, " b"],
    length: Int[Tensor, " b"],
    max_tokens: int,
    scale: Scale = "group",
    overlong_buffer: NonNegativeInt = 0,
) -> Float[Tensor, " b"]:
    """Group-relative advantage of the reward plus DAPO's soft overlong punishment.

    The punishment is ``min(0, (max_tokens − overlong_buffer − length) / overlong_buffer)``: 0 up to the buffer, then
    linear down to −1 at ``max_tokens``. DAPO (arXiv 2503.14476), eq. 13, in the units of the reward (DAPO's rewards are
    ±1). ``overlong_buffer`` is the number of last tokens that are punished; 0 punishes nothing. ``scale`` selects the
    standard deviation that divides: "group", "batch" or "none", as in ``group_relative``.

    Raises:
        ValueError: an infinite reward, an unknown ``scale``, or a buffer below 0 or over ``max_tokens``.

    >>> reward, length = torch.zeros(2), torch.tensor([6, 9])
    >>> length_penalized(reward, torch.tensor([0, 0]), length, max_tokens=10, scale="none", overlong_buffer=4)
    tensor([ 0.3750, -0.3750])
    """
    if not 0 <= overlong_buffer <= max_tokens:
        raise ValueError(f"overlong_buffer is {overlong_buffer}; it must be from 0 to max_tokens, {max_tokens}")
    if overlong_buffer:
        over = (max_tokens - overlong_buffer - length).clamp(max=0)
        reward = reward + over.to(reward.dtype) / overlong_buffer
    return group_relative(reward, group, scale)


def red_drop(
    reward: Float[Tensor, " b"], group: Int[Tensor, " b"], seed: int, scale: Scale = "none"
) -> Float[Tensor, " b"]:
    """Group-relative advantage after dropping low-reward responses at random; a dropped response has the advantage 0.

    A reward is low if it is below the mean of its group. A group with more low rewards than others drops low ones until
    both are equally many. The mean and the standard deviation are over the remaining responses. RED-Drop of arXiv
    2509.24203. The choice depends on ``seed`` alone. ``scale`` selects the standard deviation that divides: "group",
    "batch" or "none", as in ``group_relative``.

    Raises:
        ValueError: an infinite reward, or an unknown ``scale``.

    >>> red_drop(torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0, 0, 0]), seed=0).abs().sort().values
    tensor([0.0000, 0.5000, 0.5000])
    """
    low = group_relative(reward, group, "none") < 0
    surplus = 2 * group_count(reward.masked_fill(~low, torch.nan), group) - group_count(reward, group)
    key = torch.rand(len(reward), generator=torch.Generator().manual_seed(seed)).to(reward.device)
    dropped = low & (group_rank(key.masked_fill(~low, -1), group) < surplus)
    remaining = group_relative(reward.masked_fill(dropped, torch.nan), group, scale)
    return torch.where(dropped, 0, remaining)


def red_weight(
    reward: Float[Tensor, " b"], group: Int[Tensor, " b"], temperature: Positive = 1.0
) -> Float[Tensor, " b"]:
    """Exponentially weighted advantage: ``d exp(d / temperature)`` with d = reward − the mean of the group.

    Responses above the mean count for more than responses below it. RED-Weight of arXiv 2509.24203. As ``temperature``
    grows, the advantage approaches d.

    Raises:
        ValueError: an infinite reward, or a ``temperature`` that is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be positive")
    deviation = group_relative(reward, group, "none")
    return deviation * (deviation / temperature).exp()


def em_weight(
    reward: Float[Tensor, " b"], group: Int[Tensor, " b"], weights: Literal["posterior", "centered"] = "posterior"
) -> Float[Tensor, " b"]:
    """Weight of each response in the M-step of EM: ``reward / mean`` of its group, or ``reward − mean``.

    By Jensen's inequality log E_{y~π_old}[R] ≥ E_q[log(π_old R / q)]. The E-step's best q is the posterior π_old R /
    E[R], and the M-step maximizes E_q[log π]. Estimated from responses of π_old, the M-step's objective is the mean of
    w_i log π(y_i) with w_i = ``reward / mean``. A group whose rewards are all 0 has no posterior: NaN. ``weights``
    "centered" gives ``reward − mean``, which is REINFORCE with the group mean as the baseline.

    EM policy gradient (arXiv 2504.18587). Only the abstract was available: this is our reconstruction.

    Raises:
        ValueError: an infinite reward, a negative one with ``weights="posterior"``, or unknown ``weights``.

    >>> em_weight(torch.tensor([1.0, 3.0]), torch.tensor([0, 0]))
    tensor([0.5000, 1.5000])
    """
    match weights:
        case "centered":
            return group_relative(reward, group, "none")
        case "posterior":
            if bool((reward < 0).any() | reward.isinf().any()):
                raise ValueError(
                    "reward has an entry below 0 or infinite: take weights='centered', or shift the rewards"
                )
            return reward / group_mean(reward, group)
        case _:
            raise ValueError(f"weights is {weights!r}; it must be 'posterior' or 'centered'")
