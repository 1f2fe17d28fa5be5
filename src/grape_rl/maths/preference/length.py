"""Preference losses that account for length: means over tokens, a length penalty, or a lower weight of the longer tail.

``margin = (chosen_logp − reference_chosen_logp) − (rejected_logp − reference_rejected_logp)`` and ``D(z) = −log σ(z)``.
Log-probs are summed over the tokens of each response, in nats. Lengths count those tokens.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from grape_rl.maths.bounds import NonNegative, Positive, UnitInterval
from grape_rl.maths.preference.margin import dpo, log_ratio_margin


def ipo(
    chosen_logp: Float[Tensor, " p"],
    rejected_logp: Float[Tensor, " p"],
    reference_chosen_logp: Float[Tensor, " p"],
    reference_rejected_logp: Float[Tensor, " p"],
    chosen_length: Float[Tensor, " p"],
    rejected_length: Float[Tensor, " p"],
    beta: Positive = 0.1,
) -> Float[Tensor, " p"]:
    """IPO loss: ``(chosen − rejected − 1/(2 beta))²``, each term ``(logp − reference_logp) / length``.

    IPO (arXiv 2310.12036), eq. 17. The paper uses the log-probs of whole responses, which lengths of 1 give. The mean
    over tokens is the authors' later advice, and what TRL does.
    """
    chosen = (chosen_logp - reference_chosen_logp) / chosen_length
    rejected = (rejected_logp - reference_rejected_logp) / rejected_length
    return (chosen - rejected - 1 / (2 * beta)).square()


def sigmoid_norm(
    chosen_logp: Float[Tensor, " p"],
    rejected_logp: Float[Tensor, " p"],
    reference_chosen_logp: Float[Tensor, " p"],
    reference_rejected_logp: Float[Tensor, " p"],
    chosen_length: Float[Tensor, " p"],
    rejected_length: Float[Tensor, " p"],
    beta: Positive = 2.0,
) -> Float[Tensor, " p"]:
    """Length-normalized DPO loss: ``D(beta (chosen − rejected))``, each term ``(logp − reference_logp) / length``.

    Tülu 3 (arXiv 2411.15124). The default ``beta`` is larger than DPO's because means over tokens are smaller than
    sums.
    """
    chosen = (chosen_logp - reference_chosen_logp) / chosen_length
    rejected = (rejected_logp - reference_rejected_logp) / rejected_length
    return -logsigmoid(beta * (chosen - rejected))


def r_dpo(
    chosen_logp: Float[Tensor, " p"],
    rejected_logp: Float[Tensor, " p"],
    reference_chosen_logp: Float[Tensor, " p"],
    reference_rejected_logp: Float[Tensor, " p"],
    chosen_length: Float[Tensor, " p"],
    rejected_length: Float[Tensor, " p"],
    beta: Positive = 0.1,
    length_weight: NonNegative = 0.05,
) -> Float[Tensor, " p"]:
    """Length-regularized DPO loss: ``D(beta margin + length_weight (chosen_length − rejected_length))``.

    A reading of R-DPO (arXiv 2403.19159), not checked against the paper. If the chosen response is longer, its length
    explains part of the preference, and the gradient is smaller.
    """
    margin = log_ratio_margin(chosen_logp, rejected_logp, reference_chosen_logp, reference_rejected_logp)
    return -logsigmoid(beta * margin + length_weight * (chosen_length - rejected_length))


def ld_dpo(
    chosen_logp: Float[Tensor, " p"],
    rejected_logp: Float[Tensor, " p"],
    reference_chosen_logp: Float[Tensor, " p"],
    reference_rejected_logp: Float[Tensor, " p"],
    chosen_head_logp: Float[Tensor, " p"],
    rejected_head_logp: Float[Tensor, " p"],
    reference_chosen_head_logp: Float[Tensor, " p"],
    reference_rejected_head_logp: Float[Tensor, " p"],
    beta: Positive = 0.1,
    tail_weight: UnitInterval = 0.5,
) -> Float[Tensor, " p"]:
    """Length-desensitized DPO loss: DPO with ``head + tail_weight (logp − head)`` in place of each ``logp``.

    LD-DPO (arXiv 2409.06411). ``head`` is the log-prob of the first n tokens, n the length of the shorter response of
    the pair: only the longer response has a tail. ``tail_weight`` is the weight of the tail: 1 is DPO, and 0 ignores
    the tail. ``beta`` is DPO's.
    """
    chosen = torch.lerp(chosen_head_logp, chosen_logp, tail_weight)
    rejected = torch.lerp(rejected_head_logp, rejected_logp, tail_weight)
    reference_chosen = torch.lerp(reference_chosen_head_logp, reference_chosen_logp, tail_weight)
    reference_rejected = torch.lerp(reference_rejected_head_logp, reference_rejected_logp, tail_weight)
    return dpo(chosen, rejected, reference_chosen, reference_rejected, beta)
