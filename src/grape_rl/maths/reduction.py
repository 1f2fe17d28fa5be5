"""From a field over tokens to one number: the weight of each token, taken once over the whole batch."""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Reduction = Literal["token", "sequence", "fixed_length"]


def token_weight(
    mask: Bool[Tensor, "b t"], reduction: Reduction = "token", max_tokens: int = 1, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "b t"]:
    """The weight w of each token, so that a loss is Σ w · field however the batch is cut into micro-batches.

    By ``reduction``, token: 1 / Σ mask, every token of the batch alike (DAPO; a long response counts for more).
    sequence: 1 / (rows · its row's tokens), every response alike (GRPO as published).
    fixed_length: 1 / (rows · max_tokens), a sum over each response divided by a constant (Dr. GRPO; REINFORCE's own
    gradient, times 1/max_tokens).

    Rows without a masked token are not counted. The denominator is one for the whole batch: taken per micro-batch or
    per rank it would change the gradient with the way the batch is cut. 0 where ``mask`` is False.
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
