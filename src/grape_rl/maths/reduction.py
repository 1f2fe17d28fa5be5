"""Reduction of a field over tokens to one number: the weight of each token, computed once for the whole batch."""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Reduction = Literal["token", "sequence", "fixed_length"]
"""The denominator of the mean over tokens."""


def token_weight(
    mask: Bool[Tensor, "b t"], reduction: Reduction = "token", max_tokens: int = 1, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "b t"]:
    """Weight w of each token, such that the loss is Σ w · field for any division of the batch into micro-batches.

    ``reduction`` selects the denominator. token: 1 / Σ mask, so every token of the batch has equal weight and a long
    response counts for more (DAPO). sequence: 1 / (rows · tokens of the row), so every response has equal weight (GRPO
    as published). fixed_length: 1 / (rows · max_tokens), a sum over each response divided by a constant (Dr. GRPO;
    REINFORCE's own gradient, times 1/max_tokens).

    Rows without a masked-in token are not counted. The denominator belongs to the whole batch: a denominator per
    micro-batch or per rank would make the gradient depend on the division. The weight is 0 where ``mask`` is False.
    """
    per_row = mask.sum(dim=1, keepdim=True)
    rows = (per_row > 0).sum().clamp(min=1)
    if reduction == "token":
        denominator = mask.sum().clamp(min=1).expand_as(per_row)
    elif reduction == "sequence":
        denominator = rows * per_row.clamp(min=1)
    else:
        denominator = (rows * max_tokens).expand_as(per_row)
    return mask.to(dtype) / denominator.to(dtype)
