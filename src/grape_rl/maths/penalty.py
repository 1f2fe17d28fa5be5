"""Terms that hold a policy back or keep it open: the KL to a reference, and the entropy bonus. Losses, per token.

And how strongly they do, where that follows the KL that was measured.
"""

import math
from collections.abc import Callable
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from grape_rl.maths.bounds import NonNegative, Positive
from grape_rl.maths.divergence import k1, k2, k3

Estimator = Literal["k1", "k2", "k3"]
_ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}


def reference_kl(
    logp: Float[Tensor, "b t"],
    behavior_logp: Float[Tensor, "b t"],
    reference_logp: Float[Tensor, "b t"],
    kl_estimator: Estimator = "k3",
) -> Float[Tensor, "b t"]:
    """KL of the policy to the reference, estimated from tokens that the behavior policy chose.

    ρ · k(logp, reference_logp), ρ = exp(logp − behavior_logp), and k the estimator that ``kl_estimator`` names.

    The weight ρ turns an average over the behavior policy's tokens into one over the policy's own (at each prefix), and
    gradients flow through it. So with k1 or k3, whose averages are KL(π_θ‖π_ref), the average gradient is that of
    KL(π_θ‖π_ref) too; without ρ it would be 0 for k1 and that of KL(π_ref‖π_θ) for k3. GRPO as published has k3
    without the weight.

    Prefixes are held fixed: no token answers for the KL of those that it leads to. So the policy comes to rest where
    each choice is ∝ π_ref e^{Q/coefficient}, Q the reward to come without the KL. The optimum of the reward less the
    KL of whole responses is what ``kl_in_reward`` comes to. Nats.
    """
    return (logp - behavior_logp).exp() * _ESTIMATORS[kl_estimator](logp, reference_logp)


def entropy_bonus(entropy: Float[Tensor, "b t"]) -> Float[Tensor, "b t"]:
    """−entropy: minimized where the policy keeps its choices open. Nats."""
    return -entropy


def advantage_weighted_entropy(entropy: Float[Tensor, "b t"], advantage: Float[Tensor, "b t"]) -> Float[Tensor, "b t"]:
    """IBRO's regularizer: ``−advantage entropy``. More entropy where a response was good, less where it was not.

    IBRO (arXiv 2507.18391): the surrogate J_IB = Σ_t A_t H_t of an information bottleneck, in the place of a plain
    entropy bonus. Its coefficient is not in what we could read of the paper, and is the user's to choose. Nats.
    """
    return -advantage * entropy


def kl_scale(
    previous: float, response_kl: float, responses: int, kl_target: NonNegative = 0.0, kl_horizon: Positive = 10_000.0
) -> float:
    """The factor of the KL's coefficient, a step further: it rises while the KL is over its target, and falls under it.

    ``previous (1 + clip(response_kl / kl_target − 1, ±0.2) responses / kl_horizon)``. Ziegler et al. (arXiv
    1909.08593), eq. 5. ``response_kl`` is the mean of Σ_t (log π_old − log π_ref) over a step's ``responses``, in nats
    a response; ``kl_horizon`` counts responses. With a ``kl_target`` of 0, or where no KL could be measured (NaN), the
    factor stays as it is.

    Raises:
        ValueError: a negative ``kl_target``, or a ``kl_horizon`` of a fifth of ``responses`` or less: one step could
            make the factor 0.

    >>> kl_scale(1.0, response_kl=12.0, responses=500, kl_target=6.0)
    1.01
    """
    if kl_target < 0:
        raise ValueError(f"kl_target is {kl_target}; it must be a number of nats a response, or 0 for a fixed KL")
    if kl_target == 0 or math.isnan(response_kl):
        return previous
    if kl_horizon <= 0.2 * responses:
        raise ValueError(f"kl_horizon is {kl_horizon}; with {responses} responses it must be over {0.2 * responses:g}")
    return previous * (1 + min(max(response_kl / kl_target - 1, -0.2), 0.2) * responses / kl_horizon)
