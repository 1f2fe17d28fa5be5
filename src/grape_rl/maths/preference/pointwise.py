"""Pointwise preference losses: a separate term for the log-ratio of each response of a pair.

``chosen = chosen_logp − reference_chosen_logp``, ``rejected = rejected_logp − reference_rejected_logp`` and
``D(z) = −log σ(z)``. Log-probs are summed over the tokens of each response, in nats.
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
    """NCA loss for pairs: ``D(beta chosen) + ½ D(−beta chosen) + ½ D(−beta rejected)``.

    NCA (arXiv 2402.05369), its binary form: noise-contrastive estimation with the reference as noise. The second term
    bounds the likelihood of the chosen response.
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
    """BCO loss for pairs: ``D(beta chosen) + D(−beta rejected)``.

    BCO (arXiv 2404.04656): a binary classifier of chosen and rejected responses whose logit is the implied reward. The
    form for pairs has no reward shift (a running mean); ``bco_unpaired`` has it.
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
    """APO-zero loss: ``1 − σ(beta chosen) + σ(beta rejected)``.

    APO (arXiv 2408.06266). Raises the likelihood of the chosen response and lowers the rejected one's. For pairs
    whose chosen response is better than the model's own.
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
    """APO-down loss: ``σ(beta chosen) + 1 − σ(beta (chosen − rejected))``.

    APO (arXiv 2408.06266). Lowers the likelihood of both responses, of the rejected one more. For pairs whose chosen
    response is worse than the model's own. At the reference the gradient of the chosen response is 0.
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
    """SPPO loss with hard labels: ``(chosen − 1/(2 beta))² + (rejected + 1/(2 beta))²``.

    SPPO (arXiv 2405.00675) with win rates of 1 and 0; the paper's eta is 1/beta. Each log-ratio has its own target, so
    the chosen response does become more likely.
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
    """Cal-DPO loss: ``D(chosen − rejected) + ½ (chosen − 1/(2 beta))² + ½ (rejected + 1/(2 beta))²``.

    Cal-DPO (arXiv 2412.14516), as in the authors' code: D does not contain ``beta``. The squares calibrate the implied
    rewards to the scale of the true ones.
    """
    chosen, rejected = chosen_logp - reference_chosen_logp, rejected_logp - reference_rejected_logp
    squares = sppo(chosen_logp, rejected_logp, reference_chosen_logp, reference_rejected_logp, beta)
    return -logsigmoid(chosen - rejected) + squares / 2
