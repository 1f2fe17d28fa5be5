"""Reference-free preference losses, and the SFT loss on the chosen response that is often added to a preference loss.

``D(z) = −log σ(z)``. Log-probs are summed over the tokens of each response, in nats. Lengths count those tokens.
"""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from grape_rl.maths.bounds import NonNegative, Positive


def slic(
    chosen_logp: Float[Tensor, " p"], rejected_logp: Float[Tensor, " p"], delta: NonNegative = 1.0
) -> Float[Tensor, " p"]:
    """SLiC calibration loss: ``max(0, delta − chosen_logp + rejected_logp)``.

    A reading of SLiC-HF (arXiv 2305.10425), not checked against the paper. The paper's second term, the likelihood of a
    target, is ``chosen_nll`` with the chosen response as the target.
    """
    return (delta - chosen_logp + rejected_logp).relu()


def chosen_nll(chosen_logp: Float[Tensor, " p"], chosen_length: Float[Tensor, " p"]) -> Float[Tensor, " p"]:
    """Negative log-likelihood per token of the chosen response, ``−chosen_logp / chosen_length``: its SFT loss."""
    return -chosen_logp / chosen_length


def orpo(
    chosen_logp: Float[Tensor, " p"],
    rejected_logp: Float[Tensor, " p"],
    chosen_length: Float[Tensor, " p"],
    rejected_length: Float[Tensor, " p"],
    odds_weight: NonNegative = 0.1,
) -> Float[Tensor, " p"]:
    """ORPO loss: ``−mean(chosen) + odds_weight D(log_odds(chosen) − log_odds(rejected))``.

    ``mean = logp / length`` and ``log_odds = mean − log(1 − exp(mean))``. ORPO (arXiv 2403.07691), eqs. 6 and 7. The
    first term is SFT on the chosen response, so no separate SFT stage is needed.
    """
    chosen, rejected = chosen_logp / chosen_length, rejected_logp / rejected_length
    return -chosen - odds_weight * logsigmoid(_log_odds(chosen) - _log_odds(rejected))


def simpo(
    chosen_logp: Float[Tensor, " p"],
    rejected_logp: Float[Tensor, " p"],
    chosen_length: Float[Tensor, " p"],
    rejected_length: Float[Tensor, " p"],
    beta: Positive = 2.0,
    gamma: NonNegative = 1.0,
) -> Float[Tensor, " p"]:
    """SimPO loss: ``D(beta (chosen_logp / chosen_length − rejected_logp / rejected_length) − gamma)``.

    SimPO (arXiv 2405.14734), eq. 6. The reward is the mean log-probability, the quantity that guides generation. The
    defaults are in the ranges of the authors, to our knowledge.
    """
    return -logsigmoid(beta * (chosen_logp / chosen_length - rejected_logp / rejected_length) - gamma)


def cpo(
    chosen_logp: Float[Tensor, " p"],
    rejected_logp: Float[Tensor, " p"],
    chosen_length: Float[Tensor, " p"],
    beta: Positive = 0.1,
    nll_weight: NonNegative = 1.0,
) -> Float[Tensor, " p"]:
    """CPO loss: ``D(beta (chosen_logp − rejected_logp)) − nll_weight chosen_logp / chosen_length``.

    CPO (arXiv 2401.08417): DPO with a uniform reference, plus the negative log-likelihood of the chosen response, here
    per token as in TRL.
    """
    return -logsigmoid(beta * (chosen_logp - rejected_logp)) - nll_weight * chosen_logp / chosen_length


def _log_odds(mean: Tensor) -> Tensor:
    """Log-odds ``log(p / (1 − p))`` of p = exp(mean)."""
    below = mean.clamp(max=-1e-7)  # near certainty a float32 log-prob rounds to 0, whose odds are infinite
    return below - (-below.expm1()).log()
