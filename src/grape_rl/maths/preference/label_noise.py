"""Preference losses for noisy labels: a share e of the pairs has chosen and rejected exchanged.

``margin = (chosen_logp − reference_chosen_logp) − (rejected_logp − reference_rejected_logp)`` and ``D(z) = −log σ(z)``.
Log-probs are summed over the tokens of each response, in nats.
"""

import math
from typing import Annotated

from annotated_types import Interval
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from grape_rl.maths.bounds import Positive
from grape_rl.maths.preference.margin import log_ratio_margin


def cdpo(
    chosen_logp: Float[Tensor, " p"],
    rejected_logp: Float[Tensor, " p"],
    reference_chosen_logp: Float[Tensor, " p"],
    reference_rejected_logp: Float[Tensor, " p"],
    beta: Positive = 0.1,
    label_smoothing: Annotated[float, Interval(ge=0, le=0.5)] = 0.1,
) -> Float[Tensor, " p"]:
    """Conservative DPO loss: ``(1−e) D(beta margin) + e D(−beta margin)`` with ``e = label_smoothing``.

    Mitchell (2023), "A note on DPO with noisy preferences". The negative log-likelihood of labels if a share e of them
    is flipped. The optimal margin is log((1−e)/e)/beta, so the margin is bounded. With e = ½ both labels have equal
    weight.
    """
    z = beta * log_ratio_margin(chosen_logp, rejected_logp, reference_chosen_logp, reference_rejected_logp)
    return -(1 - label_smoothing) * logsigmoid(z) - label_smoothing * logsigmoid(-z)


def robust_dpo(
    chosen_logp: Float[Tensor, " p"],
    rejected_logp: Float[Tensor, " p"],
    reference_chosen_logp: Float[Tensor, " p"],
    reference_rejected_logp: Float[Tensor, " p"],
    beta: Positive = 0.1,
    label_smoothing: Annotated[float, Interval(ge=0, lt=0.5)] = 0.1,
) -> Float[Tensor, " p"]:
    """Robust DPO loss: ``((1−e) D(beta margin) − e D(−beta margin)) / (1 − 2e)`` with ``e = label_smoothing``.

    rDPO (arXiv 2403.00409). If a share e of the labels is flipped, its mean is the DPO loss on the true labels.

    Raises:
        ValueError: ``label_smoothing`` is not in [0, ½).
    """
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing is {label_smoothing}; robust_dpo needs a share of wrong labels in [0, 0.5)")
    z = beta * log_ratio_margin(chosen_logp, rejected_logp, reference_chosen_logp, reference_rejected_logp)
    return (label_smoothing * logsigmoid(-z) - (1 - label_smoothing) * logsigmoid(z)) / (1 - 2 * label_smoothing)


def exo(
    chosen_logp: Float[Tensor, " p"],
    rejected_logp: Float[Tensor, " p"],
    reference_chosen_logp: Float[Tensor, " p"],
    reference_rejected_logp: Float[Tensor, " p"],
    beta: Positive = 0.1,
    label_smoothing: Annotated[float, Interval(gt=0, lt=0.5)] = 1e-3,
) -> Float[Tensor, " p"]:
    """EXO loss: ``q log(q/(1−e)) + (1−q) log((1−q)/e)`` with ``q = σ(beta margin)`` and ``e = label_smoothing``.

    EXO (arXiv 2402.00856). It is KL(q‖label) for a label smoothed by e; DPO minimizes KL(label‖q).

    Raises:
        ValueError: ``label_smoothing`` is not in (0, ½): with a hard label the KL is infinite.
    """
    if not 0 < label_smoothing < 0.5:
        raise ValueError(
            f"label_smoothing is {label_smoothing}; exo needs a smoothed label, with label_smoothing in (0, 0.5)"
        )
    z = beta * log_ratio_margin(chosen_logp, rejected_logp, reference_chosen_logp, reference_rejected_logp)
    right, wrong = math.log(1 - label_smoothing), math.log(label_smoothing)
    return z.sigmoid() * (logsigmoid(z) - right) + (-z).sigmoid() * (logsigmoid(-z) - wrong)
