"""Losses for responses of an older policy: REINFORCE with some of the tokens left out, weighed less, or pulled back.

As in ``surrogate``: unreduced, ``"b t"``, to be minimized. Every mask and every weight is a constant, taken from
``rho = exp(logp − behavior_logp)``: gradients flow through ``logp`` alone. At rho = 1 each has REINFORCE's gradient.

REC is the group-relative REINFORCE of arXiv 2509.24203, which takes no account of who wrote a response: KL-regularized
reward maximization asks for ``reward − τ log(π/π_old)`` to be the same for all responses to a prompt, whoever sampled
them. What it needs is a bound on how far a token may go, and that is the mask. Its advantage is ``reward − mean``.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from grape_rl.maths.bounds import NonNegative, Positive, Share

Importance = Literal["none", "token"]
Level = Literal["token", "sequence"]


def rec_one_side(
    logp: Float[Tensor, "b t"],
    behavior_logp: Float[Tensor, "b t"],
    advantage: Float[Tensor, "b t"],
    clip_low: Share = 0.2,
    clip_high: NonNegative = 0.2,
    importance: Importance = "none",
) -> Float[Tensor, "b t"]:
    """REC-OneSide: ``−M w advantage logp``, M leaving out what went far enough already, where its advantage pushes it.

    M = 1 where rho ≤ 1+clip_high (advantage ≥ 0) or rho ≥ 1−clip_low (advantage ≤ 0); w = 1 or, with
    ``importance="token"``, rho. arXiv 2509.24203. With the weight its gradient is PPO's clip's. The paper also has
    bounds of 0.6 and 2.0, which are faster.
    """
    rho = _ratio(logp, behavior_logp)
    kept = torch.where(advantage >= 0, rho <= 1 + clip_high, rho >= 1 - clip_low)
    return _policy_gradient(logp, advantage, kept, _weight(rho, importance))


def rec_two_side(
    logp: Float[Tensor, "b t"],
    behavior_logp: Float[Tensor, "b t"],
    advantage: Float[Tensor, "b t"],
    clip_low: Share = 0.2,
    clip_high: NonNegative = 0.2,
    importance: Importance = "token",
) -> Float[Tensor, "b t"]:
    """REC-TwoSide: ``−M w advantage logp``, M = 1 where 1−clip_low ≤ rho ≤ 1+clip_high, whatever the advantage.

    w = 1 or, with ``importance="token"``, rho. arXiv 2509.24203. Unlike PPO's clip, a token that has moved far the
    *wrong* way is left where it is.
    """
    rho = _ratio(logp, behavior_logp)
    return _policy_gradient(logp, advantage, _inside(rho, clip_low, clip_high), _weight(rho, importance))


def rec_ring(
    logp: Float[Tensor, "b t"],
    behavior_logp: Float[Tensor, "b t"],
    advantage: Float[Tensor, "b t"],
    clip_low: Share = 0.2,
    clip_high: NonNegative = 0.2,
    ring_low: Share = 0.6,
    ring_high: NonNegative = 2.0,
    importance: Importance = "none",
) -> Float[Tensor, "b t"]:
    """REC-Ring: as REC-TwoSide, and again M = 1 for what moved very far the wrong way.

    M = 1 where 1−clip_low ≤ rho ≤ 1+clip_high, and where rho ≤ 1−ring_low (advantage ≥ 0) or rho ≥ 1+ring_high
    (advantage ≤ 0). Between the two bounds nothing pulls. As weight, w = 1 or, with ``importance="token"``, rho. arXiv
    2509.24203.
    """
    rho = _ratio(logp, behavior_logp)
    far = torch.where(advantage >= 0, rho <= 1 - ring_low, rho >= 1 + ring_high)
    return _policy_gradient(logp, advantage, _inside(rho, clip_low, clip_high) | far, _weight(rho, importance))


def topr(
    logp: Float[Tensor, "b t"],
    behavior_logp: Float[Tensor, "b t"],
    advantage: Float[Tensor, "b t"],
    mask: Bool[Tensor, "b t"],
    level: Level = "sequence",
) -> Float[Tensor, "b t"]:
    """TOPR: ``−w advantage logp`` with w = 1 for a positive advantage, and else rho, at most 1.

    Tapered off-policy REINFORCE (arXiv 2503.14286): good responses are imitated whoever wrote them, bad ones pushed
    down no longer than they are still likely, so that nothing is pushed without end. ``level`` is whose rho: the
    response's, Π over ``mask``, which is our reading of the paper, or each token's.
    """
    taper = _ratio_at(logp, behavior_logp, mask, level).clamp(max=1)
    return -torch.where(advantage > 0, 1, taper) * advantage * logp


def truncated(
    logp: Float[Tensor, "b t"],
    behavior_logp: Float[Tensor, "b t"],
    advantage: Float[Tensor, "b t"],
    mask: Bool[Tensor, "b t"],
    cap: Positive = 2.0,
    level: Level = "token",
) -> Float[Tensor, "b t"]:
    """Truncated importance weights: ``−min(rho, cap) advantage logp``.

    Ionides (2008); IMPALA (arXiv 1802.01561) caps each token's, as here unless ``level`` is "sequence": then rho is the
    response's, Π over ``mask``, unbiased where the cap is not reached. The cap's default is our choice. With tokens it
    is CISPO with another bound.
    """
    return -_ratio_at(logp, behavior_logp, mask, level).clamp(max=cap) * advantage * logp


def behavior_pull(logp: Float[Tensor, "b t"], behavior_logp: Float[Tensor, "b t"]) -> Float[Tensor, "b t"]:
    """OPMD's regularizer: ``(logp − behavior_logp)²``, which pulls back to the policy that sampled.

    Kimi k1.5's online policy mirror descent (arXiv 2501.12599), with the square taken of each token as arXiv 2509.24203
    tries it. On log-probs summed over the response (``"b 1"``) and with the coefficient τ/2, REINFORCE plus this term
    has the gradient of the squared residual ``(reward − mean − τ log(π/π_old))² / 2τ``.
    """
    return (logp - behavior_logp).square()


def imitation(logp: Float[Tensor, "b t"]) -> Float[Tensor, "b t"]:
    """AsymRE's regularizer: ``−logp``, every response a little likelier.

    Asymmetric REINFORCE (arXiv 2506.20520), in the form of arXiv 2509.24203: with the coefficient β, REINFORCE plus
    this term is REINFORCE with a baseline lower by β, so that good responses count for more than bad ones.
    """
    return -logp


def _policy_gradient(logp: Tensor, advantage: Tensor, kept: Tensor, weight: Tensor) -> Tensor:
    # Out of the weight, not of the loss: there an infinite one times a gradient of 0 would be NaN.
    return -weight.masked_fill(~kept, 0) * advantage * logp


def _ratio(logp: Tensor, behavior_logp: Tensor) -> Tensor:
    return (logp - behavior_logp).detach().exp()


def _ratio_at(logp: Tensor, behavior_logp: Tensor, mask: Tensor, level: Level) -> Tensor:
    if level == "token":
        return _ratio(logp, behavior_logp)
    return (logp - behavior_logp).detach().masked_fill(~mask, 0).sum(1, keepdim=True).exp()


def _inside(rho: Tensor, clip_low: float, clip_high: float) -> Tensor:
    return (rho >= 1 - clip_low) & (rho <= 1 + clip_high)


def _weight(rho: Tensor, importance: Importance) -> Tensor:
    return rho if importance == "token" else torch.ones_like(rho)
