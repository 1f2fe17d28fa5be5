"""Clip fractions: the tokens on which a clipped loss is clipped.

Each function has the arguments of its loss and returns True for the tokens that are clipped. With
``rho = exp(logp − behavior_logp)``, a token without advantage is never clipped. Nothing here has a gradient.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from grape_rl.maths.surrogate import sequence_ratio


def ratio_clipped(
    logp: Float[Tensor, "b t"],
    behavior_logp: Float[Tensor, "b t"],
    advantage: Float[Tensor, "b t"],
    clip_low: float,
    clip_high: float,
) -> Bool[Tensor, "b t"]:
    """True where the minimum in PPO's loss ``clipped`` is the clipped term, so that the token has no gradient.

    ``rho > 1 + clip_high`` for a positive advantage, ``rho < 1 − clip_low`` for a negative one.

    >>> rho, advantage = torch.tensor([[1.5, 1.5, 0.5, 0.5]]), torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    >>> ratio_clipped(rho.log(), torch.zeros(1, 4), advantage, 0.2, 0.2)
    tensor([[ True, False, False,  True]])
    """
    return _one_sided((logp - behavior_logp).exp(), advantage, clip_low, clip_high)


def sequence_ratio_clipped(
    logp: Float[Tensor, "b t"],
    behavior_logp: Float[Tensor, "b t"],
    advantage: Float[Tensor, "b t"],
    mask: Bool[Tensor, "b t"],
    clip_low: float,
    clip_high: float,
) -> Bool[Tensor, "b t"]:
    """True where the minimum in GSPO's loss ``sequence_clipped`` is the clipped term.

    As ``ratio_clipped``, with the ratio of the response, ``sequence_ratio``.
    """
    return _one_sided(sequence_ratio(logp, behavior_logp, mask), advantage, clip_low, clip_high)


def weight_clipped(
    logp: Float[Tensor, "b t"],
    behavior_logp: Float[Tensor, "b t"],
    advantage: Float[Tensor, "b t"],
    clip_low: float,
    clip_high: float,
) -> Bool[Tensor, "b t"]:
    """True where rho is outside [1 − clip_low, 1 + clip_high], whatever the sign of the advantage.

    ``cispo`` clips the weight of these tokens, and ``rec_two_side`` leaves them out.

    >>> rho, advantage = torch.tensor([[1.5, 1.5, 0.5, 1.0]]), torch.tensor([[1.0, -1.0, 0.0, 1.0]])
    >>> weight_clipped(rho.log(), torch.zeros(1, 4), advantage, 0.2, 0.2)
    tensor([[ True,  True, False, False]])
    """
    rho = (logp - behavior_logp).exp()
    return ((rho < 1 - clip_low) | (rho > 1 + clip_high)) & (advantage != 0)


def ring_clipped(
    logp: Float[Tensor, "b t"],
    behavior_logp: Float[Tensor, "b t"],
    advantage: Float[Tensor, "b t"],
    clip_low: float,
    clip_high: float,
    ring_low: float,
    ring_high: float,
) -> Bool[Tensor, "b t"]:
    """True for tokens that ``rec_ring`` leaves out: those of ``weight_clipped`` that did not move far the wrong way.

    Far the wrong way is ``rho ≤ 1 − ring_low`` for a positive advantage, ``rho ≥ 1 + ring_high`` for a negative one.
    """
    rho = (logp - behavior_logp).exp()
    far = torch.where(advantage >= 0, rho <= 1 - ring_low, rho >= 1 + ring_high)
    return weight_clipped(logp, behavior_logp, advantage, clip_low, clip_high) & ~far


def value_clipped(
    value: Float[Tensor, "b t"],
    behavior_value: Float[Tensor, "b t"],
    value_target: Float[Tensor, "b t"],
    clip_value: float,
) -> Bool[Tensor, "b t"]:
    """True where the maximum in ``value_loss`` is the clipped term, so that the value has no gradient.

    >>> zero = torch.zeros(1, 1)
    >>> value_clipped(zero + 0.5, zero, zero + 1.0, 0.2), value_clipped(zero + 0.5, zero, zero - 1.0, 0.2)
    (tensor([[True]]), tensor([[False]]))
    """
    near = torch.clamp(value, behavior_value - clip_value, behavior_value + clip_value)
    return (near - value_target).square() > (value - value_target).square()


def _one_sided(rho: Tensor, advantage: Tensor, clip_low: float, clip_high: float) -> Tensor:
    return torch.where(advantage > 0, rho > 1 + clip_high, (rho < 1 - clip_low) & (advantage < 0))
