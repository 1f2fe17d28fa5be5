"""Rewards before they are compared: given to tokens, the KL to a reference taken off; and the mean of past ones."""

import math

from jaxtyping import Bool, Float
from torch import Tensor

from grape_rl.maths.bounds import NonNegative, Share


def kl_penalized(
    reward: Float[Tensor, " b"],
    behavior_logp: Float[Tensor, "b t"],
    reference_logp: Float[Tensor, "b t"],
    mask: Bool[Tensor, "b t"],
    kl_in_reward: NonNegative = 0.0,
) -> Float[Tensor, "b t"]:
    """Rewards of tokens: ``1[t is the last] reward − kl_in_reward (behavior_logp − reference_logp)``, 0 off the mask.

    The KL folded into the reward (arXiv 2509.04501, PPO). Summed over a response its mean is
    ``E[R] − kl_in_reward · KL(π‖π_ref)``, whose optimum is π_ref e^{R/kl_in_reward}/Z: that of DPO with
    ``beta = kl_in_reward``. A response whose reward is missing (NaN) has NaN at its last token.

    >>> import torch
    >>> two, mask = torch.tensor([[-1.0, -2.0, 0.0]]), torch.tensor([[True, True, False]])
    >>> kl_penalized(torch.tensor([1.0]), two, torch.tensor([[-1.5, -1.0, 0.0]]), mask, kl_in_reward=0.1)
    tensor([[-0.0500,  1.1000,  0.0000]])
    """
    last = mask & (mask.flip(1).cumsum(dim=1).flip(1) == 1)
    spent = kl_in_reward * (behavior_logp - reference_logp).masked_fill(~mask, 0)
    return reward[:, None].to(spent).expand_as(spent).masked_fill(~last, 0) - spent


def moving_average(previous: float, reward: Float[Tensor, " b"], decay: Share = 0.9) -> float:
    """The exponential moving average of rewards, a step further: ``decay previous + (1 − decay) mean(reward)``.

    Where nothing is ``previous`` (NaN) it is the mean alone. Missing rewards (NaN) are left out; a step that has no
    other leaves the average as it was.

    Raises:
        ValueError: ``decay`` is not in [0, 1).

    >>> import torch
    >>> moving_average(1.0, torch.tensor([2.0, 4.0, torch.nan]), decay=0.75)
    1.5
    """
    if not 0 <= decay < 1:
        raise ValueError(f"decay is {decay}; it must be at least 0 and under 1")
    known = reward[~reward.isnan()]
    if not len(known):
        return previous
    mean = float(known.mean())
    return mean if math.isnan(previous) else decay * previous + (1 - decay) * mean
