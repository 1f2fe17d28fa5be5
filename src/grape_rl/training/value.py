"""A value function's part in training: how it is set, what it says of a rollout, and how it learns alone at first."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import NonNegativeFloat, NonNegativeInt
from torch import Tensor, nn

from grape_rl.model.forward import ForwardContext
from grape_rl.model.logprobs import compute_values, microbatches, select_rows
from grape_rl.model.value_head import PolicyWithValue
from grape_rl.types import Sequences


@dataclass(frozen=True)
class ValueFunction:
    """The value function V(x, y_<t): where it lives, and how it learns.

    ``value_trunk``: "own" is a model of its own, which costs as much memory as the policy; "shared" a head on the
    policy's trunk, which costs next to none, and whose loss pulls at the policy too. A model of its own is a copy of
    the policy's trunk as the run starts, or the sequence-classification model with one label at ``value_model`` (a
    folder, or a model of the Hub): a reward model, as InstructGPT (arXiv 2203.02155) begins with. The head is 0 at
    first, but a loaded model's.

    It learns at ``value_learning_rate`` (0: at the policy's), over the same schedule. In the first ``value_warmup``
    steps it learns alone: the policy keeps every bit, and of a shared trunk only the head learns.
    """

    value_trunk: Literal["own", "shared"] = "own"
    value_model: str = ""
    value_learning_rate: NonNegativeFloat = 0.0
    value_warmup: NonNegativeInt = 0


def value_estimates(
    model: PolicyWithValue,
    forward: ForwardContext,
) -> Callable[[Sequences], Float[Tensor, "b t"]]:
    """A function from sequences to the value before each of their tokens, as the model is when it is called."""

    @torch.no_grad()
    def estimates(sequences: Sequences) -> Float[Tensor, "b t"]:
        out = torch.zeros(sequences.mask.shape)
        for rows in microbatches(sequences, forward.tokens_per_microbatch):
            with forward.precision():
                part = compute_values(model, select_rows(sequences, rows))
            out[rows, : part.shape[1]] = part.float().cpu()
        return out

    return estimates


@contextmanager
def frozen_parameters(model: nn.Module) -> Iterator[None]:
    """The model's parameters take no gradient, and so keep every bit."""
    moving = [p for p in model.parameters() if p.requires_grad]
    for parameter in moving:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in moving:
            parameter.requires_grad_(True)
