"""Noise on a model's input embeddings (NEFTune)."""

import torch
from jaxtyping import Float
from torch import Tensor


def embedding_noise(length: int, width: int, alpha: float, seed: int) -> Float[Tensor, "l d"]:
    """NEFTune noise for the embeddings of one example: ``alpha / √(length width) · Uniform(−1, 1)``.

    NEFTune (arXiv 2310.05914). With this scale the noise of an example has the norm alpha / √3 (root mean square) for
    any ``length`` (tokens) and embedding ``width``. Equal seeds give equal noise.

    >>> tuple(embedding_noise(3, 2, alpha=5.0, seed=0).shape)
    (3, 2)
    """
    unit = torch.rand(length, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return alpha / (length * width) ** 0.5 * unit
