"""Keys and values of rows that are being written: each prompt's once, and each row's own in room that is there."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from grape_rl.model.attention import AttentionFunction, trunk_states
from grape_rl.model.cpu_attention import packed_attention
from grape_rl.model.packing import pack_prompts

PREFILL_TOKENS = 8192
"""How many positions of prompts are encoded at a time: what their activations hold in memory."""


@dataclass(frozen=True)
class PrefilledPrompts:
    """Prompts that a model has read: keys and values of each layer, junk beyond a prompt's length, and the hidden state
    after each prompt."""

    keys: list[Float[Tensor, "p g l d"]]
    values: list[Float[Tensor, "p g l e"]]
    lengths: Int[Tensor, " p"]
    last: Float[Tensor, "p m"]


def prefill(
    model: nn.Module, prompts: Sequence[Int[Tensor, " _"]], positions: int = PREFILL_TOKENS
) -> PrefilledPrompts:
    """Each prompt read once, about ``positions`` at a time (or one prompt that is longer).

    Raises:
        TypeError: the model takes no attention of ours, or has layers that keep something else than keys and values.
    """
    device = prompts[0].device
    sizes = [len(prompt) for prompt in prompts]
    kept: tuple[dict[int, Tensor], dict[int, Tensor]] = ({}, {})
    last: list[Tensor] = []
    for batch in _batches(sizes, positions):
        forest = pack_prompts([prompts[i] for i in batch])
        attend = partial(_recorded, packed_attention(forest), kept, batch, sizes)
        hidden = trunk_states(model, attend, input_ids=forest.tokens[None], position_ids=forest.positions[None])
        last.append(hidden[0, forest.before[:, 0]])
    layers: int = model.config.get_text_config().num_hidden_layers  # pyright: ignore
    keys, values = kept
    if sorted(keys) != list(range(layers)):
        raise TypeError(f"{len(keys)} of its {layers} layers have keys and values of their own")
    return PrefilledPrompts(
        [keys[i] for i in range(layers)],
        [values[i] for i in range(layers)],
        torch.tensor(sizes, device=device),
        torch.cat(last),
    )


def _recorded(
    attend: AttentionFunction,
    kept: tuple[dict[int, Tensor], dict[int, Tensor]],
    batch: range,
    sizes: Sequence[int],
    layer: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *told: Any,
) -> Tensor:
    """What ``attend`` finds; the keys and values of the ``batch`` of prompts are written to what is ``kept``."""
    for fields, new in zip(kept, (key, value), strict=True):
        parts = _precise(_rounded(new))[0].split([sizes[i] for i in batch], dim=1)
        if layer not in fields:
            fields[layer] = parts[0].new_zeros(len(sizes), len(parts[0]), max(sizes), new.shape[3])
        for i, part in zip(batch, parts, strict=True):
            fields[layer][i, :, : sizes[i]] = part
    return attend(layer, query, key, value, *told)


def _batches(sizes: Sequence[int], positions: int) -> list[range]:
    """The prompts by number, in their order, in batches of at most ``positions`` (or of one that is longer)."""
    batches, first, taken = list[range](), 0, 0
    for i, size in enumerate(sizes):
        if i > first and taken + size > positions:
            batches.append(range(first, i))
            first, taken = i, 0
        taken += size
    return [*batches, range(first, len(sizes))]


def _shares(scores: Float[Tensor, "*q k"], sinks: Float[Tensor, "..."] | None) -> Float[Tensor, "*q k"]:
    """Softmax of the scores, and of a sink beside them that takes its share and gives nothing."""
    if sinks is None:
        return scores.softmax(dim=-1)
    beside = sinks.to(scores).expand(*scores.shape[:-1], 1)
    return torch.cat([scores, beside], dim=-1).softmax(dim=-1)[..., :-1].contiguous()


def _seen(position: Tensor, other: Tensor, window: int | None) -> Tensor:
    """Whether ``position`` sees the ``other``: what is no later, and in its window."""
    seen = other <= position
    return seen if window is None else seen & (other > position - window)


def _rounded(tensor: Tensor) -> Tensor:
    """As autocast hands it to attention."""
    kind = tensor.device.type
    return tensor.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else tensor


def _precise(tensor: Tensor) -> Tensor:
    """In a type whose products keep their sums: on CPU, 16 bits are multiplied as float32."""
    return tensor.float() if tensor.device.type == "cpu" and tensor.dtype in (torch.bfloat16, torch.float16) else tensor


class KVCache:
    """What a running batch attends to. Each prompt's keys and values are stored and multiplied once for all its rows.

    Row r answers prompt ``group[r]`` and may write up to ``limit`` tokens. Its queries, keys and values are gathered
    into slots, prompt by prompt, each with as many as the most that one prompt's rows take; those left over repeat a
    row. Heads that share a key stand side by side, so that a prompt's rows and heads are one matrix.
    """

    def __init__(self, prompts: PrefilledPrompts, group: Int[Tensor, " b"], limit: int) -> None:
        self._prompts, self._limit = prompts, limit
        self._own: dict[int, tuple[Tensor, Tensor]] = {}
        self._place(group)

    def _place(self, group: Int[Tensor, " b"]) -> None:
        """Gives each row a slot."""
        self._group, p = group, len(self._prompts.lengths)
        order = group.argsort(stable=True)
        count = group.bincount(minlength=p)
        self._width = width = int(count.max())
        nth = torch.arange(len(group), device=group.device) - (count.cumsum(0) - count)[group[order]]
        self._row = group.new_zeros(p, width).index_put((group[order], nth), order)
        self._slot = torch.empty_like(group).index_put((order,), nth)
        self._index: dict[int, tuple[Tensor, Tensor]] = {}

    def _indices(self, g: int) -> tuple[Int[Tensor, " s"], Int[Tensor, " n"]]:
        """From rows of ``g`` key heads each to slots (prompt, head, slot), and back."""
        if g not in self._index:
            head = torch.arange(g, device=self._row.device)
            slots = self._row[:, None] * g + head[:, None]
            rows = (self._group[:, None] * g + head) * self._width + self._slot[:, None]
            self._index[g] = slots.flatten(), rows.flatten()
        return self._index[g]

    def begin(self, token: Int[Tensor, "1"], room: int) -> None:
        """From now on each row's token ``token`` (a number on the device, below ``room``) asks."""
        self._token, self._room = token, room
        self._masks: dict[int | None, Tensor] = {}

    def _mask(self, window: int | None, dtype: torch.dtype) -> Float[Tensor, "p 1 k"]:
        """0 where the token sees a position of its prompt or of its row, −inf elsewhere."""
        if window not in self._masks:
            lengths, longest = self._prompts.lengths[:, None], self._prompts.keys[0].shape[2]
            before = torch.arange(longest, device=lengths.device)
            own = torch.arange(self._room, device=lengths.device)
            seen = torch.cat(
                [
                    (before < lengths) & _seen(lengths + self._token, before, window),
                    _seen(self._token, own, window).expand(len(lengths), -1),
                ],
                dim=1,
            )
            self._masks[window] = torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, -torch.inf)[:, None]
        return self._masks[window]

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None,
        cap: float | None, sinks: Tensor | None = None,
    ) -> Float[Tensor, "b h 1 e"]:  # fmt: skip
        """What each row's token finds in its prompt and in its own tokens, itself included: one softmax over both."""
        query, key, value = (_precise(_rounded(each)) for each in (query, key, value))
        with _plain(query.device.type):
            return self._attend(layer, query, key, value, scale, window, cap, sinks)

    def _attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None,
        cap: float | None, sinks: Tensor | None,
    ) -> Tensor:  # fmt: skip
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

        asked = query.reshape(b * g, h // g * d).index_select(0, slots)
        scores = torch.cat(
            [
                _scores(asked.view(p * g, -1, d), keys).view(s, h // g, n),
                _scores(asked.view(s, -1, d), own_keys[:, : self._room]),
            ],
            dim=-1,
        )
        if cap:
            scores, scale = (scores * (scale / cap)).tanh(), cap
        scores = torch.add(self._mask(window, scores.dtype), scores.view(p, -1, scores.shape[-1]), alpha=scale)
        if sinks is not None:
            sinks = sinks.view(g, 1, h // g, 1).expand(-1, self._width, -1, -1).reshape(-1, 1)
        share = _shares(scores, sinks).to(value.dtype)
        found = torch.bmm(share.view(p * g, -1, share.shape[-1])[..., :n], values).view(s, -1, e)
        found = torch.baddbmm(found, share.view(s, -1, share.shape[-1])[..., n:], own_values[:, : self._room])
        return found.view(s, h // g * e).index_select(0, rows).view(b, h, 1, e)

    def keep(self, rows: Int[Tensor, " n"]) -> None:
        """Lets go all other rows, and prompts that no row answers any more."""
        old, slot, width = self._group[rows], self._slot[rows], self._width
        used, group = old.unique(return_inverse=True)
        before, p = self._prompts, len(self._prompts.lengths)
        if len(used) < p:
            self._prompts = PrefilledPrompts(
                [keys[used] for keys in before.keys],
                [values[used] for values in before.values],
                before.lengths[used],
                before.last[used],
            )
        self._place(group)
        chosen = (used[:, None], slot[self._row])  # which old slot each new one takes over
        for layer, kept in self._own.items():
            new = (each.view(p, -1, width, *each.shape[1:])[chosen[0], :, chosen[1]] for each in kept)
            keys, values = (each.transpose(1, 2).flatten(0, 2) for each in new)
            self._own[layer] = keys, values


def _scores(query: Float[Tensor, "n q d"], key: Float[Tensor, "n k d"]) -> Float[Tensor, "n q k"]:
    """q · kᵀ, of 16 bits summed and kept in float32."""
    if query.dtype in (torch.bfloat16, torch.float16):
        return torch.bmm(query, key.transpose(1, 2), out_dtype=torch.float32)
    return torch.bmm(query, key.transpose(1, 2))


def _plain(kind: str) -> AbstractContextManager[Any]:
    """Without autocast, which would round what is precise."""
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()
