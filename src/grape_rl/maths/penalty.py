"""Regularizers of the policy loss, per token: KL to a reference, entropy bonus. And the adaptive KL coefficient."""

import math
from collections.abc import Callable
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from grape_rl.maths.bounds import NonNegative, Positive
from grape_rl.maths.divergence import k1, k2, k3

KLEstimator = Literal["k1", "k2", "k3"]
"""The estimators of ``maths.divergence``, by name."""

_ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}


def reference_kl(
    logp: Float[Tensor, "b t"],
    behavior_logp: Float[Tensor, "b t"],
    reference_logp: Float[Tensor, "b t"],
    kl_estimator: KLEstimator = "k3",
) -> Float[Tensor, "b t"]:
    """Estimate of KL(π_θ‖π_ref) from tokens of the behavior policy: ``rho k(logp, reference_logp)``.

    ``rho = exp(logp − behavior_logp)`` is the importance ratio. ``kl_estimator`` selects the estimator k of
    ``maths.divergence``: k1, k2 or k3.

    The ratio turns a mean over the behavior policy's tokens into a mean over the policy's own (at each prefix), and
    gradients flow through it. With k1 or k3, whose mean is KL(π_θ‖π_ref), the expected gradient is therefore that of
    KL(π_θ‖π_ref) too. Without the ratio it would be 0 for k1 and that of KL(π_ref‖π_θ) for k3. GRPO as published uses
    k3 without the ratio.

    Prefixes are held fixed: no token is penalized for the KL of the tokens after it. At the optimum each token's
    distribution is ∝ π_ref e^{Q/coefficient}, with Q the expected reward without the KL. The option ``kl_in_reward``
    instead leads to the optimum of the reward minus the KL of whole responses. Nats.
    """
    return (logp - behavior_logp).exp() * _ESTIMATORS[kl_estimator](logp, reference_logp)


def entropy_bonus(entropy: Float[Tensor, "b t"]) -> Float[Tensor, "b t"]:
    """Entropy bonus, as a loss: ``−entropy``. Minimizing it keeps the policy's distributions broad. Nats."""
    return -entropy


def advantage_weighted_entropy(entropy: Float[Tensor, "b t"], advantage: Float[Tensor, "b t"]) -> Float[Tensor, "b t"]:
    """IBRO regularizer: ``−advantage entropy``. Raises the entropy of good responses and lowers that of bad ones.

    IBRO (arXiv 2507.18391): the surrogate J_IB = Σ_t A_t H_t of an information bottleneck, which replaces a plain
    entropy bonus. The parts of the paper that we could read do not give its coefficient; the user chooses it. Nats.
    """
    return -advantage * entropy


def kl_scale(
    previous: float, response_kl: float, responses: int, kl_target: NonNegative = 0.0, kl_horizon: Positive = 10_000.0
) -> float:
    """Adaptive KL coefficient, as a factor: it rises while the KL is above its target, and falls while it is below.

    ``previous (1 + clip(response_kl / kl_target − 1, ±0.2) responses / kl_horizon)``. Ziegler et al. (arXiv
    1909.08593), eq. 5. ``response_kl`` is the mean of Σ_t (log π_old − log π_ref) over the step's ``responses``, in
    nats per response. ``kl_target`` is the target of ``response_kl``; with 0, or if the KL is missing (NaN), the
    factor does not change. ``kl_horizon`` is the time scale of the adaptation, in responses.

    Raises:
        ValueError: a negative ``kl_target``, or a ``kl_horizon`` of a fifth of ``responses`` or less: one step could
            make the factor 0.

    >>> kl_scale(1.0, response_kl=12.0, responses=500, kl_target=6.0)
    1.01
    """
    if kl_target < 0:
        raise ValueError(f"kl_target is {kl_target}; it must be a KL in nats, or 0 for a fixed coefficient")
    if kl_target == 0 or math.isnan(response_kl):
        return previous
    if kl_horizon <= 0.2 * responses:
        raise ValueError(f"kl_horizon is {kl_horizon}; with {responses} responses it must be over {0.2 * responses:g}")
    return previous * (1 + min(max(response_kl / kl_target - 1, -0.2), 0.2) * responses / kl_horizon)
