"""Confidence of a critic in its verdict: from label probabilities or repeated calls, and corrected for chance."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def chance_corrected(confidence: Float[Tensor, "..."], labels: int) -> Float[Tensor, "..."]:
    """Chance-corrected confidence: ``max(0, (labels confidence − 1) / (labels − 1))``, 0 for a guess, 1 for certainty.

    A critic that guesses between two labels is right half of the time. Its raw confidence of ½ would give it half the
    weight of a critic that is always right. NaN stays NaN. The correction is our choice; arXiv 2509.04501 weights by
    the raw confidence.

    Raises:
        ValueError: fewer than two labels.

    >>> chance_corrected(torch.tensor([0.5, 0.75, 1.0, 0.2]), labels=2)
    tensor([0.0000, 0.5000, 1.0000, 0.0000])
    """
    if labels < 2:
        raise ValueError(f"labels is {labels}; a verdict needs at least two labels")
    return ((labels * confidence - 1) / (labels - 1)).clamp(min=0)


def label_probability(logp: Float[Tensor, "b l"]) -> Float[Tensor, "b l"]:
    """Probability of each label among the l labels: ``softmax(logp)`` of their log-probs (nats).

    The probability of all other text is left out. The result is defined even if the critic rarely answers with a label.

    >>> label_probability(torch.tensor([[-1.0, -1.0]]))
    tensor([[0.5000, 0.5000]])
    """
    return logp.softmax(dim=-1)


def self_consistency(count: Int[Tensor, "b l"]) -> Float[Tensor, " b"]:
    """Confidence in the most frequent label of repeated calls: ``(max_l count + 1) / (Σ_l count + l)``.

    ``count`` is the number of calls that returned each of the l labels. The added count per label (Laplace smoothing)
    keeps a few calls that agree from being certainty. A row without calls is NaN. Self-consistency is arXiv 2203.11171.

    >>> self_consistency(torch.tensor([[3, 0], [2, 1], [0, 0]]))
    tensor([0.8000, 0.6000,    nan])
    """
    total = count.sum(dim=-1)
    confidence = (count.amax(dim=-1) + 1) / (total + count.shape[-1])
    return confidence.masked_fill(total == 0, torch.nan)
