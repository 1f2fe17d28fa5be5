"""Preference losses that judge each response of a pair by itself: how much it has gained on the reference.

In all of them, per pair: ``chosen = chosen_logp − reference_chosen_logp``, ``rejected`` likewise, and
``D(z) = −log σ(z)``. Log-probs are summed over each response's own tokens, in nats.
"""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from grape_rl.maths.bounds import Positive


def nca(
    chosen_logp: Float[Tensor, " p"],
    rejected_logp: Float[Tensor, " p"],
    reference_chosen_logp: Float[Tensor, " p"],
    reference_rejected_logp: Float[Tensor, " p"],
    beta: Positive = 0.1,
) -> Float[Tensor, " p"]:
    """NCA's loss for pairs: ``D(beta chosen) + ½ D(−beta chosen) + ½ D(−beta rejected)``.

    NCA (arXiv 2402.05369), its binary form. Noise contrast with the reference: the chosen response is told from it, and
    is held back from growing without end.
    """
    chosen = beta * (chosen_logp - reference_chosen_logp)
    rejected = beta * (rejected_logp - reference_rejected_logp)
    return -logsigmoid(chosen) - (logsigmoid(-chosen) + logsigmoid(-rejected)) / 2


def bco(
    chosen_logp: Float[Tensor, " p"],
    rejected_logp: Float[Tensor, " p"],
    reference_chosen_logp: Float[Tensor, " p"],
    reference_rejected_logp: Float[Tensor, " p"],
    beta: Positive = 0.1,
) -> Float[Tensor, " p"]:
    """BCO's loss for pairs: ``D(beta chosen) + D(−beta rejected)``.

    BCO (arXiv 2404.04656): a classifier of good and bad whose logit is the reward that the policy implies. This is the
    form for pairs, without the reward shift (a running mean) of the unpaired one.
    """
    chosen, rejected = chosen_logp - reference_chosen_logp, rejected_logp - reference_rejected_logp
    return -logsigmoid(beta * chosen) - logsigmoid(-beta * rejected)


def apo_zero(
    chosen_logp: Float[Tensor, " p"],
    rejected_logp: Float[Tensor, " p"],
    reference_chosen_logp: Float[Tensor, " p"],
    reference_rejected_logp: Float[Tensor, " p"],
    beta: Positive = 0.1,
) -> Float[Tensor, " p"]:
    """APO-zero's loss: ``1 − σ(beta chosen) + σ(beta rejected)``.

    APO (arXiv 2408.06266): the chosen response up, the rejected one down. For pairs whose chosen response is
    better than what the model would say.
    """
    chosen, rejected = chosen_logp - reference_chosen_logp, rejected_logp - reference_rejected_logp
    return (-beta * chosen).sigmoid() + (beta * rejected).sigmoid()


def apo_down(
    chosen_logp: Float[Tensor, " p"],
    rejected_logp: Float[Tensor, " p"],
    reference_chosen_logp: Float[Tensor, " p"],
    reference_rejected_logp: Float[Tensor, " p"],
    beta: Positive = 0.1,
) -> Float[Tensor, " p"]:
    """APO-down's loss: ``σ(beta chosen) + 1 − σ(beta (chosen − rejected))``.

    APO (arXiv 2408.06266): both responses down, the rejected one further. For pairs whose chosen response is
    worse than what the model would say. At the reference the chosen response has no gradient.
    """
    chosen, rejected = chosen_logp - reference_chosen_logp, rejected_logp - reference_rejected_logp
    return (beta * chosen).sigmoid() + (-beta * (chosen - rejected)).sigmoid()


def sppo(
    chosen_logp: Float[Tensor, " p"],
    rejected_logp: Float[Tensor, " p"],
    reference_chosen_logp: Float[Tensor, " p"],
    reference_rejected_logp: Float[Tensor, " p"],
    beta: Positive = 0.1,
) -> Float[Tensor, " p"]:
    """SPPO's loss with hard labels: ``(chosen − 1/(2 beta))² + (rejected + 1/(2 beta))²``.

    SPPO (arXiv 2405.00675) with win rates of 1 and 0; the paper's eta is 1/beta. Each response has a place to
    go to, so that the chosen one really gets likelier.
    """
    half = 1 / (2 * beta)
    chosen, rejected = chosen_logp - reference_chosen_logp, rejected_logp - reference_rejected_logp
    return (chosen - half).square() + (rejected + half).square()


def cal_dpo(
    chosen_logp: Float[Tensor, " p"],
    rejected_logp: Float[Tensor, " p"],
    reference_chosen_logp: Float[Tensor, " p"],
    reference_rejected_logp: Float[Tensor, " p"],
    beta: Positive = 0.1,
) -> Float[Tensor, " p"]:
    """Cal-DPO's loss: ``D(chosen − rejected) + ½ (chosen − 1/(2 beta))² + ½ (rejected + 1/(2 beta))²``.

    Cal-DPO (arXiv 2412.14516), as its authors' code has it: no ``beta`` within D. The squares calibrate the implied
    rewards to the scale of the real ones.
    """
    chosen, rejected = chosen_logp - reference_chosen_logp, rejected_logp - reference_rejected_logp
    squares = sppo(chosen_logp, rejected_logp, reference_chosen_logp, reference_rejected_logp, beta)
    return -logsigmoid(chosen - rejected) + squares / 2
