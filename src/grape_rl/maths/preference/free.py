"""Preference losses without a reference, and the likelihood of the chosen response that is often added to one.

``D(z) = −log σ(z)``. Log-probs are summed over each response's own tokens, in nats; lengths count those tokens.
"""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from grape_rl.maths.bounds import NonNegative, Positive


def slic(
    chosen_logp: Float[Tensor, " p"], rejected_logp: Float[Tensor, " p"], delta: NonNegative = 1.0
) -> Float[Tensor, " p"]:
    """SLiC's calibration loss: ``max(0, delta − chosen_logp + rejected_logp)``.

    A reading of SLiC-HF (arXiv 2305.10425), not checked against the paper. Its other half, the likelihood of a
    target, is ``chosen_nll`` with the chosen response as the target.
    """
    return (delta - chosen_logp + rejected_logp).relu()


def chosen_nll(chosen_logp: Float[Tensor, " p"], chosen_length: Float[Tensor, " p"]) -> Float[Tensor, " p"]:
    """The chosen response's negative log-likelihood a token: ``−chosen_logp / chosen_length``: SFT's loss on it."""
    return -chosen_logp / chosen_length


def orpo(
    chosen_logp: Float[Tensor, " p"],
    rejected_logp: Float[Tensor, " p"],
    chosen_length: Float[Tensor, " p"],
    rejected_length: Float[Tensor, " p"],
    odds_weight: NonNegative = 0.1,
) -> Float[Tensor, " p"]:
    """ORPO's loss: ``−mean(chosen) + odds_weight D(odds(chosen) − odds(rejected))``.

    ``mean = logp / length`` and ``odds = mean − log(1 − exp(mean))``. ORPO (arXiv 2403.07691), eqs. 6 and 7. Its first
    term is SFT on the chosen response, so that no SFT has to come before.
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
    """SimPO's loss: ``D(beta (chosen_logp / chosen_length − rejected_logp / rejected_length) − gamma)``.

    SimPO (arXiv 2405.14734), eq. 6. The mean log-probability, which is what sampling goes
    by, is the reward. The defaults lie in the ranges that its authors use, to our knowledge.
    """
    return -logsigmoid(beta * (chosen_logp / chosen_length - rejected_logp / rejected_length) - gamma)


def cpo(
    chosen_logp: Float[Tensor, " p"],
    rejected_logp: Float[Tensor, " p"],
    chosen_length: Float[Tensor, " p"],
    beta: Positive = 0.1,
    nll_weight: NonNegative = 1.0,
) -> Float[Tensor, " p"]:
    """CPO's loss: ``D(beta (chosen_logp − rejected_logp)) − nll_weight chosen_logp / chosen_length``.

    CPO (arXiv 2401.08417): DPO with a uniform reference, and the likelihood of the chosen response, here its
    mean over tokens as in TRL.
    """
    return -logsigmoid(beta * (chosen_logp - rejected_logp)) - nll_weight * chosen_logp / chosen_length


def _log_odds(mean: Tensor) -> Tensor:
    """log(p / (1 − p)) of p = exp(mean)."""
    below = mean.clamp(max=-1e-7)  # float32 log-probs of near certainty come out as 0, and their odds would be infinite
    return below - (-below.expm1()).log()
