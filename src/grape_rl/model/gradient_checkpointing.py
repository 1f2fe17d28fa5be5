"""Gradient checkpointing: activations of a layer are discarded in forward and recomputed in backward."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from grape_rl.model.attention import custom_attention


def enable_gradient_checkpointing(model: nn.Module) -> None:
    """Make ``recompute_in_backward`` discard the activations of the layers of ``model``, a transformers model.

    Raises:
        ValueError: the model's layers do not support gradient checkpointing.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]
    if not layers:
        raise ValueError(
            f"gradient_checkpointing: the layers of {type(model).__name__} do not support it; set it to false"
        )
    recompute = partial(checkpoint, use_reentrant=False, context_fn=lambda: (nullcontext(), custom_attention(model)))
    for layer in layers:
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = recompute  # pyright: ignore[reportArgumentType]


@contextmanager
def recompute_in_backward(model: nn.Module) -> Iterator[None]:
    """Within this context, layers with gradient checkpointing store only their inputs, if gradients are enabled.

    transformers recomputes only layers in training mode. Their submodules stay in evaluation mode, so dropout stays
    off.
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
