"""Advantages that see more than a group's mean: they drop responses, weigh them, or take their length into account.

As in ``advantage``: NaN is a missing reward, and its own advantage is NaN.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from grape_rl.maths.advantage import Scale, best_of_group, group_count, group_mean, group_rank, group_relative
from grape_rl.maths.bounds import AtLeastOne, Count, Positive


def accepted(
    reward: Float[Tensor, " b"],
    group: Int[Tensor, " b"],
    response: Int[Tensor, " b"],
    keep: AtLeastOne = 1,
    threshold: float = -math.inf,
    deduplicate: bool = False,
) -> Float[Tensor, " b"]:
    """``best_of_group``, 1 for what is kept and NaN for the rest; with ``deduplicate``, each response counts once.

    Of the same response to a prompt (equal numbers in ``response``) the earliest that has a reward counts, and the
    others are left out before the best are taken. So ``keep`` is of different responses, and what the policy says often
    is not learned as often: it stays more diverse. The best have reward ≥ ``threshold``, and there may be none.

    RAFT (arXiv 2304.06767) with ``keep`` 1; with some threshold and all kept, rejection sampling fine-tuning.

    Raises:
        ValueError: as ``best_of_group``.

    >>> reward, group = torch.tensor([1.0, 3.0, 3.0, 2.0]), torch.zeros(4, dtype=torch.long)
    >>> accepted(reward, group, torch.tensor([0, 1, 1, 2]), keep=2, deduplicate=True)
    tensor([nan, 1., nan, 1.])
    """
    if deduplicate:
        known = torch.where(reward.isnan(), torch.nan, 0.0)
        reward = reward.masked_fill(group_rank(known, response) > 0, torch.nan)
    return best_of_group(reward, group, keep, threshold)


def undiluted(reward: Float[Tensor, " b"], group: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
    """Reward less its group's mean, scaled up for the groups that say nothing: ``B/(B−M) (reward − mean)``.

    B is the number of valid rewards, M how many of them are in groups whose rewards are all equal: the mean over B
    responses becomes one over the B−M that have an advantage. GPG (arXiv 2504.02546), with its normalizer at 1. Where
    every group is of equal rewards, all is 0. Our reading.

    Raises:
        ValueError: an infinite reward.

    >>> undiluted(torch.tensor([1.0, 3.0, 2.0, 2.0]), torch.tensor([0, 0, 1, 1]))
    tensor([-2.,  2.,  0.,  0.])
    """
    deviation = group_relative(reward, group, "none")
    differs = (deviation.nan_to_num() != 0).to(reward.dtype)
    useful = group_mean(differs, group)[~reward.isnan()] > 0
    return deviation * (len(useful) / useful.sum().clamp(min=1).to(reward.dtype))


def length_penalized(
    reward: Float[Tensor, " b"],
    group: Int[Tensor, " b"],
    length: Int[Tensor, " b"],
    max_tokens: int,
    scale: Scale = "group",
    overlong_buffer: Count = 0,
) -> Float[Tensor, " b"]:
    """``group_relative`` of the reward plus DAPO's soft punishment of the last ``overlong_buffer`` tokens.

    reward + min(0, (max_tokens − overlong_buffer − length) / overlong_buffer): nothing up to the buffer, then down to
    −1 at ``max_tokens``. DAPO (arXiv 2503.14476), eq. 13, in the units of the reward (DAPO's are ±1). A buffer of 0
    punishes nothing. ``scale`` is whose standard deviation divides: the group's, the batch's or none's.

    Raises:
        ValueError: an infinite reward, an unknown ``scale``, or a buffer below 0 or over ``max_tokens``.

    >>> none, length = torch.zeros(2), torch.tensor([6, 9])
    >>> length_penalized(none, torch.tensor([0, 0]), length, max_tokens=10, scale="none", overlong_buffer=4)
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
    """``group_relative`` of what is left when bad responses, drawn at random, are dropped: those have advantage 0.

    In each group in which more rewards are below the mean than not, enough of the former are dropped that both are as
    many; the mean is of what is kept, and so is the deviation that ``scale`` may ask for. RED-Drop of arXiv 2509.24203.
    The same ``seed`` drops the same.

    Raises:
        ValueError: an infinite reward, or an unknown ``scale``.

    >>> red_drop(torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0, 0, 0]), seed=0).abs().sort().values
    tensor([0.0000, 0.5000, 0.5000])
    """
    bad = group_relative(reward, group, "none") < 0
    surplus = 2 * group_count(reward.masked_fill(~bad, torch.nan), group) - group_count(reward, group)
    key = torch.rand(len(reward), generator=torch.Generator().manual_seed(seed)).to(reward.device)
    dropped = bad & (group_rank(key.masked_fill(~bad, -1), group) < surplus)
    left = group_relative(reward.masked_fill(dropped, torch.nan), group, scale)
    return torch.where(dropped, 0, left)


def red_weight(
    reward: Float[Tensor, " b"], group: Int[Tensor, " b"], temperature: Positive = 1.0
) -> Float[Tensor, " b"]:
    """``d exp(d / temperature)`` with d = reward − the group's mean: good responses count for more than bad ones.

    RED-Weight of arXiv 2509.24203. For a high temperature it is d.

    Raises:
        ValueError: an infinite reward, or a ``temperature`` that is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be positive")
    deviation = group_relative(reward, group, "none")
    return deviation * (deviation / temperature).exp()


def posterior(
    reward: Float[Tensor, " b"], group: Int[Tensor, " b"], weights: Literal["posterior", "centered"] = "posterior"
) -> Float[Tensor, " b"]:
    """The weight of each response in EM's M-step: ``reward / mean`` of its group, or ``reward − mean``.

    log E_{y~π_old}[R] ≥ E_q[log(π_old R / q)]: the best q (E-step) is π_old R / E[R], and the M-step maximizes
    E_q[log π]. Over responses from π_old that is the mean of w_i log π(y_i), w_i = ``reward / mean``. NaN where a
    group's rewards are all 0: it has no posterior. With ``weights`` "centered" it is REINFORCE with the group's mean.
    EM policy gradient (arXiv 2504.18587), of which only the abstract was at hand: this is our reconstruction.

    Raises:
        ValueError: an infinite reward, a negative one with ``weights="posterior"``, or unknown ``weights``.

    >>> posterior(torch.tensor([1.0, 3.0]), torch.tensor([0, 0]))
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
