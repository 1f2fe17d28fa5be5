"""Surrogate losses of the policy gradient. Minimizing one makes responses with a positive advantage more likely.

Each function returns an unreduced loss per token, ``"b t"``. The caller masks and averages: values at tokens that the
policy did not sample have no meaning. Remove a row whose advantage is NaN, or fill its advantage, *before* the loss:
if the loss is filled instead, its value is clean but its gradient is NaN.

``advantage`` is a constant: gradients flow through ``logp`` alone. ``rho = exp(logp − behavior_logp)`` is the
importance ratio. At rho = 1 every loss has the gradient of REINFORCE (GSPO's has it per row mean).
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from grape_rl.maths.bounds import NonNegative, UnitInterval


def policy_gradient(logp: Float[Tensor, "b t"], advantage: Float[Tensor, "b t"]) -> Float[Tensor, "b t"]:
    """REINFORCE loss: ``−advantage logp``. Williams (1992).

    With an advantage of 1 it is the SFT loss, the negative log-likelihood.
    """
    return -advantage * logp


def dft(logp: Float[Tensor, "b t"], advantage: Float[Tensor, "b t"]) -> Float[Tensor, "b t"]:
    """Dynamic fine-tuning loss: ``−sg(π) logp advantage`` with π = exp(logp) and sg a stop-gradient.

    DFT (arXiv 2508.05629), with ``advantage`` 1 for each token of a demonstration. The SFT gradient is a policy
    gradient with the reward 1/π for the demonstrated token and 0 for every other token. The weight π cancels the 1/π,
    and the gradient is that of −π: DFT maximizes the mean probability of the tokens. A token whose probability is near
    0 gets almost no gradient. Nats.
    """
    return -logp.detach().exp() * logp * advantage


def ratio(
    logp: Float[Tensor, "b t"],
    behavior_logp: Float[Tensor, "b t"],
    advantage: Float[Tensor, "b t"],
) -> Float[Tensor, "b t"]:
    """Importance-weighted loss: ``−rho advantage`` with the importance ratio ``rho = exp(logp − behavior_logp)``.

    TRPO (arXiv 1502.05477), eq. 14. The ratio is per token. Off-policy, it corrects the distribution of each token, but
    not of the prefix before it or of the tokens after it. On log-probs summed over the response (``"b 1"``) it is
    exact.
    """
    return -(logp - behavior_logp).exp() * advantage


def clipped(
    logp: Float[Tensor, "b t"],
    behavior_logp: Float[Tensor, "b t"],
    advantage: Float[Tensor, "b t"],
    clip_low: UnitInterval = 0.2,
    clip_high: NonNegative = 0.2,
) -> Float[Tensor, "b t"]:
    """PPO's clipped surrogate: ``−min(rho advantage, clip(rho, 1−clip_low, 1+clip_high) advantage)``.

    ``rho = exp(logp − behavior_logp)`` is the importance ratio. PPO (arXiv 1707.06347), eq. 7; separate lower and upper
    bounds are from DAPO (arXiv 2503.14476), eq. 10. A token has no gradient once its ratio has passed the bound in the
    direction of its advantage.
    """
    return _pessimistic((logp - behavior_logp).exp(), advantage, clip_low, clip_high)


def sequence_clipped(
    logp: Float[Tensor, "b t"],
    behavior_logp: Float[Tensor, "b t"],
    advantage: Float[Tensor, "b t"],
    mask: Bool[Tensor, "b t"],
    clip_low: UnitInterval = 3e-4,
    clip_high: NonNegative = 4e-4,
) -> Float[Tensor, "b t"]:
    """GSPO loss: PPO's clipped surrogate with one ratio per response, ``rho = exp(mean_t(logp − behavior_logp))``.

    GSPO (arXiv 2507.18071), eqs. 5 and 7. The mean is over ``mask``, and rho is clipped to [1−clip_low, 1+clip_high]
    with the paper's defaults. Every token of a row holds the row's term, so the *mean* over a row's tokens is the
    paper's sequence objective. The ratio is a geometric mean over tokens, so the gradient is the policy gradient
    divided by the length of the response. A row with an empty mask has the ratio 1.
    """
    return _pessimistic(sequence_ratio(logp, behavior_logp, mask), advantage, clip_low, clip_high)


def sequence_ratio(
    logp: Float[Tensor, "b t"], behavior_logp: Float[Tensor, "b t"], mask: Bool[Tensor, "b t"]
) -> Float[Tensor, "b 1"]:
    """Importance ratio of a response, a geometric mean over tokens: ``exp(mean over mask of logp − behavior_logp)``.

    GSPO (arXiv 2507.18071), eq. 7. A row with an empty mask has the ratio 1.
    """
    difference = (logp - behavior_logp).masked_fill(~mask, 0)
    return (difference.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)).exp()


def cispo(
    logp: Float[Tensor, "b t"],
    behavior_logp: Float[Tensor, "b t"],
    advantage: Float[Tensor, "b t"],
    clip_low: UnitInterval = 1.0,
    clip_high: NonNegative = 0.28,
) -> Float[Tensor, "b t"]:
    """CISPO loss: ``−stop_gradient(clip(rho, 1−clip_low, 1+clip_high)) advantage logp``.

    ``rho = exp(logp − behavior_logp)`` is the importance ratio. CISPO (MiniMax-M1, arXiv 2506.13585), eqs. 4 and 5. The
    clip applies to the weight, so every token keeps a gradient. The defaults are our choice: a ``clip_low`` of 1 is no
    lower bound, as in the paper, and a ``clip_high`` of 0.28 is DAPO's. TRL's ``epsilon_high`` is ``1 + clip_high``.
    """
    weight = (logp - behavior_logp).exp().clamp(1 - clip_low, 1 + clip_high).detach()
    return -weight * advantage * logp


def _pessimistic(rho: Tensor, advantage: Tensor, clip_low: float, clip_high: float) -> Tensor:
    """Larger of the loss with the ratio and the loss with the clipped ratio."""
    return -torch.minimum(rho * advantage, rho.clamp(1 - clip_low, 1 + clip_high) * advantage)
