"""Preference losses of how much more the chosen response has gained on the reference than the rejected one.

In all of them, per pair: ``margin = (chosen_logp − reference_chosen_logp) − (rejected_logp − reference_rejected_logp)``
and ``D(z) = −log σ(z)``. Log-probs are summed over each response's own tokens, in nats; lengths count those tokens.
"""

import math
from typing import Annotated, Literal

import torch
from annotated_types import Interval
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from grape_rl.maths.bounds import NonNegative, Positive, Share


def dpo(
    chosen_logp: Float[Tensor, " p"],
    rejected_logp: Float[Tensor, " p"],
    reference_chosen_logp: Float[Tensor, " p"],
    reference_rejected_logp: Float[Tensor, " p"],
    beta: Positive = 0.1,
) -> Float[Tensor, " p"]:
    """DPO's loss per pair: ``−log σ(beta (chosen − rejected))``, each being ``logp − reference_logp``.

    DPO (arXiv 2305.18290), eq. 7. It is the Bradley–Terry likelihood of the reward that the policy itself implies:
    the optimum of E[R] − beta KL(π‖reference) has R = beta log(π/reference) + a constant of the prompt.

    Log-probs are summed over each response's own tokens, in nats. At the reference the loss is log 2.

    >>> import torch
    >>> dpo(torch.tensor([-1.0]), torch.tensor([-2.0]), torch.tensor([-1.0]), torch.tensor([-2.0]))
    tensor([0.6931])
    """
    margin = (chosen_logp - reference_chosen_logp) - (rejected_logp - reference_rejected_logp)
    return -logsigmoid(beta * margin)


def cdpo(
    chosen_logp: Float[Tensor, " p"],
    rejected_logp: Float[Tensor, " p"],
    reference_chosen_logp: Float[Tensor, " p"],
    reference_rejected_logp: Float[Tensor, " p"],
    beta: Positive = 0.1,
    label_smoothing: Annotated[float, Interval(ge=0, le=0.5)] = 0.1,
) -> Float[Tensor, " p"]:
    """Conservative DPO: ``(1−e) D(beta margin) + e D(−beta margin)`` with ``e = label_smoothing``.

    Mitchell (2023), "A note on DPO with noisy preferences". The likelihood of labels of which a share e is the wrong
    way round; the margin stops growing at log((1−e)/e)/beta. With e = ½ both labels count alike.
    """
    z = beta * _margin(chosen_logp, rejected_logp, reference_chosen_logp, reference_rejected_logp)
    return -(1 - label_smoothing) * logsigmoid(z) - label_smoothing * logsigmoid(-z)


def robust_dpo(
    chosen_logp: Float[Tensor, " p"],
    rejected_logp: Float[Tensor, " p"],
    reference_chosen_logp: Float[Tensor, " p"],
    reference_rejected_logp: Float[Tensor, " p"],
    beta: Positive = 0.1,
    label_smoothing: Annotated[float, Interval(ge=0, lt=0.5)] = 0.1,
) -> Float[Tensor, " p"]:
    """Robust DPO: ``((1−e) D(beta margin) − e D(−beta margin)) / (1 − 2e)`` with ``e = label_smoothing``.

    rDPO (arXiv 2403.00409). Over labels of which a share e is the wrong way round, its mean is DPO's loss on the right
    ones.

    Raises:
        ValueError: ``label_smoothing`` is not in [0, ½).
    """
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing is {label_smoothing}; robust_dpo needs a share of wrong labels in [0, 0.5)")
    z = beta * _margin(chosen_logp, rejected_logp, reference_chosen_logp, reference_rejected_logp)
    return (label_smoothing * logsigmoid(-z) - (1 - label_smoothing) * logsigmoid(z)) / (1 - 2 * label_smoothing)


