"""Rewards before the advantage: per token with a KL penalty, and the moving average of earlier rewards."""

import math

from jaxtyping import Bool, Float
from torch import Tensor

from grape_rl.maths.bounds import NonNegative, UnitInterval


def kl_penalized(
    reward: Float[Tensor, " b"],
    behavior_logp: Float[Tensor, "b t"],
    reference_logp: Float[Tensor, "b t"],
    mask: Bool[Tensor, "b t"],
    kl_in_reward: NonNegative = 0.0,
) -> Float[Tensor, "b t"]:
    """Per-token rewards: ``1[t is the last] reward − kl_in_reward (behavior_logp − reference_logp)``.

    The KL is part of the reward (arXiv 2509.04501, PPO). The rewards of a response sum to
    ``E[R] − kl_in_reward · KL(π‖π_ref)`` in expectation. Its optimum is π_ref e^{R/kl_in_reward}/Z, as for DPO with
    ``beta = kl_in_reward``. A response whose reward is missing (NaN) has NaN at its last token. Rewards outside
    ``mask`` are 0.

    >>> import torch
    >>> two, mask = torch.tensor([[-1.0, -2.0, 0.0]]), torch.tensor([[True, True, False]])
    >>> kl_penalized(torch.tensor([1.0]), two, torch.tensor([[-1.5, -1.0, 0.0]]), mask, kl_in_reward=0.1)
    tensor([[-0.0500,  1.1000,  0.0000]])
    """
    last = mask & (mask.flip(1).cumsum(dim=1).flip(1) == 1)
    penalty = kl_in_reward * (behavior_logp - reference_logp).masked_fill(~mask, 0)
    return reward[:, None].to(penalty).expand_as(penalty).masked_fill(~last, 0) - penalty


def moving_average(previous: float, reward: Float[Tensor, " b"], decay: UnitInterval = 0.9) -> float:
    """Exponential moving average of rewards: ``decay previous + (1 − decay) mean(reward)``.

    At the first step ``previous`` is NaN, and the result is the mean alone. Missing rewards (NaN) are left out. A step
    without a valid reward returns ``previous``.

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
