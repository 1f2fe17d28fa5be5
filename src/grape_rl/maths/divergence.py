"""KL divergence and entropy: estimators from samples, and exact values from logits. All in nats."""

import torch
from jaxtyping import Float
from torch import Tensor


def k1(sampler_logp: Float[Tensor, "b t"], other_logp: Float[Tensor, "b t"]) -> Float[Tensor, "b t"]:
    """KL estimator k1 of KL(sampler‖other), per token: ``sampler_logp − other_logp``.

    As a value it is unbiased, has a high variance, and can be negative. As a loss it is useless: its expected gradient
    is zero.

    The tokens are samples of the sampler. Schulman (2020), "Approximating KL divergence", k1. Nats.
    """
    return sampler_logp - other_logp


def k2(sampler_logp: Float[Tensor, "b t"], other_logp: Float[Tensor, "b t"]) -> Float[Tensor, "b t"]:
    """KL estimator k2 of KL(sampler‖other), per token: ``½ (sampler_logp − other_logp)²``.

    As a value it is biased; the error is of third order in the distance. As a loss its expected gradient is that of
    KL(sampler‖other), with the distribution of the prefixes held fixed.

    The tokens are samples of the sampler. Schulman (2020), "Approximating KL divergence", k2. Nats.
    """
    return (sampler_logp - other_logp).square() / 2


def k3(sampler_logp: Float[Tensor, "b t"], other_logp: Float[Tensor, "b t"]) -> Float[Tensor, "b t"]:
    """KL estimator k3 of KL(sampler‖other), per token: ``exp(−d) − 1 + d`` with ``d = sampler_logp − other_logp``.

    As a value it is unbiased and never negative. As a loss its expected gradient is that of KL(other‖sampler), with the
    distribution of the prefixes held fixed.

    The tokens are samples of the sampler. Schulman (2020), "Approximating KL divergence", k3; GRPO (arXiv 2402.03300),
    eq. 4. Nats.
    """
    d = sampler_logp - other_logp
    # Near d = 0 the result is d²/2, which exp(−d) − 1 would lose to rounding.
    return torch.expm1(-d) + d


def exact_kl(logits: Float[Tensor, "*batch v"], other_logits: Float[Tensor, "*batch v"]) -> Float[Tensor, "*batch"]:
    """KL(softmax(logits)‖softmax(other_logits)) over the last axis: ``Σ p (log p − log q)``. Nats.

    An entry with ``p = 0`` (logit −inf) adds 0 for any ``q``. An entry with ``p > 0`` and ``q = 0`` makes the result
    infinite. Gradients are finite wherever the value is. A row of −inf alone is not a distribution and gives NaN.

    >>> exact_kl(torch.tensor([0.0, 0.0]), torch.tensor([0.0, -torch.inf]))
    tensor(inf)
    """
    log_p, log_q = logits.log_softmax(-1), other_logits.log_softmax(-1)
    p = log_p.exp()
    # Filled before the subtraction and the product: −inf − (−inf) and 0·inf are NaN, in the value or in the gradient.
    difference = log_p.masked_fill(p == 0, 0) - log_q.masked_fill(p == 0, 0)
    return (p * difference).sum(-1)


def entropy(logits: Float[Tensor, "*batch v"]) -> Float[Tensor, "*batch"]:
    """Entropy of softmax(logits) over the last axis: ``−Σ p log p``, with 0·log 0 = 0. Nats.

    >>> entropy(torch.tensor([0.0, 0.0, -torch.inf]))
    tensor(0.6931)
    """
    log_p = logits.log_softmax(-1)
    p = log_p.exp()
    return -(p * log_p.masked_fill(p == 0, 0)).sum(-1)
