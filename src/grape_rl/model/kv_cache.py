"""KV cache for sampling: a prompt's keys and values are stored once for all its rows; each row has its own for tokens.

``prefill`` computes the keys and values of the prompts; ``KVCache`` holds them and those of the sampled tokens, and
computes the attention of each decode step.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from grape_rl.model.attention import AttentionFunction, AttentionInputs, trunk_states
from grape_rl.model.cpu_attention import packed_attention
from grape_rl.model.packing import pack_prompts

PREFILL_TOKENS = 8192
"""The number of prompt tokens in one prefill pass, which bounds the memory of its activations."""


@dataclass(frozen=True)
class PrefilledPrompts:
    """The keys and values of p prompts in each layer, and the hidden state after each prompt.

    Keys and values are padded to the longest prompt; their contents after a prompt's length are arbitrary.
    """

    keys: list[Float[Tensor, "p g l d"]]
    values: list[Float[Tensor, "p g l e"]]
    lengths: Int[Tensor, " p"]
    last_hidden: Float[Tensor, "p m"]


def prefill(model: nn.Module, prompts: Sequence[Int[Tensor, " _"]], tokens: int = PREFILL_TOKENS) -> PrefilledPrompts:
    """The prompts' keys and values, computed in passes of at most ``tokens`` tokens (or of one longer prompt).

    Raises:
        TypeError: the model does not support custom attention, or has layers whose cache is not keys and values.
    """
    device = prompts[0].device
    sizes = [len(prompt) for prompt in prompts]
    recorded: tuple[dict[int, Tensor], dict[int, Tensor]] = ({}, {})
    last_hidden: list[Tensor] = []
    for batch in _batches(sizes, tokens):
        packed = pack_prompts([prompts[i] for i in batch])
        attend = partial(_record, packed_attention(packed), recorded, batch, sizes)
        hidden = trunk_states(model, attend, input_ids=packed.tokens[None], position_ids=packed.positions[None])
        last_hidden.append(hidden[0, packed.predictor[:, 0]])
    layers: int = model.config.get_text_config().num_hidden_layers  # pyright: ignore
    keys, values = recorded
    if sorted(keys) != list(range(layers)):
        raise TypeError(f"{len(keys)} of its {layers} layers have keys and values of their own")
    return PrefilledPrompts(
        [keys[i] for i in range(layers)],
        [values[i] for i in range(layers)],
        torch.tensor(sizes, device=device),
        torch.cat(last_hidden),
    )


def _record(
    attend: AttentionFunction,
    recorded: tuple[dict[int, Tensor], dict[int, Tensor]],
    batch: range,
    sizes: Sequence[int],
    inputs: AttentionInputs,
) -> Tensor:
    """The output of ``attend``; also writes the keys and values of a ``batch`` of prompts to ``recorded``."""
    for fields, new in zip(recorded, (inputs.key, inputs.value), strict=True):
        parts = _upcast(_autocast(new))[0].split([sizes[i] for i in batch], dim=1)
        if inputs.layer not in fields:
            fields[inputs.layer] = parts[0].new_zeros(len(sizes), len(parts[0]), max(sizes), new.shape[3])
        for i, part in zip(batch, parts, strict=True):
            fields[inputs.layer][i, :, : sizes[i]] = part
    return attend(inputs)


def _batches(sizes: Sequence[int], tokens: int) -> list[range]:
    """The prompts' numbers, in order, in batches of at most ``tokens`` tokens (or of one longer prompt)."""
    batches, first, total = list[range](), 0, 0
    for i, size in enumerate(sizes):
        if i > first and total + size > tokens:
            batches.append(range(first, i))
            first, total = i, 0
        total += size
    return [*batches, range(first, len(sizes))]


