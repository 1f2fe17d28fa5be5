"""Preference losses of the full next-token distribution, not only of the probability of the token.

``margin = (chosen_logp − reference_chosen_logp) − (rejected_logp − reference_rejected_logp)`` and ``D(z) = −log σ(z)``.
All fields are summed over the tokens of each response, in nats.
"""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from grape_rl.maths.bounds import NonNegative, Positive
from grape_rl.maths.preference.margin import dpo, log_ratio_margin


def tdpo1(
    chosen_logp: Float[Tensor, " p"],
    rejected_logp: Float[Tensor, " p"],
    reference_chosen_logp: Float[Tensor, " p"],
    reference_rejected_logp: Float[Tensor, " p"],
    chosen_kl: Float[Tensor, " p"],
    rejected_kl: Float[Tensor, " p"],
    beta: Positive = 0.1,
) -> Float[Tensor, " p"]:
    """Token-level DPO loss: ``D(beta (margin − (rejected_kl − chosen_kl)))``.

    TDPO (arXiv 2404.11999), its first loss, from the authors' code; not checked against the paper. The KL of a response
    is Σ_t KL(π_ref‖π), each over the whole vocabulary. Gradients flow through both KLs.
    """
    margin = log_ratio_margin(chosen_logp, rejected_logp, reference_chosen_logp, reference_rejected_logp)
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
    """Token-level DPO loss, second form: ``D(beta (margin − kl_weight (rejected_kl − sg(chosen_kl))))``.

    TDPO (arXiv 2404.11999), its second loss, from the authors' code; not checked against the paper. The KL of the
    chosen response is a constant (sg, stop-gradient), so the gradient lowers the KL of the rejected response toward
    it. If both were constants, the KL would enter the gradient only through the slope of the logistic function.
    """
    margin = log_ratio_margin(chosen_logp, rejected_logp, reference_chosen_logp, reference_rejected_logp)
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
    """Weighted preference loss: ``min(w(chosen) w(rejected), weight_limit) D(beta margin)``.

    ``w = exp((logp − collision) / length)``, a constant; see ``policy_weight``. WPO (arXiv 2406.11827), eq. 2, with the
    product limited as in TRL. The weight makes off-policy pairs resemble on-policy ones: a pair that is unlikely under
    the policy counts for less.
    """
    weight = policy_weight(chosen_logp, chosen_collision, chosen_length)
    weight = weight * policy_weight(rejected_logp, rejected_collision, rejected_length)
    return weight.clamp(max=weight_limit) * dpo(
        chosen_logp, rejected_logp, reference_chosen_logp, reference_rejected_logp, beta
    )


def policy_weight(
    logp: Float[Tensor, " b"], collision: Float[Tensor, " b"], length: Float[Tensor, " b"]
) -> Float[Tensor, " b"]:
    """WPO weight of a response: ``exp((logp − collision) / length)``, without a gradient.

    ``collision`` is Σ_t log Σ_v π(v)²: the log-probability that two samples of each token are equal. A response whose
    tokens have the expected probability of a sample has the weight 1 for any entropy; under a uniform policy every
    response has the weight 1. The weight can multiply any preference loss.
    """
    return ((logp - collision) / length).detach().exp()
