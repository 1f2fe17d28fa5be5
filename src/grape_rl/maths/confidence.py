"""How sure a critic is of its verdict: from label probabilities or repeated calls, and corrected for chance."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def chance_corrected(confidence: Float[Tensor, "..."], labels: int) -> Float[Tensor, "..."]:
    """Confidence above chance: ``max(0, (labels confidence − 1) / (labels − 1))``, 0 for a guess and 1 for certainty.

    A critic that tosses a coin between two labels is right half of the time; its raw confidence of ½ would give it half
    of the weight of one that is always right. NaN stays NaN. (Our reading; arXiv 2509.04501 weights by the raw one.)

    Raises:
        ValueError: fewer than two labels.

    >>> chance_corrected(torch.tensor([0.5, 0.75, 1.0, 0.2]), labels=2)
    tensor([0.0000, 0.5000, 1.0000, 0.0000])
    """
    if labels < 2:
        raise ValueError(f"labels is {labels}; a verdict chooses between at least two")
    return ((labels * confidence - 1) / (labels - 1)).clamp(min=0)


def label_probability(logp: Float[Tensor, "b l"]) -> Float[Tensor, "b l"]:
    """Each label's probability among the labels: ``softmax over the l labels of logp``, from their log-probs (nats).

    What the critic gives to anything that is no label is left out, so that a critic which seldom speaks in labels still
    says which of them it prefers.

    >>> label_probability(torch.tensor([[-1.0, -1.0]]))
    tensor([[0.5000, 0.5000]])
    """
    return logp.softmax(dim=-1)


def agreement(count: Int[Tensor, "b l"]) -> Float[Tensor, " b"]:
    """Confidence in the commonest label of repeated calls: ``(max_l count + 1) / (Σ_l count + l)``.

    ``count`` says how many of the calls chose each of the l labels. The added one call for each label (Laplace's rule)
    keeps three calls that agree from being certainty. A row without calls is NaN.

    >>> agreement(torch.tensor([[3, 0], [2, 1], [0, 0]]))
    tensor([0.8000, 0.6000,    nan])
    """
    total = count.sum(dim=-1)
    sure = (count.amax(dim=-1) + 1) / (total + count.shape[-1])
    return sure.masked_fill(total == 0, torch.nan)
