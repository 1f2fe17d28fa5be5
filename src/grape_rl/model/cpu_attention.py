"""Flash attention over packed sequences on a CPU, segment by segment: no padding, and no copies of shared keys.

A suffix attends to its prefix and to itself in two calls of torch's fused flash-attention kernel, each of which also
returns the log-sum-exp of its scores. The two outputs, weighted by their shares of the total, give the whole output. In
backward, the same kernel, given the whole output and the total log-sum-exp, computes each part's gradient.
"""

from typing import Any

import torch
from torch import Tensor

from grape_rl.model.attention import AttentionFunction, AttentionInputs
from grape_rl.model.packing import PackedSequences, spans
from grape_rl.model.padded_attention import padded_attention

_forward: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def packed_attention(packed: PackedSequences) -> AttentionFunction:
    """The attention for packed sequences on their device: ``cpu_attention`` or ``padded_attention``."""
    return cpu_attention(packed) if packed.tokens.device.type == "cpu" else padded_attention(packed)


def cpu_attention(packed: PackedSequences) -> AttentionFunction:
    """Equal to ``padded_attention``, but differentiable once. Layers with a window, soft cap or sinks use that."""
    blocks = _blocks(packed)
    fallback: list[AttentionFunction] = []

    def attend(inputs: AttentionInputs) -> Tensor:
        _, query, key, value, scale, window, softcap, sinks = inputs
        if (window is not None and window < packed.max_length) or softcap is not None or sinks is not None:
            if not fallback:
                fallback.append(padded_attention(packed))
            return fallback[0](inputs)
        if torch.is_autocast_enabled("cpu"):
            query, key, value = (field.to(torch.get_autocast_dtype("cpu")) for field in (query, key, value))
        return _BlockAttention.apply(query, key, value, scale, blocks)  # pyright: ignore[reportReturnType]

    return attend


_Block = tuple[slice, slice, bool]
"""The queries and keys of one kernel call, and whether it is causal: queries and keys are then the same positions."""


def _blocks(packed: PackedSequences) -> list[_Block]:
    """The blocks of the attention matrix. A suffix's causal block comes before the block of its prefix."""
    prefixes, suffixes = spans(packed.prefix_lengths), spans(packed.suffix_lengths, sum(packed.prefix_lengths))
    blocks: list[_Block] = [(segment, segment, True) for segment in (*prefixes, *suffixes)]
    for p, prefix in enumerate(prefixes):
        own = [suffix for suffix, parent in zip(suffixes, packed.parent, strict=True) if parent == p]
        if own:
            blocks.append((slice(own[0].start, own[-1].stop), prefix, False))
    return blocks


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, blocks: list[_Block]) -> Tensor:
        # Query heads that share a key head form the batch. Memory layout as in the layers: by position, then by head.
        shared = query.shape[1] // key.shape[1]
        q, k, v = _grouped(query, shared), _expanded(key, shared), _expanded(value, shared)
        shape = (q.shape[2], q.shape[1], shared)
        out = q.new_empty(*shape, v.shape[-1]).permute(2, 1, 0, 3)
        norm = q.new_empty(shape, dtype=torch.promote_types(q.dtype, torch.float32)).permute(2, 1, 0)
        for queries, keys, causal in blocks:
            block, lse = _forward(q[:, :, queries], k[:, :, keys], v[:, :, keys], 0.0, causal, scale=scale)
            if not causal:
                total = torch.logaddexp(norm[:, :, queries], lse)
                own, prefix = ((part - total).exp()[..., None] for part in (norm[:, :, queries], lse))
                block, lse = block * prefix + out[:, :, queries] * own, total
            out[:, :, queries], norm[:, :, queries] = block, lse
        ctx.save_for_backward(query, key, value, out, norm)
        ctx.scale, ctx.blocks = scale, blocks
        return _ungrouped(out)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # autograd cannot differentiate the kernel's gradient: it would be silently wrong
            raise RuntimeError("CPU attention can be differentiated once only (create_graph=True was requested)")
        query, key, value, out, norm = ctx.saved_tensors
        shared = query.shape[1] // key.shape[1]
        q, k, v = _grouped(query, shared), _expanded(key, shared), _expanded(value, shared)
        g = _grouped(grads[0], shared)
        grad_query, grad_key, grad_value = (_empty_like(field) for field in (query, key, value))
        grad_q = _grouped(grad_query, shared)
        for queries, keys, causal in ctx.blocks:
            dq, dk, dv = _backward(
                g[:, :, queries], q[:, :, queries], k[:, :, keys], v[:, :, keys], out[:, :, queries],
                norm[:, :, queries], 0.0, causal, scale=ctx.scale,
            )  # fmt: skip
            if causal:
                grad_q[:, :, queries], grad_key[0, :, keys], grad_value[0, :, keys] = dq, dk.sum(dim=0), dv.sum(dim=0)
            else:
                grad_q[:, :, queries] += dq
                grad_key[0, :, keys] += dk.sum(dim=0)
                grad_value[0, :, keys] += dv.sum(dim=0)
        return grad_query, grad_key, grad_value, None, None


def _grouped(query: Tensor, shared: int) -> Tensor:
    """A view of 1 x (g · shared) heads x n x d as shared x g x n x d: a batch of query heads per key head."""
    return query[0].unflatten(0, (-1, shared)).transpose(0, 1)


def _ungrouped(out: Tensor) -> Tensor:
    return out.transpose(0, 1).flatten(0, 1)[None]


def _expanded(field: Tensor, shared: int) -> Tensor:
    """A view of key heads, each repeated ``shared`` times."""
    return field.expand(shared, -1, -1, -1)


def _empty_like(field: Tensor) -> Tensor:
    """An empty gradient in the memory layout of the layers: by position, then by head."""
    b, h, n, d = field.shape
    return field.new_empty(b, n, h, d).transpose(1, 2)
