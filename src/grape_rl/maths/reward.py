"""From a response's reward to rewards of its tokens: the KL to a reference, taken off where it arises."""

from jaxtyping import Bool, Float
from torch import Tensor

from grape_rl.maths.bounds import NonNegative


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