def _weights(scores: Float[Tensor, "*q k"], sinks: Float[Tensor, "..."] | None) -> Float[Tensor, "*q k"]:
    """The attention weights: softmax of the scores and of a sink, whose own weight is dropped."""
    if sinks is None:
        return scores.softmax(dim=-1)
    sink = sinks.to(scores).expand(*scores.shape[:-1], 1)
    return torch.cat([scores, sink], dim=-1).softmax(dim=-1)[..., :-1].contiguous()


def _attends(position: Tensor, key: Tensor, window: int | None) -> Tensor:
    """True where ``position`` attends to ``key``: one that is not later, and within the window."""
    mask = key <= position
    return mask if window is None else mask & (key > position - window)


def _autocast(tensor: Tensor) -> Tensor:
    """The tensor in autocast's type, as autocast casts the inputs of attention."""
    kind = tensor.device.type
    return tensor.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else tensor


def _upcast(tensor: Tensor) -> Tensor:
    """The tensor in a type whose products accumulate in float32: 16-bit types become float32 on a CPU."""
    return tensor.float() if tensor.device.type == "cpu" and tensor.dtype in (torch.bfloat16, torch.float16) else tensor


class KVCache:
    """The keys and values of a running batch. Those of a prompt are stored and multiplied once for all its rows.

    Row r answers prompt ``group[r]`` and has at most ``limit`` tokens. Rows are gathered into slots, prompt by prompt.
    Each prompt has as many slots as the largest number of rows of one prompt; unused slots repeat a row. Query heads
    that share a key head are adjacent, so that the rows and heads of a prompt form one matrix.
    """

    def __init__(self, prompts: PrefilledPrompts, group: Int[Tensor, " b"], limit: int) -> None:
        self._prompts, self._limit = prompts, limit
        self._own: dict[int, tuple[Tensor, Tensor]] = {}
        self._assign_slots(group)

    def _assign_slots(self, group: Int[Tensor, " b"]) -> None:
        """Assign each row a slot of its prompt."""
        self._group, p = group, len(self._prompts.lengths)
        order = group.argsort(stable=True)
        count = group.bincount(minlength=p)
        self._width = width = int(count.max())
        nth = torch.arange(len(group), device=group.device) - (count.cumsum(0) - count)[group[order]]
        self._row = group.new_zeros(p, width).index_put((group[order], nth), order)
        self._slot = torch.empty_like(group).index_put((order,), nth)
        self._index: dict[int, tuple[Tensor, Tensor]] = {}

    def _indices(self, g: int) -> tuple[Int[Tensor, " s"], Int[Tensor, " n"]]:
        """The indices from rows with ``g`` key heads each to slots (prompt, head, slot), and back."""
        if g not in self._index:
            head = torch.arange(g, device=self._row.device)
            slots = self._row[:, None] * g + head[:, None]
            rows = (self._group[:, None] * g + head) * self._width + self._slot[:, None]
            self._index[g] = slots.flatten(), rows.flatten()
        return self._index[g]

    def begin_step(self, token: Int[Tensor, "1"], room: int) -> None:
        """Begin the decode step of each row's token number ``token``, a tensor on the device, less than ``room``."""
        self._token, self._room = token, room
        self._masks: dict[int | None, Tensor] = {}

    def _mask(self, window: int | None, dtype: torch.dtype) -> Float[Tensor, "p 1 k"]:
        """The additive attention mask of the step's token over its prompt and its row: 0 or −inf."""
        if window not in self._masks:
            lengths, longest = self._prompts.lengths[:, None], self._prompts.keys[0].shape[2]
            prompt = torch.arange(longest, device=lengths.device)
            own = torch.arange(self._room, device=lengths.device)
            mask = torch.cat(
                [
                    (prompt < lengths) & _attends(lengths + self._token, prompt, window),
                    _attends(self._token, own, window).expand(len(lengths), -1),
                ],
                dim=1,
            )
            self._masks[window] = torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, -torch.inf)[:, None]
        return self._masks[window]

    def attend(self, inputs: AttentionInputs) -> Float[Tensor, "b h 1 e"]:
        """The attention of each row's token to its prompt and to its own tokens, itself included: one softmax."""
        query, key, value = (_upcast(_autocast(field)) for field in (inputs.query, inputs.key, inputs.value))
        with _without_autocast(query.device.type):
            return self._attend(inputs._replace(query=query, key=key, value=value))

    def _attend(self, inputs: AttentionInputs) -> Tensor:
        layer, query, key, value, scale, window, softcap, sinks = inputs
        # Write the step's keys and values into the rows' own cache.
        (b, h, _, d), (_, g, _, e) = query.shape, value.shape
        slots, rows = self._indices(g)
        s, p = len(slots), len(self._prompts.lengths)
        if layer not in self._own:
            self._own[layer] = key.new_zeros(s, self._limit, d), value.new_zeros(s, self._limit, e)
        own_keys, own_values = self._own[layer]
        own_keys.index_copy_(1, self._token, key.reshape(b * g, 1, d).index_select(0, slots))
        own_values.index_copy_(1, self._token, value.reshape(b * g, 1, e).index_select(0, slots))
        keys, values = self._prompts.keys[layer].flatten(0, 1), self._prompts.values[layer].flatten(0, 1)
        n = keys.shape[1]

        # Scores over the prompt's n positions, then over the row's own tokens.
        queries = query.reshape(b * g, h // g * d).index_select(0, slots)
        scores = torch.cat(
            [
                _scores(queries.view(p * g, -1, d), keys).view(s, h // g, n),
                _scores(queries.view(s, -1, d), own_keys[:, : self._room]),
            ],
            dim=-1,
        )
        if softcap:
            scores, scale = (scores * (scale / softcap)).tanh(), softcap
        scores = torch.add(self._mask(window, scores.dtype), scores.view(p, -1, scores.shape[-1]), alpha=scale)
        if sinks is not None:
            sinks = sinks.view(g, 1, h // g, 1).expand(-1, self._width, -1, -1).reshape(-1, 1)

        # One softmax over both, and the weighted sum of both values.
        weights = _weights(scores, sinks).to(value.dtype)
        out = torch.bmm(weights.view(p * g, -1, weights.shape[-1])[..., :n], values).view(s, -1, e)
        out = torch.baddbmm(out, weights.view(s, -1, weights.shape[-1])[..., n:], own_values[:, : self._room])
        return out.view(s, h // g * e).index_select(0, rows).view(b, h, 1, e)

    def keep_rows(self, rows: Int[Tensor, " n"]) -> None:
        """Keep only these rows, and only the prompts that they answer."""
        old, slot, width = self._group[rows], self._slot[rows], self._width
        used, group = old.unique(return_inverse=True)
        before, p = self._prompts, len(self._prompts.lengths)
        if len(used) < p:
            self._prompts = PrefilledPrompts(
                [keys[used] for keys in before.keys],
                [values[used] for values in before.values],
                before.lengths[used],
                before.last_hidden[used],
            )
        self._assign_slots(group)
        source = (used[:, None], slot[self._row])  # the old prompt and slot that each new slot takes over
        for layer, own in self._own.items():
            slotted = (field.view(p, -1, width, *field.shape[1:])[source[0], :, source[1]] for field in own)
            keys, values = (field.transpose(1, 2).flatten(0, 2) for field in slotted)
            self._own[layer] = keys, values


def _scores(query: Float[Tensor, "n q d"], key: Float[Tensor, "n k d"]) -> Float[Tensor, "n q k"]:
    """q · kᵀ; of 16-bit types, accumulated and returned in float32."""
    if query.dtype in (torch.bfloat16, torch.float16):
        return torch.bmm(query, key.transpose(1, 2), out_dtype=torch.float32)
    return torch.bmm(query, key.transpose(1, 2))


def _without_autocast(kind: str) -> AbstractContextManager[Any]:
    """A context without autocast, which would round the upcast tensors again."""
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()
