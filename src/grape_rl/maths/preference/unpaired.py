"""Unpaired preference losses: one loss per response, labeled desirable or undesirable, to be minimized.

``gain = response_logp − reference_response_logp`` is the log-ratio, summed over the tokens of the response, in nats:
the implied reward divided by ``beta``. ``D(z) = −log σ(z)``.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from grape_rl.maths.bounds import NonNegative, Positive


def kto(
    response_logp: Float[Tensor, " b"],
    reference_response_logp: Float[Tensor, " b"],
    mismatched_gain: Float[Tensor, ""],
    desirable: Bool[Tensor, " b"],
    beta: Positive = 0.1,
    desirable_weight: NonNegative = 1.0,
    undesirable_weight: NonNegative = 1.0,
) -> Float[Tensor, " b"]:
    """KTO loss: ``1 − σ(beta (gain − z))`` if desirable, ``1 − σ(beta (z − gain))`` if undesirable.

    KTO (arXiv 2402.01306), eqs. 7 and 8. The loss of a response is multiplied by the weight of its label,
    ``desirable_weight`` or ``undesirable_weight``. ``z = max(0, mismatched_gain)`` estimates KL(π‖π_ref):
    ``mismatched_gain`` is the mean gain, over the whole batch, of responses paired with prompts of other rows. No
    gradient flows through z. As in prospect theory, gains and losses are relative to a reference point, z, and
    sensitivity to them diminishes: the loss is flat far from z.

    Shapes: ``" b"``, and a scalar ``mismatched_gain``. Nats.

    >>> zero = torch.zeros(2)
    >>> kto(zero, zero, torch.tensor(-3.0), torch.tensor([True, False]), undesirable_weight=2.0)
    tensor([0.5000, 1.0000])
    """
    z = mismatched_gain.detach().clamp(min=0)
    above = beta * (response_logp - reference_response_logp - z)
    return _labeled((-above).sigmoid(), above.sigmoid(), desirable, desirable_weight, undesirable_weight)


def bco_unpaired(
    response_logp: Float[Tensor, " b"],
    reference_response_logp: Float[Tensor, " b"],
    mean_gain: Float[Tensor, ""],
    desirable: Bool[Tensor, " b"],
    beta: Positive = 0.1,
    desirable_weight: NonNegative = 1.0,
    undesirable_weight: NonNegative = 1.0,
) -> Float[Tensor, " b"]:
    """BCO loss: ``D(beta (gain − mean_gain))`` if desirable, ``D(beta (mean_gain − gain))`` if undesirable.

    BCO (arXiv 2404.04656): a binary classifier whose logit is the implied reward minus its running mean. The paper's
    reward shift δ is ``beta mean_gain``; no gradient flows through it. The loss of a response is multiplied by the
    weight of its label, ``desirable_weight`` or ``undesirable_weight``. The paper's weights for undesirable responses
    from another distribution of prompts are left out.
    """
    above = beta * (response_logp - reference_response_logp - mean_gain.detach())
    return _labeled(-logsigmoid(above), -logsigmoid(-above), desirable, desirable_weight, undesirable_weight)


def apo_zero_unpaired(
    response_logp: Float[Tensor, " b"],
    reference_response_logp: Float[Tensor, " b"],
    desirable: Bool[Tensor, " b"],
    beta: Positive = 0.1,
    desirable_weight: NonNegative = 1.0,
    undesirable_weight: NonNegative = 1.0,
) -> Float[Tensor, " b"]:
    """Unpaired APO-zero loss: ``1 − σ(beta gain)`` if desirable, ``σ(beta gain)`` if undesirable.

    APO (arXiv 2408.06266). It equals the KTO loss with z = 0, including ``desirable_weight`` and
    ``undesirable_weight``.
    """
    gain = beta * (response_logp - reference_response_logp)
    return _labeled((-gain).sigmoid(), gain.sigmoid(), desirable, desirable_weight, undesirable_weight)


def _labeled(good: Tensor, bad: Tensor, desirable: Tensor, good_weight: float, bad_weight: float) -> Tensor:
    return torch.where(desirable, good_weight * good, bad_weight * bad)
