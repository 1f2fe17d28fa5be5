"""The policy losses: what to minimize so that responses with a positive advantage become likelier.

Each returns an unreduced loss for every token, ``"b t"``. Masking and averaging are the caller's: values at tokens
that are not the policy's have no meaning. A row whose advantage is NaN must be taken out, or its advantage filled,
*before* the loss: filled after it, the value is clean and the gradient is still NaN.

``advantage`` is a constant here: gradients are meant to flow through ``logp`` alone. With
``rho = exp(logp − behavior_logp)``, all of the losses have REINFORCE's gradient at rho = 1 (GSPO's: per row mean).
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from grape_rl.maths.bounds import NonNegative, Share


def policy_gradient(logp: Float[Tensor, "b t"], advantage: Float[Tensor, "b t"]) -> Float[Tensor, "b t"]:
    """REINFORCE's loss: ``−advantage logp``. Williams (1992).

    With an advantage of 1 this is the SFT loss, the negative log-likelihood.
    """
    return -advantage * logp


def dft(logp: Float[Tensor, "b t"], advantage: Float[Tensor, "b t"]) -> Float[Tensor, "b t"]:
    """Dynamic fine-tuning: ``−sg(π) logp advantage``, π = exp(logp) and sg a constant to the gradient.

    DFT (arXiv 2508.05629), with ``advantage`` 1 for each token of a demonstration. SFT's gradient is that of a policy
    gradient whose reward is 1/π for the demonstrated token and 0 for all others; the weight π takes that 1/π away. The
    gradient is then that of −π: DFT maximizes the mean probability of the tokens, and leaves one alone that the model
    holds for nearly impossible. Nats.
    """
    return -logp.detach().exp() * logp * advantage


def ratio(
    logp: Float[Tensor, "b t"],
    behavior_logp: Float[Tensor, "b t"],
    advantage: Float[Tensor, "b t"],
) -> Float[Tensor, "b t"]:
    """Importance-weighted loss: ``−rho advantage`` with ``rho = exp(logp − behavior_logp)``.

    TRPO (arXiv 1502.05477), eq. 14. One weight a token: off-policy, each token is corrected, but not the prefix it
    follows nor the tokens after it. On log-probs summed over the response (``"b 1"``) it is exact.
    """
    return -(logp - behavior_logp).exp() * advantage


def clipped(
    logp: Float[Tensor, "b t"],
    behavior_logp: Float[Tensor, "b t"],
    advantage: Float[Tensor, "b t"],
    clip_low: Share = 0.2,
    clip_high: NonNegative = 0.2,
) -> Float[Tensor, "b t"]:
    """PPO's loss: ``−min(rho advantage, clip(rho, 1−clip_low, 1+clip_high) advantage)``.

    With ``rho = exp(logp − behavior_logp)``. PPO (arXiv 1707.06347), eq. 7; two different bounds: DAPO (arXiv
    2503.14476), eq. 10. A token that has already moved past its bound in the direction that its advantage asks for
    gets no gradient.
    """
    return _pessimistic((logp - behavior_logp).exp(), advantage, clip_low, clip_high)


def sequence_clipped(
    logp: Float[Tensor, "b t"],
    behavior_logp: Float[Tensor, "b t"],
    advantage: Float[Tensor, "b t"],
    mask: Bool[Tensor, "b t"],
    clip_low: Share = 3e-4,
    clip_high: NonNegative = 4e-4,
) -> Float[Tensor, "b t"]:
    """GSPO's loss: PPO's with one ratio a response, ``rho = exp(mean over mask of logp − behavior_logp)``.

    GSPO (arXiv 2507.18071), eqs. 5 and 7, with its bounds, 1−clip_low and 1+clip_high. Every token of a row carries the
    row's term, so the *mean* over a row's tokens is the paper's sequence objective. That ratio is a geometric mean over
    tokens, so its gradient is the policy gradient's divided by the response's length. A row with an empty mask has a
    ratio of 1.
    """
    difference = (logp - behavior_logp).masked_fill(~mask, 0)
    mean = difference.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
    return _pessimistic(mean.exp(), advantage, clip_low, clip_high)


def cispo(
    logp: Float[Tensor, "b t"],
    behavior_logp: Float[Tensor, "b t"],
    advantage: Float[Tensor, "b t"],
    clip_low: Share = 1.0,
    clip_high: NonNegative = 0.28,
) -> Float[Tensor, "b t"]:
    """CISPO's loss: ``−stop_gradient(clip(rho, 1−clip_low, 1+clip_high)) advantage logp``.

    With ``rho = exp(logp − behavior_logp)``. CISPO (MiniMax-M1, arXiv 2506.13585), eqs. 4 and 5. The weight is
    clipped, never the token: each keeps a gradient. The defaults are our choice: 1 is no lower bound (as in
    the paper), 0.28 is DAPO's upper one. TRL's ``epsilon_high`` is the upper bound itself, ``1 + clip_high`` here.
    """
    weight = (logp - behavior_logp).exp().clamp(1 - clip_low, 1 + clip_high).detach()
    return -weight * advantage * logp


def _pessimistic(rho: Tensor, advantage: Tensor, clip_low: float, clip_high: float) -> Tensor:
    """The larger of the loss with the ratio as it is and the loss with the ratio clipped."""
    return -torch.minimum(rho * advantage, rho.clamp(1 - clip_low, 1 + clip_high) * advantage)
