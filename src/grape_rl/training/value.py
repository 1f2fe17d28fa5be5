"""Value functions in training: their options, value estimates for a rollout, and the warmup with a frozen policy."""

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
class ValueFunctionOptions:
    """Options of a value function V(x, y_<t): its model, and its learning rate.

    ``value_trunk`` "own" is a separate model, with the memory cost of a second policy. "shared" is a head on the
    policy's trunk, with almost no memory cost, but its loss also changes the policy. A separate model starts as a copy
    of the policy's trunk, or as the sequence-classification model with one label at ``value_model`` (a folder, or a
    model on the Hub): a reward model, as in InstructGPT (arXiv 2203.02155). The head starts at 0, except for a loaded
    model.

    ``value_learning_rate`` has the policy's schedule; 0 means the policy's learning rate. During the first
    ``value_warmup`` steps only the value function learns: the policy's weights are frozen, and of a shared trunk only
    the head changes.
    """

    value_trunk: Literal["own", "shared"] = "own"
    value_model: str = ""
    value_learning_rate: NonNegativeFloat = 0.0
    value_warmup: NonNegativeInt = 0


def value_estimates(model: PolicyWithValue, forward: ForwardContext) -> Callable[[Sequences], Float[Tensor, "b t"]]:
    """A function from sequences to the value before each token, by the weights that ``model`` has when it is called."""

    @torch.no_grad()
    def estimates(sequences: Sequences) -> Float[Tensor, "b t"]:
        value = torch.zeros(sequences.mask.shape)
        for rows in microbatches(sequences, forward.tokens_per_microbatch):
            with forward.precision():
                part = compute_values(model, select_rows(sequences, rows))
            value[rows, : part.shape[1]] = part.float().cpu()
        return value

    return estimates


@contextmanager
def frozen_parameters(model: nn.Module) -> Iterator[None]:
    """A context in which the model's parameters require no gradient, so that no update changes them."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
