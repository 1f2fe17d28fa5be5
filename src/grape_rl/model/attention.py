"""Custom attention in a transformers model: the caller of the model computes the attention of every layer.

It is registered with transformers as an attention implementation for which no attention mask is created. The caller
decides which keys each query attends to.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface

ATTENTION_IMPLEMENTATION = "grape_rl"
"""The name of the implementation in transformers, its ``attn_implementation``."""


class AttentionInputs(NamedTuple):
    """The inputs of one layer's attention: softmax(scale · q · kᵀ) · v over the keys that each query may attend to.

    Attributes:
        layer: the layer's number, from 0.
        query: queries of h heads.
        key: keys of g heads. With grouped-query attention g < h, and h / g adjacent query heads share a key head.
        value: values of g heads.
        scale: factor on the scores.
        window: size of a sliding window: a position attends to itself and the window − 1 positions before it.
        softcap: cap c on the scores: c · tanh(score / c).
        sinks: one additional score per query head, whose value is 0.
    """

    layer: int
    query: Float[Tensor, "b h q d"]
    key: Float[Tensor, "b g k d"]
    value: Float[Tensor, "b g k e"]
    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks: Float[Tensor, " h"] | None = None


AttentionFunction = Callable[[AttentionInputs], Float[Tensor, "b h q e"]]
"""Computes the output of one layer's attention."""


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """The function that transformers calls in each layer: delegates to the ``attend`` passed to the model."""
    scale = options.get("scaling")
    inputs = AttentionInputs(
        module.layer_idx,
        query,
        key,
        value,
        query.shape[-1] ** -0.5 if scale is None else scale,
        options.get("sliding_window"),
        options.get("softcap"),
        options.get("s_aux"),
    )
    return options["attend"](inputs).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION_IMPLEMENTATION, _attention)


@contextmanager
def custom_attention(model: nn.Module) -> Iterator[None]:
    """Within this context, ``model`` must be called with an ``attend`` function, which all its layers use."""
    config: Any = model.base_model.config  # pyright: ignore[reportAttributeAccessIssue]
    parts = [getattr(config, key, None) for key in getattr(config, "sub_configs", ())]
    configs = [config, *(part for part in parts if part)]
    before = [part._attn_implementation_internal for part in configs]
    for part in configs:
        part._attn_implementation_internal = ATTENTION_IMPLEMENTATION
    try:
        yield
    finally:
        for part, implementation in zip(configs, before, strict=True):
            part._attn_implementation_internal = implementation


def trunk_states(model: nn.Module, attend: AttentionFunction, **inputs: Any) -> Float[Tensor, "b t d"]:
    """The last hidden states of the model's trunk for ``input_ids`` or ``inputs_embeds``, and ``position_ids``.

    Raises:
        TypeError: the model does not support custom attention.
    """
    with custom_attention(model):
        return model.base_model(**inputs, use_cache=False, attend=attend).last_hidden_state  # pyright: ignore[reportCallIssue]
