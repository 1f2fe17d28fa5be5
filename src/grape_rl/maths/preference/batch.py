"""Preference losses that couple the pairs of a batch: each needs the whole batch at once.

``D(z) = −log σ(z)``. Log-probs are summed over the tokens of each response, in nats.
"""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from grape_rl.maths.bounds import NonNegative, Positive
from grape_rl.maths.preference.margin import log_ratio_margin


def aot(
    chosen_logp: Float[Tensor, " p"],
    rejected_logp: Float[Tensor, " p"],
    reference_chosen_logp: Float[Tensor, " p"],
    reference_rejected_logp: Float[Tensor, " p"],
    beta: Positive = 0.1,
) -> Float[Tensor, " p"]:
    """AOT loss: ``D(beta (sort(policy) − sort(reference)))`` of the log-ratios between chosen and rejected responses.

    ``policy = chosen_logp − rejected_logp`` and ``reference = reference_chosen_logp − reference_rejected_logp``. AOT
    (arXiv 2406.05882), alignment via optimal transport. The distribution of the policy's log-ratios should dominate
    the reference's: quantiles of the batch are compared, not pairs. Entry i is the loss of the i-th quantile.
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
    """Unpaired AOT loss: ``D(beta (sort(chosen) − sort(rejected)))``, each term ``logp − reference_logp``.

    AOT (arXiv 2406.05882), the unpaired form. The distribution of the implied rewards of all chosen responses should
    dominate that of all rejected ones, independent of the pairing. Entry i is the loss of the i-th quantile.
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
    """DPO loss with a beta per pair: ``D(b margin)`` with ``b = beta max(0, 1 + beta_slope (reward − mean(reward)))``.

    ``margin = (chosen_logp − reference_chosen_logp) − (rejected_logp − reference_rejected_logp)`` and ``reward = beta
    margin``, the implied reward difference. b is a constant: no gradient flows through it. Pairs with a larger implied
    reward difference get a larger b.

    A reading of β-DPO (arXiv 2407.08639), not checked against the paper. The mean is over the batch; the paper uses a
    moving average. The lower bound of 0 on b is ours: a negative b would invert the preference. The paper's filter of
    pairs is left out.
    """
    margin = log_ratio_margin(chosen_logp, rejected_logp, reference_chosen_logp, reference_rejected_logp)
    reward = beta * margin.detach()
    pair_beta = beta * (1 + beta_slope * (reward - reward.mean())).clamp(min=0)
    return -logsigmoid(pair_beta * margin)
