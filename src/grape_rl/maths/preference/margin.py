"""Preference losses of the margin: the log-ratio of the chosen response minus the log-ratio of the rejected one.

``margin = (chosen_logp − reference_chosen_logp) − (rejected_logp − reference_rejected_logp)`` and ``D(z) = −log σ(z)``.
Log-probs are summed over the tokens of each response, in nats.
"""

from typing import Literal

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from grape_rl.maths.bounds import NonNegative, Positive


def dpo(
    chosen_logp: Float[Tensor, " p"],
    rejected_logp: Float[Tensor, " p"],
    reference_chosen_logp: Float[Tensor, " p"],
    reference_rejected_logp: Float[Tensor, " p"],
    beta: Positive = 0.1,
) -> Float[Tensor, " p"]:
    """DPO loss per pair: ``−log σ(beta margin)``.

    ``margin = (chosen_logp − reference_chosen_logp) − (rejected_logp − reference_rejected_logp)``. DPO (arXiv
    2305.18290), eq. 7. The loss is the Bradley–Terry negative log-likelihood of the policy's implied reward: at the
    optimum of E[R] − beta KL(π‖π_ref), R = beta log(π/π_ref) plus a constant of the prompt. ``beta`` is the coefficient
    of that KL: the smaller, the further the policy moves from the reference.

    Log-probs are summed over the tokens of each response, in nats. At the reference the loss is log 2.

    >>> import torch
    >>> dpo(torch.tensor([-1.0]), torch.tensor([-2.0]), torch.tensor([-1.0]), torch.tensor([-2.0]))
    tensor([0.6931])
    """
    margin = (chosen_logp - reference_chosen_logp) - (rejected_logp - reference_rejected_logp)
    return -logsigmoid(beta * margin)


def log_ratio_margin(
    chosen_logp: Float[Tensor, " p"],
    rejected_logp: Float[Tensor, " p"],
    reference_chosen_logp: Float[Tensor, " p"],
    reference_rejected_logp: Float[Tensor, " p"],
) -> Float[Tensor, " p"]:
    """Margin of each pair: log-ratio of the chosen response minus log-ratio of the rejected response."""
    return (chosen_logp - reference_chosen_logp) - (rejected_logp - reference_rejected_logp)


def hinge(
    chosen_logp: Float[Tensor, " p"],
    rejected_logp: Float[Tensor, " p"],
    reference_chosen_logp: Float[Tensor, " p"],
    reference_rejected_logp: Float[Tensor, " p"],
    beta: Positive = 0.1,
) -> Float[Tensor, " p"]:
    """Hinge loss: ``max(0, 1 − beta margin)``.

    RSO (arXiv 2309.06657), "hinge-norm". RSO also samples its pairs from a policy near the optimum, by rejection
    sampling. This is its loss alone, on the given pairs.
    """
    margin = log_ratio_margin(chosen_logp, rejected_logp, reference_chosen_logp, reference_rejected_logp)
    return (1 - beta * margin).relu()


def dpop(
    chosen_logp: Float[Tensor, " p"],
    rejected_logp: Float[Tensor, " p"],
    reference_chosen_logp: Float[Tensor, " p"],
    reference_rejected_logp: Float[Tensor, " p"],
    beta: Positive = 0.3,
    fall_weight: NonNegative = 50.0,
) -> Float[Tensor, " p"]:
    """DPO-positive loss: ``D(beta (margin − fall_weight max(0, reference_chosen_logp − chosen_logp)))``.

    A reading of Smaug (arXiv 2402.13228), not checked against the paper. Public ports differ; here the penalty is
    inside D, as in the paper to our knowledge. ``fall_weight`` is the weight of the penalty on a chosen response that
    becomes less likely than under the reference.
    """
    margin = log_ratio_margin(chosen_logp, rejected_logp, reference_chosen_logp, reference_rejected_logp)
    return -logsigmoid(beta * (margin - fall_weight * (reference_chosen_logp - chosen_logp).relu()))


def discopop(
    chosen_logp: Float[Tensor, " p"],
    rejected_logp: Float[Tensor, " p"],
    reference_chosen_logp: Float[Tensor, " p"],
    reference_rejected_logp: Float[Tensor, " p"],
    beta: Positive = 0.1,
    modulation: Positive = 0.05,
) -> Float[Tensor, " p"]:
    """DiscoPOP loss: ``(1−m) D(z) + m exp(−z)`` with ``z = beta margin`` and ``m = σ(z / modulation)``.

    DiscoPOP (arXiv 2406.08414), discovered by a search over programs and implemented as published. It is not monotone:
    just above z = 0 the loss increases with the margin, so at the reference its gradient has the wrong sign.
    """
    z = beta * log_ratio_margin(chosen_logp, rejected_logp, reference_chosen_logp, reference_rejected_logp)
    m = (z / modulation).sigmoid()
    # For z far below 0, m is near 0 and exp(−z) may overflow. Their product as one exponential does not.
    return -(1 - m) * logsigmoid(z) + (logsigmoid(z / modulation) - z).exp()


def f_dpo(
    chosen_logp: Float[Tensor, " p"],
    rejected_logp: Float[Tensor, " p"],
    reference_chosen_logp: Float[Tensor, " p"],
    reference_rejected_logp: Float[Tensor, " p"],
    beta: Positive = 0.1,
    divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"] = "js",
    alpha: float = 0.5,
) -> Float[Tensor, " p"]:
    """DPO loss for another divergence: ``D(beta (f'(chosen) − f'(rejected)))``, each term ``logp − reference_logp``.

    f-DPO (arXiv 2309.16240). ``divergence`` selects f'(h), up to a constant: reverse_kl is ``h`` (DPO itself),
    forward_kl ``−exp(−h)``, js ``log σ(h)`` (the paper's log 2u/(1+u)), and alpha ``exp((alpha−1) h)/(alpha−1)``.
    ``alpha`` is the parameter of the divergence alpha, with the limits reverse_kl at 1 and forward_kl at 0; it is 1
    minus the paper's, to our knowledge.

    Raises:
        ValueError: ``alpha`` is 1: use reverse_kl, its limit.
    """
    if divergence == "alpha" and alpha == 1:
        raise ValueError("alpha is 1: the limit is the divergence reverse_kl; use that")

    def derivative(h: Tensor) -> Tensor:
        match divergence:
            case "reverse_kl":
                return h
            case "forward_kl":
                return -(-h).exp()
            case "js":
                return logsigmoid(h)
            case "alpha":
                return ((alpha - 1) * h).exp() / (alpha - 1)

    chosen, rejected = chosen_logp - reference_chosen_logp, rejected_logp - reference_rejected_logp
    return -logsigmoid(beta * (derivative(chosen) - derivative(rejected)))
