"""Preference losses on single responses, each labeled desirable or not: a loss per response, to be minimized.

``gain = response_logp − reference_response_logp``, summed over the response's own tokens, in nats: the reward that the
policy implies, but for ``beta``. ``D(z) = −log σ(z)``.
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
    """KTO's loss: ``1 − σ(beta (gain − z))`` of a desirable response, ``1 − σ(beta (z − gain))`` of another.

    KTO (arXiv 2402.01306), eqs. 7 and 8; each is multiplied by the weight of its label (``desirable_weight``,
    ``undesirable_weight``). ``z = max(0, mismatched_gain)``
    stands for KL(π‖reference): it is the mean gain of responses put behind prompts that are not their own, over the
    whole batch, and no gradient flows through it. A person who weighs gains and losses against what they are used to
    sees less and less in more of either: the loss is flat far from z.

    Shapes: ``" b"``, and one number for the mismatched gain. Nats.

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
    """BCO's loss: ``D(beta (gain − mean_gain))`` of a desirable response, ``D(beta (mean_gain − gain))`` of another.

    BCO (arXiv 2404.04656): a classifier of good and bad whose logit is the implied reward, less the mean of those seen
    up to now (the paper's reward shift δ is ``beta mean_gain``; no gradient flows through it). ``desirable_weight`` and
    ``undesirable_weight`` multiply by label. Without the paper's weights for undesirable responses that come from
    another distribution of prompts.
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
    """APO-zero's loss on single responses: ``1 − σ(beta gain)`` of a desirable one, ``σ(beta gain)`` of another.

    APO (arXiv 2408.06266). It is KTO's loss with z = 0, with the same ``desirable_weight`` and ``undesirable_weight``.
    """
    gain = beta * (response_logp - reference_response_logp)
    return _labeled((-gain).sigmoid(), gain.sigmoid(), desirable, desirable_weight, undesirable_weight)


def _labeled(good: Tensor, bad: Tensor, desirable: Tensor, good_weight: float, bad_weight: float) -> Tensor:
    return torch.where(desirable, good_weight * good, bad_weight * bad)
