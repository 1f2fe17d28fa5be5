"""Attention over a forest by padding: any device, windows, caps and sinks, any number of derivatives."""

from functools import cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from grape_rl.model.attention import AttentionFunction
from grape_rl.model.packing import PackedSequences, spans


def padded_attention(forest: PackedSequences) -> AttentionFunction:
    """Attention in which all stems are one batch, and all branches another, whose keys follow a copy of their stem's.

    What is visible: to a position of a stem, itself and what stands before it there; to one of a branch also all of
    its stem. Memory grows with branches x (longest stem + longest branch).
    """
    device = forest.tokens.device
    stems = _index(spans(forest.stems), device)
    branches = _index(spans(forest.branches, sum(forest.stems)), device)
    parent = torch.tensor(forest.parent, dtype=torch.long, device=device)
    at_stems, at_branches = forest.positions[stems], forest.positions[branches]
    at_keys = torch.cat([at_stems[parent], at_branches], dim=1) if forest.branches else at_branches
    real_stems, real_branches = _real(forest.stems, device), _real(forest.branches, device)
    real_keys = torch.cat([real_stems[parent], real_branches], dim=1) if forest.branches else real_branches
    inverse = torch.cat([real_stems.flatten(), real_branches.flatten()]).nonzero()[:, 0]

    @cache
    def visible(window: int | None) -> tuple[Tensor, Tensor]:
        """To stems, and to branches: the same in all layers of one window."""
        return (
            _visible(at_stems, at_stems, real_stems, window),
            _visible(at_branches, at_keys, real_keys, window),
        )

    def attend(
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        window: int | None,
        cap: float | None,
        sinks: Tensor | None,
    ) -> Tensor:
        def batch(field: Tensor, index: Tensor) -> Tensor:
            return field[0].index_select(1, index.flatten()).unflatten(1, index.shape).transpose(0, 1)

        def found(index: Tensor, key: Tensor, value: Tensor, seen: Tensor) -> Tensor:
            out = _softmax(batch(query, index), key, value, seen, scale, cap, sinks)
            return out.transpose(1, 2).flatten(0, 1)

        to_stems, to_branches = visible(window)
        keys, values = batch(key, stems), batch(value, stems)
        parts = [found(stems, keys, values, to_stems)]
        if forest.branches:
            keys = torch.cat([keys[parent], batch(key, branches)], dim=2)
            values = torch.cat([values[parent], batch(value, branches)], dim=2)
            parts.append(found(branches, keys, values, to_branches))
        return torch.cat(parts).index_select(0, inverse).transpose(0, 1)[None]

    return attend


def _softmax(
    query: Float[Tensor, "b h q d"],
    key: Float[Tensor, "b g k d"],
    value: Float[Tensor, "b g k e"],
    visible: Bool[Tensor, "b 1 q k"],
    scale: float,
    cap: float | None,
    sinks: Float[Tensor, " h"] | None,
) -> Float[Tensor, "b h q e"]:
    """softmax(scale · q · kᵀ) · v. A sink is one more score, of each head, whose value is 0."""
    shared = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(shared, dim=1), value.repeat_interleave(shared, dim=1)
    if cap is None and sinks is None:
        return scaled_dot_product_attention(query, key, value, attn_mask=visible, scale=scale)
    scores = query @ key.transpose(-1, -2) * scale
    scores = scores if cap is None else cap * torch.tanh(scores / cap)
    scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
    if sinks is not None:
        scores = torch.cat([scores, sinks.to(scores)[:, None, None].expand(*scores.shape[:-1], 1)], dim=-1)
    return (
        scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value.dtype)[
            ..., : key.shape[2]
        ]
        @ value
    )


def _index(parts: list[slice], device: torch.device) -> Int[Tensor, "b w"]:
    """The places of each part, padded on the right with its first."""
    width = max((p.stop - p.start for p in parts), default=0)
    rows = [pad(torch.arange(p.start, p.stop), (0, width - (p.stop - p.start)), value=p.start) for p in parts]
    return (torch.stack(rows) if rows else torch.zeros(0, 0, dtype=torch.long)).to(device)


def _real(sizes: tuple[int, ...], device: torch.device) -> Bool[Tensor, "b w"]:
    return torch.arange(max(sizes, default=0), device=device) < torch.tensor(sizes, device=device)[:, None]


def _visible(
    places: Int[Tensor, "b q"], keys: Int[Tensor, "b k"], real: Bool[Tensor, "b k"], window: int | None
) -> Bool[Tensor, "b 1 q k"]:
    """Which keys each position sees: real ones, nowhere behind it, and within the window."""
    back = places[:, :, None] - keys[:, None]
    seen = (back >= 0) & real[:, None]
    return (seen if window is None else seen & (back < window))[:, None]
