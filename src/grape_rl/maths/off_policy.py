"""Off-policy losses: REINFORCE on responses of an older policy, with masks, importance weights or regularizers.

As in ``surrogate``: losses are unreduced, ``"b t"``, and minimized. Masks and weights are constants, computed from the
importance ratio ``rho = exp(logp − behavior_logp)``: gradients flow through ``logp`` alone. At rho = 1 every loss has
the gradient of REINFORCE.

REC is the group-relative REINFORCE of arXiv 2509.24203 with the advantage ``reward − mean``. It needs no on-policy
samples: at the optimum of KL-regularized reward maximization, ``reward − τ log(π/π_old)`` is equal for all responses to
a prompt, whatever policy sampled them. It does need a bound on the change of each token, and the mask is that bound.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from grape_rl.maths.bounds import NonNegative, Positive, UnitInterval

Importance = Literal["none", "token"]
"""The importance weight of a token: 1, or its ratio."""

RatioLevel = Literal["token", "sequence"]
"""The importance ratio: of each token, or of the whole response."""


def rec_one_side(
    logp: Float[Tensor, "b t"],
    behavior_logp: Float[Tensor, "b t"],
    advantage: Float[Tensor, "b t"],
    clip_low: UnitInterval = 0.2,
    clip_high: NonNegative = 0.2,
    importance: Importance = "none",
) -> Float[Tensor, "b t"]:
    """REC-OneSide loss: ``−M w advantage logp``. M masks tokens past the bound in the direction of their advantage.

    M = 1 if rho ≤ 1+clip_high (advantage ≥ 0) or rho ≥ 1−clip_low (advantage ≤ 0), else 0. arXiv 2509.24203. The paper
    also uses bounds of 0.6 and 2.0, which learn faster. ``importance`` "none" sets w = 1, and "token" sets w = rho,
    which gives the gradient of PPO's clipped surrogate.
    """
    rho = _ratio(logp, behavior_logp)
    inside = torch.where(advantage >= 0, rho <= 1 + clip_high, rho >= 1 - clip_low)
    return _masked_policy_gradient(logp, advantage, inside, _weight(rho, importance))


def rec_two_side(
    logp: Float[Tensor, "b t"],
    behavior_logp: Float[Tensor, "b t"],
    advantage: Float[Tensor, "b t"],
    clip_low: UnitInterval = 0.2,
    clip_high: NonNegative = 0.2,
    importance: Importance = "token",
) -> Float[Tensor, "b t"]:
    """REC-TwoSide loss: ``−M w advantage logp`` with M = 1 if 1−clip_low ≤ rho ≤ 1+clip_high, else 0.

    arXiv 2509.24203. M does not depend on the sign of the advantage. Unlike in PPO's clipped surrogate, a token that
    has moved *against* its advantage past the bound has no gradient. ``importance`` "none" sets w = 1, and "token" sets
    w = rho.
    """
    rho = _ratio(logp, behavior_logp)
    return _masked_policy_gradient(logp, advantage, _inside(rho, clip_low, clip_high), _weight(rho, importance))


def rec_ring(
    logp: Float[Tensor, "b t"],
    behavior_logp: Float[Tensor, "b t"],
    advantage: Float[Tensor, "b t"],
    clip_low: UnitInterval = 0.2,
    clip_high: NonNegative = 0.2,
    ring_low: UnitInterval = 0.6,
    ring_high: NonNegative = 2.0,
    importance: Importance = "none",
) -> Float[Tensor, "b t"]:
    """REC-Ring loss: REC-TwoSide with a gradient again for tokens that moved very far against their advantage.

    M = 1 if 1−clip_low ≤ rho ≤ 1+clip_high, or if rho ≤ 1−ring_low (advantage ≥ 0) or rho ≥ 1+ring_high (advantage ≤
    0); between the two bounds M = 0. The loss is ``−M w advantage logp``. arXiv 2509.24203. ``importance`` "none" sets
    w = 1, and "token" sets w = rho.
    """
    rho = _ratio(logp, behavior_logp)
    far = torch.where(advantage >= 0, rho <= 1 - ring_low, rho >= 1 + ring_high)
    inside = _inside(rho, clip_low, clip_high)
    return _masked_policy_gradient(logp, advantage, inside | far, _weight(rho, importance))


def topr(
    logp: Float[Tensor, "b t"],
    behavior_logp: Float[Tensor, "b t"],
    advantage: Float[Tensor, "b t"],
    mask: Bool[Tensor, "b t"],
    level: RatioLevel = "sequence",
) -> Float[Tensor, "b t"]:
    """TOPR loss: ``−w advantage logp`` with w = 1 for a positive advantage, else ``w = min(rho, 1)``.

    Tapered off-policy REINFORCE (arXiv 2503.14286). Good responses are imitated whatever policy sampled them. The
    gradient of a bad response vanishes as its probability does, so its log-probability does not diverge. ``level``
    selects the ratio: "sequence" is the ratio of the response, a product over ``mask`` and our reading of the paper,
    and "token" is the ratio of each token.
    """
    taper = _ratio_at(logp, behavior_logp, mask, level).clamp(max=1)
    return -torch.where(advantage > 0, 1, taper) * advantage * logp


def truncated_importance(
    logp: Float[Tensor, "b t"],
    behavior_logp: Float[Tensor, "b t"],
    advantage: Float[Tensor, "b t"],
    mask: Bool[Tensor, "b t"],
    cap: Positive = 2.0,
    level: RatioLevel = "token",
) -> Float[Tensor, "b t"]:
    """Truncated importance sampling loss: ``−min(rho, cap) advantage logp``.

    Ionides (2008). The default of ``cap`` is our choice. ``level`` selects the ratio: "token" is the ratio of each
    token, as in IMPALA (arXiv 1802.01561), and equals CISPO with another bound. "sequence" is the ratio of the
    response, a product over ``mask``, and is unbiased if the cap is not reached.
    """
    return -_ratio_at(logp, behavior_logp, mask, level).clamp(max=cap) * advantage * logp


def squared_log_ratio(logp: Float[Tensor, "b t"], behavior_logp: Float[Tensor, "b t"]) -> Float[Tensor, "b t"]:
    """OPMD regularizer: ``(logp − behavior_logp)²``, which keeps the policy near the behavior policy.

    Kimi k1.5's online policy mirror descent (arXiv 2501.12599), with the square per token as in arXiv 2509.24203. On
    log-probs summed over the response (``"b 1"``) and with the coefficient τ/2, REINFORCE plus this term has the
    gradient of the squared residual ``(reward − mean − τ log(π/π_old))² / 2τ``.
    """
    return (logp - behavior_logp).square()


def nll_regularizer(logp: Float[Tensor, "b t"]) -> Float[Tensor, "b t"]:
    """AsymRE regularizer: ``−logp``, the negative log-likelihood of every response.

    Asymmetric REINFORCE (arXiv 2506.20520), in the form of arXiv 2509.24203. With the coefficient β, REINFORCE plus
    this term is REINFORCE with a baseline lower by β: good responses count for more than bad ones.
    """
    return -logp


def _masked_policy_gradient(logp: Tensor, advantage: Tensor, inside: Tensor, weight: Tensor) -> Tensor:
    # The weight is masked, not the loss: an infinite weight times a gradient of 0 would be NaN.
    return -weight.masked_fill(~inside, 0) * advantage * logp


def _ratio(logp: Tensor, behavior_logp: Tensor) -> Tensor:
    return (logp - behavior_logp).detach().exp()


def _ratio_at(logp: Tensor, behavior_logp: Tensor, mask: Tensor, level: RatioLevel) -> Tensor:
    if level == "token":
        return _ratio(logp, behavior_logp)
    return (logp - behavior_logp).detach().masked_fill(~mask, 0).sum(1, keepdim=True).exp()


def _inside(rho: Tensor, clip_low: float, clip_high: float) -> Tensor:
    return (rho >= 1 - clip_low) & (rho <= 1 + clip_high)


def _weight(rho: Tensor, importance: Importance) -> Tensor:
    return rho if importance == "token" else torch.ones_like(rho)
