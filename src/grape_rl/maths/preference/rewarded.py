"""Preference losses that know not only which response is better but by how much: each has a reward.

In all of them, per pair: ``margin = (chosen_logp − reference_chosen_logp) − (rejected_logp − reference_rejected_logp)``
and ``gap = chosen_reward − rejected_reward``. Log-probs are summed over each response's own tokens, in nats.
"""

from typing import Literal

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from grape_rl.maths.bounds import NonNegative, Positive


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
    """DPO with an offset: ``−log σ(beta margin − offset_weight log gap)``.

    ODPO (arXiv 2402.10571), with its logarithm. The larger the gap, the larger the margin has to be.

    Raises:
        ValueError: a pair whose chosen reward is missing, or not above the rejected one.
    """
    gap = _finite(chosen_reward - rejected_reward)
    if (low := (gap <= 0).nonzero().flatten()).numel():
        at = int(low[0])
        raise ValueError(
            f"pair {at}: chosen_reward {float(chosen_reward[at]):g} must be above rejected_reward "
            f"{float(rejected_reward[at]):g}: the offset is the logarithm of what lies between"
        )
    margin = (chosen_logp - reference_chosen_logp) - (rejected_logp - reference_rejected_logp)
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
    """Reward-aware preference optimization: a distance of ``a = beta margin`` to ``b = reward_scale gap``.

    RPO (arXiv 2502.00203), as its authors' code has it. ``distance`` backward is KL(σ(b)‖σ(a)) of the two coins,
    forward KL(σ(a)‖σ(b)), squared ``(a − b)²``. The first has the gradient of cDPO with
    label_smoothing = 1 − σ(b), and tends to DPO as the gap grows.

    Raises:
        ValueError: a pair with a missing reward.
    """
    a = beta * ((chosen_logp - reference_chosen_logp) - (rejected_logp - reference_rejected_logp))
    b = reward_scale * _finite(chosen_reward - rejected_reward)
    match distance:
        case "backward":
            return _coin_kl(b, a)
        case "forward":
            return _coin_kl(a, b)
        case "squared":
            return (a - b).square()


def _coin_kl(a: Tensor, b: Tensor) -> Tensor:
    """KL between two coins of log-odds ``a`` and ``b``."""
    return a.sigmoid() * (logsigmoid(a) - logsigmoid(b)) + (-a).sigmoid() * (logsigmoid(-a) - logsigmoid(-b))


def _finite(gap: Tensor) -> Tensor:
    if (missing := (~gap.isfinite()).nonzero().flatten()).numel():
        raise ValueError(f"pair {int(missing[0])} has no chosen_reward or no rejected_reward, and both are needed")
    return gap