def ipo(
    chosen_logp: Float[Tensor, " p"],
    rejected_logp: Float[Tensor, " p"],
    reference_chosen_logp: Float[Tensor, " p"],
    reference_rejected_logp: Float[Tensor, " p"],
    chosen_length: Float[Tensor, " p"],
    rejected_length: Float[Tensor, " p"],
    beta: Positive = 0.1,
) -> Float[Tensor, " p"]:
    """IPO's loss: ``(chosen − rejected − 1/(2 beta))²``, each being ``(logp − reference_logp) / length``.

    IPO (arXiv 2310.12036), eq. 17. The paper's log-probs are those of whole responses; the mean over tokens is its
    authors' later advice, and what TRL does. Lengths of 1 give the paper's.
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
    """DPO on means over tokens: ``D(beta (chosen − rejected))``, each being ``(logp − reference_logp) / length``.

    Tülu 3 (arXiv 2411.15124), "length-normalized DPO". ``beta`` is larger than DPO's since means are smaller.
    """
    chosen = (chosen_logp - reference_chosen_logp) / chosen_length
    rejected = (rejected_logp - reference_rejected_logp) / rejected_length
    return -logsigmoid(beta * (chosen - rejected))


def hinge(
    chosen_logp: Float[Tensor, " p"],
    rejected_logp: Float[Tensor, " p"],
    reference_chosen_logp: Float[Tensor, " p"],
    reference_rejected_logp: Float[Tensor, " p"],
    beta: Positive = 0.1,
) -> Float[Tensor, " p"]:
    """The hinge loss: ``max(0, 1 − beta margin)``.

    RSO (arXiv 2309.06657), "hinge-norm". RSO's pairs are drawn from a policy near the optimum by rejection sampling;
    this is its loss, on whatever pairs are given.
    """
    return (1 - beta * _margin(chosen_logp, rejected_logp, reference_chosen_logp, reference_rejected_logp)).relu()


def exo(
    chosen_logp: Float[Tensor, " p"],
    rejected_logp: Float[Tensor, " p"],
    reference_chosen_logp: Float[Tensor, " p"],
    reference_rejected_logp: Float[Tensor, " p"],
    beta: Positive = 0.1,
    label_smoothing: Annotated[float, Interval(gt=0, lt=0.5)] = 1e-3,
) -> Float[Tensor, " p"]:
    """EXO's loss: ``q log(q/(1−e)) + (1−q) log((1−q)/e)`` with ``q = σ(beta margin)`` and ``e = label_smoothing``.

    EXO (arXiv 2402.00856). The KL from q to the label, which e softens; DPO minimizes the KL the other way round.

    Raises:
        ValueError: ``label_smoothing`` is not in (0, ½): a hard label would make the KL infinite.
    """
    if not 0 < label_smoothing < 0.5:
        raise ValueError(
            f"label_smoothing is {label_smoothing}; exo needs a softened label, with label_smoothing in (0, 0.5)"
        )
    z = beta * _margin(chosen_logp, rejected_logp, reference_chosen_logp, reference_rejected_logp)
    right, wrong = math.log(1 - label_smoothing), math.log(label_smoothing)
    return z.sigmoid() * (logsigmoid(z) - right) + (-z).sigmoid() * (logsigmoid(-z) - wrong)


def dpop(
    chosen_logp: Float[Tensor, " p"],
    rejected_logp: Float[Tensor, " p"],
    reference_chosen_logp: Float[Tensor, " p"],
    reference_rejected_logp: Float[Tensor, " p"],
    beta: Positive = 0.3,
    fall_weight: NonNegative = 50.0,
) -> Float[Tensor, " p"]:
    """DPO-positive: ``D(beta (margin − fall_weight max(0, reference_chosen_logp − chosen_logp)))``.

    A reading of Smaug (arXiv 2402.13228), not checked against the paper: public ports differ, and this has the penalty
    within D, as the paper has it to our knowledge. The chosen response may not get less likely than it was.
    """
    margin = _margin(chosen_logp, rejected_logp, reference_chosen_logp, reference_rejected_logp)
    return -logsigmoid(beta * (margin - fall_weight * (reference_chosen_logp - chosen_logp).relu()))


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
    """Length-regularized DPO: ``D(beta margin + length_weight (chosen_length − rejected_length))``.

    A reading of R-DPO (arXiv 2403.19159), not checked against the paper. Where the chosen response is the longer one,
    its length explains part of the preference, and the policy has less to learn: a smaller gradient.
    """
    margin = _margin(chosen_logp, rejected_logp, reference_chosen_logp, reference_rejected_logp)
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
    tail_weight: Share = 0.5,
) -> Float[Tensor, " p"]:
    """Length-desensitised DPO: DPO with ``head + tail_weight (logp − head)`` in place of each ``logp``.

    LD-DPO (arXiv 2409.06411). ``head`` is the sum over the first tokens, as many as the shorter response of the
    pair has, so that only the longer one has a tail. ``tail_weight`` 1 is DPO; 0 does not see what is beyond.
    ``beta`` is DPO's.
    """
    chosen = torch.lerp(chosen_head_logp, chosen_logp, tail_weight)
    rejected = torch.lerp(rejected_head_logp, rejected_logp, tail_weight)
    reference_chosen = torch.lerp(reference_chosen_head_logp, reference_chosen_logp, tail_weight)
    reference_rejected = torch.lerp(reference_rejected_head_logp, reference_rejected_logp, tail_weight)
    return dpo(chosen, rejected, reference_chosen, reference_rejected, beta)


def discopop(
    chosen_logp: Float[Tensor, " p"],
    rejected_logp: Float[Tensor, " p"],
    reference_chosen_logp: Float[Tensor, " p"],
    reference_rejected_logp: Float[Tensor, " p"],
    beta: Positive = 0.1,
    modulation: Positive = 0.05,
) -> Float[Tensor, " p"]:
    """DiscoPOP's loss: ``(1−m) D(z) + m exp(−z)`` with ``z = beta margin`` and ``m = σ(z / modulation)``.

    DiscoPOP (arXiv 2406.08414), found by a search over programs. It is not monotone: from z = 0 a larger margin
    has the larger loss for a while, so at the reference it pulls the wrong way. Stated as it was found.
    """
    z = beta * _margin(chosen_logp, rejected_logp, reference_chosen_logp, reference_rejected_logp)
    m = (z / modulation).sigmoid()
    # Where z is far below 0, m is nearly 0 and exp(−z) may overflow: their product taken as one exponential does not.
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
    """DPO under another divergence: ``D(beta (f'(chosen) − f'(rejected)))``, each being ``logp − reference_logp``.

    f-DPO (arXiv 2309.16240). Of h = logp − reference_logp, f' for each ``divergence`` is, up to a constant: reverse_kl
    ``h`` (DPO itself); forward_kl ``−exp(−h)``; js ``log σ(h)`` (the paper's log 2u/(1+u)); alpha
    ``exp((alpha−1) h)/(alpha−1)``, whose limits are reverse_kl at 1 and forward_kl at 0: our ``alpha`` is 1 less the
    paper's, to our knowledge.

    Raises:
        ValueError: ``alpha`` is 1: take reverse_kl, its limit.
    """
    if divergence == "alpha" and alpha == 1:
        raise ValueError("alpha is 1: its limit there is the divergence reverse_kl; name that")

    def slope(h: Tensor) -> Tensor:
        match divergence:
            case "reverse_kl":
                return h
            case "forward_kl":
                return -(-h).exp()
            case "js":
                return logsigmoid(h)
            case "alpha":
                return ((alpha - 1) * h).exp() / (alpha - 1)

    gained = slope(chosen_logp - reference_chosen_logp) - slope(rejected_logp - reference_rejected_logp)
    return -logsigmoid(beta * gained)


def _margin(chosen_logp: Tensor, rejected_logp: Tensor, reference_chosen: Tensor, reference_rejected: Tensor) -> Tensor:
    return (chosen_logp - reference_chosen) - (rejected_logp - reference_rejected)
