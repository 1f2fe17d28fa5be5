"""Padded attention over packed sequences: any device, sliding windows, soft caps, sinks, any order of derivative."""

from functools import cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from grape_rl.model.attention import AttentionFunction, AttentionInputs
from grape_rl.model.packing import PackedSequences, spans


def padded_attention(packed: PackedSequences) -> AttentionFunction:
    """Attention with all prefixes as one padded batch and all suffixes as another.

    The keys of a suffix follow a copy of its prefix's keys. A position attends to itself and to earlier positions of
    its segment; a position of a suffix also attends to its whole prefix. Memory grows with
    suffixes x (longest prefix + longest suffix).
    """
    # Indices into the row, positions and masks of the two batches, and the index that restores the row's order.
    device = packed.tokens.device
    prefixes = _index(spans(packed.prefix_lengths), device)
    suffixes = _index(spans(packed.suffix_lengths, sum(packed.prefix_lengths)), device)
    parent = torch.tensor(packed.parent, dtype=torch.long, device=device)
    prefix_positions, suffix_positions = packed.positions[prefixes], packed.positions[suffixes]
    prefix_mask, suffix_mask = (
        _padding_mask(packed.prefix_lengths, device),
        _padding_mask(packed.suffix_lengths, device),
    )
    key_positions, key_mask = suffix_positions, suffix_mask
    if packed.suffix_lengths:
        key_positions = torch.cat([prefix_positions[parent], suffix_positions], dim=1)
        key_mask = torch.cat([prefix_mask[parent], suffix_mask], dim=1)
    inverse = torch.cat([prefix_mask.flatten(), suffix_mask.flatten()]).nonzero()[:, 0]

    @cache
    def attention_masks(window: int | None) -> tuple[Tensor, Tensor]:
        """The attention masks of prefixes and suffixes, shared by all layers with the same window."""
        return (
            _attention_mask(prefix_positions, prefix_positions, prefix_mask, window),
            _attention_mask(suffix_positions, key_positions, key_mask, window),
        )

    def attend(inputs: AttentionInputs) -> Tensor:
        def batch(field: Tensor, index: Tensor) -> Tensor:
            return field[0].index_select(1, index.flatten()).unflatten(1, index.shape).transpose(0, 1)

        def output(index: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
            part = inputs._replace(query=batch(inputs.query, index), key=key, value=value)
            return _masked_attention(part, mask).transpose(1, 2).flatten(0, 1)

        prefix_attention_mask, suffix_attention_mask = attention_masks(inputs.window)
        keys, values = batch(inputs.key, prefixes), batch(inputs.value, prefixes)
        parts = [output(prefixes, keys, values, prefix_attention_mask)]
        if packed.suffix_lengths:
            keys = torch.cat([keys[parent], batch(inputs.key, suffixes)], dim=2)
            values = torch.cat([values[parent], batch(inputs.value, suffixes)], dim=2)
            parts.append(output(suffixes, keys, values, suffix_attention_mask))
        return torch.cat(parts).index_select(0, inverse).transpose(0, 1)[None]

    return attend


def _masked_attention(inputs: AttentionInputs, mask: Bool[Tensor, "b 1 q k"]) -> Float[Tensor, "b h q e"]:
    """softmax(scale · q · kᵀ) · v under an attention mask, with the soft cap and sinks of the inputs."""
    _, query, key, value, scale, _, softcap, sinks = inputs
    shared = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(shared, dim=1), value.repeat_interleave(shared, dim=1)
    if softcap is None and sinks is None:
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    scores = query @ key.transpose(-1, -2) * scale
    scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    if sinks is not None:
        scores = torch.cat([scores, sinks.to(scores)[:, None, None].expand(*scores.shape[:-1], 1)], dim=-1)
    weights = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value.dtype)
    return weights[..., : key.shape[2]] @ value


def _index(segments: list[slice], device: torch.device) -> Int[Tensor, "b w"]:
    """The row's indices of each segment, padded on the right with its first index."""
    width = max((s.stop - s.start for s in segments), default=0)
    rows = [pad(torch.arange(s.start, s.stop), (0, width - (s.stop - s.start)), value=s.start) for s in segments]
    return (torch.stack(rows) if rows else torch.zeros(0, 0, dtype=torch.long)).to(device)


def _padding_mask(lengths: tuple[int, ...], device: torch.device) -> Bool[Tensor, "b w"]:
    """True for real positions, False for padding."""
    return torch.arange(max(lengths, default=0), device=device) < torch.tensor(lengths, device=device)[:, None]


def _attention_mask(
    positions: Int[Tensor, "b q"], keys: Int[Tensor, "b k"], padding_mask: Bool[Tensor, "b k"], window: int | None
) -> Bool[Tensor, "b 1 q k"]:
    """True where a position attends to a key: one that is real, not later, and within the window."""
    distance = positions[:, :, None] - keys[:, None]
    mask = (distance >= 0) & padding_mask[:, None]
    return (mask if window is None else mask & (distance < window))[:, None]
