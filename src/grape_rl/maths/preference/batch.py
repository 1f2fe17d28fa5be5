"""Preference losses in which the pairs of a batch are compared with each other: they need all of it at once.

``D(z) = −log σ(z)``. Log-probs are summed over each response's own tokens, in nats.
"""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from grape_rl.maths.bounds import NonNegative, Positive


def aot(
    chosen_logp: Float[Tensor, " p"],
    rejected_logp: Float[Tensor, " p"],
    reference_chosen_logp: Float[Tensor, " p"],
    reference_rejected_logp: Float[Tensor, " p"],
    beta: Positive = 0.1,
) -> Float[Tensor, " p"]:
    """AOT's loss: ``D(beta (sort(chosen_logp − rejected_logp) − sort(the same of the reference)))``.

    AOT (arXiv 2406.05882). The policy's log-ratios are to dominate the reference's as a distribution: quantile
    against quantile, over all pairs of the batch, and not pair against pair. Value i is that of the i-th quantile.
    """
    policy = (chosen_logp - rejected_logp).sort().values
    reference = (reference_chosen_logp - reference_rejected_logp).sort().values
    return -logsigmoid(beta * (policy - reference))


def aot_unpaired(
    chosen_logp: Float[Tensor, " p"],
    rejected_logp: Float[Tensor, " p"],
    reference_chosen_logp: Float[Tensor, " p"],
    reference_rejected_logp: Float[Tensor, " p"],
    beta: Positive = 0.1,
) -> Float[Tensor, " p"]:
    """AOT's loss between all chosen and all rejected: ``D(beta (sort(chosen) − sort(rejected)))``.

    Each is ``logp − reference_logp``. AOT (arXiv 2406.05882), its unpaired form: the implied rewards of good responses
    are to dominate those of bad ones as a distribution, whichever response stood beside which. Value i is that of the
    i-th quantile.
    """
    chosen = (chosen_logp - reference_chosen_logp).sort().values
    rejected = (rejected_logp - reference_rejected_logp).sort().values
    return -logsigmoid(beta * (chosen - rejected))


def beta_dpo(
    chosen_logp: Float[Tensor, " p"],
    rejected_logp: Float[Tensor, " p"],
    reference_chosen_logp: Float[Tensor, " p"],
    reference_rejected_logp: Float[Tensor, " p"],
    beta: Positive = 0.1,
    beta_slope: NonNegative = 0.6,
) -> Float[Tensor, " p"]:
    """DPO with a beta for each pair: ``D(b margin)`` with ``b = beta max(0, 1 + beta_slope (reward − mean(reward)))``.

    ``margin = (chosen_logp − reference_chosen_logp) − (rejected_logp − reference_rejected_logp)``, and ``reward = beta
    margin``, by which the policy tells the two apart now; b is a constant (no gradient flows through it). Pairs that
    are told apart easily get the larger b.

    A reading of β-DPO (arXiv 2407.08639), not checked against the paper: the mean is the batch's, where the paper
    keeps a moving one; that b may not fall below 0, where it would turn the preference round, is ours; the paper's
    filter of pairs is left out.
    """
    margin = (chosen_logp - reference_chosen_logp) - (rejected_logp - reference_rejected_logp)
    reward = beta * margin.detach()
    own = beta * (1 + beta_slope * (reward - reward.mean())).clamp(min=0)
    return -logsigmoid(own * margin)
