"""Attention of our own in a transformers model: which position sees which is up to who calls the model."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface

ATTENTION_IMPLEMENTATION = "grape_rl"
"""Under which name transformers knows the attention. It makes no mask for it: the caller says what is seen."""


AttentionFunction = Callable[[int, Tensor, Tensor, Tensor, float, int | None, float | None, Tensor | None], Tensor]
"""What a layer's queries find in keys and values: softmax(scale · q · kᵀ) · v over what each of them may see.

Takes the layer's number (from 0), queries "b h q d", keys "b g k d", values "b g k e", the scale, the window, the cap
and the sinks; gives "b h q e". Keys may have fewer heads than queries: each serves h / g neighbors. A window lets a
position see itself and the window − 1 before it; a cap c makes c · tanh(score / c) of each score; sinks are one more
score of each head, whose value is 0. Most layers have none of these three."""


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **told: Any
) -> tuple[Tensor, None]:
    """What transformers calls in each layer: hands over to the ``attend`` that the model was called with."""
    scale = told.get("scaling")
    found = told["attend"](
        module.layer_idx,
        query,
        key,
        value,
        query.shape[-1] ** -0.5 if scale is None else scale,
        told.get("sliding_window"),
        told.get("softcap"),
        told.get("s_aux"),
    )
    return found.transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION_IMPLEMENTATION, _attention)


@contextmanager
def custom_attention(model: nn.Module) -> Iterator[None]:
    """Within it, ``model`` is to be called with an ``attend``, which all its layers then ask."""
    config: Any = model.base_model.config  # pyright: ignore[reportAttributeAccessIssue]
    of = [config, *(c for c in (getattr(config, key, None) for key in getattr(config, "sub_configs", ())) if c)]
    before = [each._attn_implementation_internal for each in of]
    for each in of:
        each._attn_implementation_internal = ATTENTION_IMPLEMENTATION
    try:
        yield
    finally:
        for each, name in zip(of, before, strict=True):
            each._attn_implementation_internal = name


def trunk_states(model: nn.Module, attend: AttentionFunction, **read: Any) -> Float[Tensor, "b t d"]:
    """The model's last hidden states of what it reads (``input_ids`` or ``inputs_embeds``, and ``position_ids``).

    Raises:
        TypeError: the model takes no attention of ours.
    """
    with custom_attention(model):
        return model.base_model(**read, use_cache=False, attend=attend).last_hidden_state  # pyright: ignore[reportCallIssue]
