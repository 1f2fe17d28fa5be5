"""Gradient checkpointing: what a layer computes is forgotten in the forward pass and computed again in backward."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from grape_rl.model.attention import custom_attention


def enable_gradient_checkpointing(model: nn.Module) -> None:
    """From now on ``recomputing`` forgets what the layers of ``model`` compute. It is one model of transformers.

    Raises:
        ValueError: its layers are not of a kind that can be computed again.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]
    if not layers:
        raise ValueError(f"gradient_checkpointing: the layers of {type(model).__name__} can't be computed again")
    again = partial(checkpoint, use_reentrant=False, context_fn=lambda: (nullcontext(), custom_attention(model)))
    for layer in layers:
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = again  # pyright: ignore[reportArgumentType]


@contextmanager
def recompute_in_backward(model: nn.Module) -> Iterator[None]:
    """Within it, layers that are ``checkpointed`` keep only what they read, if a gradient is to be taken at all.

    transformers computes again only what is in training mode; dropout, deeper within, stays off.
    """
    layers = [
        layer
        for layer in model.modules()
        if isinstance(layer, GradientCheckpointingLayer) and layer.gradient_checkpointing and torch.is_grad_enabled()
    ]
    for layer in layers:
        layer.training = True
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False
