"""Preference losses for pairs with rewards: they use the difference of the rewards, not only its sign.

``margin = (chosen_logp − reference_chosen_logp) − (rejected_logp − reference_rejected_logp)`` and
``gap = chosen_reward − rejected_reward``. Log-probs are summed over the tokens of each response, in nats.
"""

from typing import Literal

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from grape_rl.maths.bounds import NonNegative, Positive
from grape_rl.maths.preference.margin import log_ratio_margin


def odpo(
    chosen_logp: Float[Tensor, " p"],
    rejected_logp: Float[Tensor, " p"],
    reference_chosen_logp: Float[Tensor, " p"],
    reference_rejected_logp: Float[Tensor, " p"],
    chosen_reward: Float[Tensor, " p"],
    rejected_reward: Float[Tensor, " p"],
    beta: Positive = 0.1,
    offset_weight: NonNegative = 1.0,
) -> Float[Tensor, " p"]:
    """DPO loss with an offset: ``−log σ(beta margin − offset_weight log gap)``.

    ODPO (arXiv 2402.10571), with the logarithmic offset. A larger gap requires a larger margin.

    Raises:
        ValueError: a pair with a missing reward, or whose chosen reward is not above the rejected one.
    """
    gap = _finite(chosen_reward - rejected_reward)
    if (low := (gap <= 0).nonzero().flatten()).numel():
        pair = int(low[0])
        raise ValueError(
            f"pair {pair}: chosen_reward {float(chosen_reward[pair]):g} must be above rejected_reward "
            f"{float(rejected_reward[pair]):g}: the offset is the logarithm of their difference"
        )
    margin = log_ratio_margin(chosen_logp, rejected_logp, reference_chosen_logp, reference_rejected_logp)
    return -logsigmoid(beta * margin - offset_weight * gap.log())


def rpo(
    chosen_logp: Float[Tensor, " p"],
    rejected_logp: Float[Tensor, " p"],
    reference_chosen_logp: Float[Tensor, " p"],
    reference_rejected_logp: Float[Tensor, " p"],
    chosen_reward: Float[Tensor, " p"],
    rejected_reward: Float[Tensor, " p"],
    beta: Positive = 0.2,
    reward_scale: NonNegative = 1.0,
    distance: Literal["backward", "forward", "squared"] = "backward",
) -> Float[Tensor, " p"]:
    """Reward-aware preference loss: a distance between ``a = beta margin`` and ``b = reward_scale gap``.

    RPO (arXiv 2502.00203), as in the authors' code. ``distance`` is backward, the Bernoulli KL(σ(b)‖σ(a));
    forward, KL(σ(a)‖σ(b)); or squared, ``(a − b)²``. The backward KL has the gradient of cDPO with
    label_smoothing = 1 − σ(b), and approaches DPO as the gap grows.

    Raises:
        ValueError: a pair with a missing reward.
    """
    a = beta * log_ratio_margin(chosen_logp, rejected_logp, reference_chosen_logp, reference_rejected_logp)
    b = reward_scale * _finite(chosen_reward - rejected_reward)
    match distance:
        case "backward":
            return _bernoulli_kl(b, a)
        case "forward":
            return _bernoulli_kl(a, b)
        case "squared":
            return (a - b).square()


def _bernoulli_kl(a: Tensor, b: Tensor) -> Tensor:
    """KL divergence between two Bernoulli distributions with the log-odds ``a`` and ``b``."""
    return a.sigmoid() * (logsigmoid(a) - logsigmoid(b)) + (-a).sigmoid() * (logsigmoid(-a) - logsigmoid(-b))


def _finite(gap: Tensor) -> Tensor:
    if (missing := (~gap.isfinite()).nonzero().flatten()).numel():
        raise ValueError(f"pair {int(missing[0])} lacks chosen_reward or rejected_reward; both are required")
    return gap
