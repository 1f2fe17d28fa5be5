"""Attention over a forest on a CPU, part by part: nothing is padded, and no keys are copied to rows that share them.

A branch's attention to its stem, and to itself, are two calls of torch's own fused kernel, each with the logarithm of
its sum of exponentials. The two outputs, weighted by these sums, are the whole. In backward the same kernel, given the
whole output and the whole sum, finds each part's share of the gradient.
"""

from typing import Any

import torch
from torch import Tensor

from grape_rl.model.attention import AttentionFunction
from grape_rl.model.packing import PackedSequences, spans
from grape_rl.model.padded_attention import padded_attention

_forward: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def packed_attention(forest: PackedSequences) -> AttentionFunction:
    """The attention that suits the device that the forest is on."""
    return cpu_attention(forest) if forest.tokens.device.type == "cpu" else padded_attention(forest)


def cpu_attention(forest: PackedSequences) -> AttentionFunction:
    """Attention as ``padded`` finds it, differentiable once; layers with a window, a cap or sinks are left to that."""
    pieces = _pieces(forest)
    other: list[AttentionFunction] = []

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
        if (window is not None and window < forest.longest) or cap is not None or sinks is not None:
            if not other:
                other.append(padded_attention(forest))
            return other[0](layer, query, key, value, scale, window, cap, sinks)
        if torch.is_autocast_enabled("cpu"):
            query, key, value = (field.to(torch.get_autocast_dtype("cpu")) for field in (query, key, value))
        return _ByParts.apply(query, key, value, scale, pieces)  # pyright: ignore[reportReturnType]

    return attend


_Piece = tuple[slice, slice, bool]
"""Queries, keys, and whether these are the same places, each seeing itself and what stands before it."""


def _pieces(forest: PackedSequences) -> list[_Piece]:
    """What sees what. A place that stands in two pieces is a branch's, and finds its own branch first."""
    stems, branches = spans(forest.stems), spans(forest.branches, sum(forest.stems))
    pieces: list[_Piece] = [(each, each, True) for each in (*stems, *branches)]
    for s, stem in enumerate(stems):
        mine = [branch for branch, p in zip(branches, forest.parent, strict=True) if p == s]
        if mine:
            pieces.append((slice(mine[0].start, mine[-1].stop), stem, False))
    return pieces


class _ByParts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, pieces: list[_Piece]) -> Tensor:
        shared = query.shape[1] // key.shape[1]
        q, k, v = _grouped(query, shared), _spread(key, shared), _spread(value, shared)
        shape = (q.shape[2], q.shape[1], shared)  # as the layers write it: by place, then by head
        out = q.new_empty(*shape, v.shape[-1]).permute(2, 1, 0, 3)
        norm = q.new_empty(shape, dtype=torch.promote_types(q.dtype, torch.float32)).permute(2, 1, 0)
        for at, of, causal in pieces:
            found, total = _forward(q[:, :, at], k[:, :, of], v[:, :, of], 0.0, causal, scale=scale)
            if not causal:
                whole = torch.logaddexp(norm[:, :, at], total)
                mine, stems = ((part - whole).exp()[..., None] for part in (norm[:, :, at], total))
                found, total = found * stems + out[:, :, at] * mine, whole
            out[:, :, at], norm[:, :, at] = found, total
        ctx.save_for_backward(query, key, value, out, norm)
        ctx.scale, ctx.pieces = scale, pieces
        return _ungrouped(out)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # the kernel's gradient is no function to autograd: it would be wrong in silence
            raise RuntimeError("attention by parts can be differentiated once only (create_graph=True was asked for)")
        query, key, value, out, norm = ctx.saved_tensors
        shared = query.shape[1] // key.shape[1]
        q, k, v, g = _grouped(query, shared), _spread(key, shared), _spread(value, shared), _grouped(grads[0], shared)
        of_q, of_k, of_v = (_like(field) for field in (query, key, value))
        into = _grouped(of_q, shared)
        for at, of, causal in ctx.pieces:
            a, b, c = _backward(
                g[:, :, at], q[:, :, at], k[:, :, of], v[:, :, of], out[:, :, at], norm[:, :, at], 0.0, causal,
                scale=ctx.scale,
            )  # fmt: skip
            if causal:
                into[:, :, at], of_k[0, :, of], of_v[0, :, of] = a, b.sum(dim=0), c.sum(dim=0)
            else:
                into[:, :, at] += a
                of_k[0, :, of] += b.sum(dim=0)
                of_v[0, :, of] += c.sum(dim=0)
        return of_q, of_k, of_v, None, None


def _grouped(query: Tensor, shared: int) -> Tensor:
    """1 x (g · shared) heads x n x d as shared x g x n x d, without a copy: queries that share a key head lie apart."""
    return query[0].unflatten(0, (-1, shared)).transpose(0, 1)


def _ungrouped(out: Tensor) -> Tensor:
    return out.transpose(0, 1).flatten(0, 1)[None]


def _spread(field: Tensor, shared: int) -> Tensor:
    """Key heads, each ``shared`` times, without a copy."""
    return field.expand(shared, -1, -1, -1)


def _like(field: Tensor) -> Tensor:
    """Room for a gradient that lies in memory as the layers write their fields: by place, then by head."""
    b, h, n, d = field.shape
    return field.new_empty(b, n, h, d).transpose(1, 2)
