"""Preference losses that look at the whole choice that each token came from, and not at the token's chance alone.

In all of them, per pair: ``margin = (chosen_logp − reference_chosen_logp) − (rejected_logp − reference_rejected_logp)``
and ``D(z) = −log σ(z)``. What they read is summed over each response's own tokens, in nats.
"""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from grape_rl.maths.bounds import NonNegative, Positive
from grape_rl.maths.preference.margin import dpo


def tdpo1(
    chosen_logp: Float[Tensor, " p"],
    rejected_logp: Float[Tensor, " p"],
    reference_chosen_logp: Float[Tensor, " p"],
    reference_rejected_logp: Float[Tensor, " p"],
    chosen_kl: Float[Tensor, " p"],
    rejected_kl: Float[Tensor, " p"],
    beta: Positive = 0.1,
) -> Float[Tensor, " p"]:
    """Token-level DPO: ``D(beta (margin − (rejected_kl − chosen_kl)))``.

    TDPO (arXiv 2404.11999), its first loss, as quoted from its authors' code; not checked against the paper. ``kl`` is
    Σ_t KL(reference‖π) over the whole vocabulary at each of a response's tokens, and the gradient flows through both.
    """
    margin = (chosen_logp - reference_chosen_logp) - (rejected_logp - reference_rejected_logp)
    return -logsigmoid(beta * (margin - (rejected_kl - chosen_kl)))


def tdpo2(
    chosen_logp: Float[Tensor, " p"],
    rejected_logp: Float[Tensor, " p"],
    reference_chosen_logp: Float[Tensor, " p"],
    reference_rejected_logp: Float[Tensor, " p"],
    chosen_kl: Float[Tensor, " p"],
    rejected_kl: Float[Tensor, " p"],
    beta: Positive = 0.1,
    kl_weight: NonNegative = 0.5,
) -> Float[Tensor, " p"]:
    """Token-level DPO that holds the rejected side: ``D(beta (margin − kl_weight (rejected_kl − sg(chosen_kl))))``.

    TDPO (arXiv 2404.11999), its second loss, as quoted from its authors' code; not checked against the paper. The
    chosen response's KL is a constant here (sg, stop-gradient), so that only the rejected one's is drawn down to it;
    with both constant the KL would be no part of the gradient but by the logistic's slope.
    """
    margin = (chosen_logp - reference_chosen_logp) - (rejected_logp - reference_rejected_logp)
    return -logsigmoid(beta * (margin - kl_weight * (rejected_kl - chosen_kl.detach())))


def wpo(
    chosen_logp: Float[Tensor, " p"],
    rejected_logp: Float[Tensor, " p"],
    reference_chosen_logp: Float[Tensor, " p"],
    reference_rejected_logp: Float[Tensor, " p"],
    chosen_collision: Float[Tensor, " p"],
    rejected_collision: Float[Tensor, " p"],
    chosen_length: Float[Tensor, " p"],
    rejected_length: Float[Tensor, " p"],
    beta: Positive = 0.1,
    weight_limit: Positive = 1.0,
) -> Float[Tensor, " p"]:
    """DPO's loss by how much a pair is the policy's own: ``min(w(chosen) w(rejected), weight_limit) D(beta margin)``.

    ``w = exp((logp − collision) / length)``, a constant; see ``policy_weight``. WPO (arXiv 2406.11827), eq. 2, the
    product limited as in TRL. A pair that the policy would not write itself counts for less, as if all were drawn from
    it.
    """
    weight = policy_weight(chosen_logp, chosen_collision, chosen_length)
    weight = weight * policy_weight(rejected_logp, rejected_collision, rejected_length)
    return weight.clamp(max=weight_limit) * dpo(
        chosen_logp, rejected_logp, reference_chosen_logp, reference_rejected_logp, beta
    )


def policy_weight(
    logp: Float[Tensor, " b"], collision: Float[Tensor, " b"], length: Float[Tensor, " b"]
) -> Float[Tensor, " b"]:
    """WPO's weight of a response: ``exp((logp − collision) / length)``, without a gradient.

    ``collision`` is Σ_t log Σ_v π(v)²: the log of the chance that two draws from each choice are the same. So a
    response whose tokens are as likely as a draw's own are on average has the weight 1, whatever the entropy; a
    uniform policy gives every response 1. It may multiply any loss of the family.
    """
    return ((logp - collision) / length).detach().exp()
