"""Fused LM head: from hidden states to token log-probabilities and entropies, without materializing all logits.

The vocabulary is processed in tiles, as in a chunked or fused linear cross-entropy. A tile of logits (all tokens x a
part of the vocabulary) is computed, reduced and discarded, and computed again in backward. On a CPU, a tile fits into
the cache. Recomputation costs a third more products, but less time than writing the logits to memory and reading them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from grape_rl.model.onednn_linear import matmul_nt, padding_multiple

TILE = 2**21
"""The maximum number of logits that exist at once on a CPU: 8 MiB in float32, which fits into a cache."""

ACCELERATOR_TILE = 2**26
"""The maximum on other devices: large enough to amortize the kernel launches of a tile."""

LogitsFunction = Callable[[Float[Tensor, "n d"]], Float[Tensor, "n v"]]


@dataclass(frozen=True)
class LMHead:
    """A model's output layer: logits = capped(scale · (hidden · weightᵀ + bias)), capped(z) = cap · tanh(z / cap)."""

    weight: Float[Tensor, "v d"]
    bias: Float[Tensor, " v"] | None = None
    scale: float = 1.0
    cap: float | None = None


def lm_head_of(model: nn.Module) -> LMHead:
    """The LM head of ``model``. If it has an adapter, the weight includes the adapter's.

    Raises:
        ValueError: the model has no output embeddings, so it is not a causal language model.
    """
    layer, scale, cap = _output_layer(model)
    if isinstance(layer, nn.Linear):
        return LMHead(layer.weight, layer.bias, scale, cap)
    # Any other layer is linear too, since the probe in prepare_model fails otherwise.
    weight = next(layer.parameters())
    width = model.config.get_text_config().hidden_size  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    bias = layer(torch.zeros(1, width, dtype=weight.dtype, device=weight.device))
    return LMHead((layer(torch.eye(width, dtype=weight.dtype, device=weight.device)) - bias).t(), bias[0], scale, cap)


def logits_of(model: nn.Module) -> LogitsFunction:
    """The function from hidden states to logits that ``model`` applies, with its scaling and soft cap.

    Raises:
        ValueError: the model has no output embeddings, so it is not a causal language model.
    """
    layer, scale, cap = _output_layer(model)

    def logits(hidden: Float[Tensor, "n d"]) -> Float[Tensor, "n v"]:
        out = layer(hidden).float() if hidden.dtype in (torch.float16, torch.bfloat16) else layer(hidden)
        out = out * scale if scale != 1.0 else out
        return cap * torch.tanh(out / cap) if cap else out

    return logits


def _output_layer(model: nn.Module) -> tuple[nn.Module, float, float | None]:
    """The output layer, the scale of its logits, and their soft cap."""
    layer = model.get_output_embeddings()  # pyright: ignore[reportCallIssue]
    if layer is None:
        raise ValueError(f"{type(model).__name__} has no output embeddings; use a causal language model")
    config = model.config.get_text_config()  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    scale = getattr(config, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0)
    return layer, scale, getattr(config, "final_logit_softcapping", None) or None


def token_logprobs(
    head: LMHead, hidden: Float[Tensor, "n d"], tokens: Int[Tensor, " n"], temperature: float = 1.0, tile: int = 0
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Log-probability of each token, and the entropy of the distribution it was chosen from.

    logp = log softmax(logits / temperature)[tokens];  entropy = −Σ_v p_v log p_v, in nats.

    At most ``tile`` logits exist at once (0: the device's default), regardless of the number of tokens. Under autocast,
    products use its type, and everything else float32.
    """
    tile = tile or (TILE if hidden.device.type == "cpu" else ACCELERATOR_TILE)
    tiling = _Tiling(temperature, head.scale, head.cap, _product_type(hidden, head.weight), tile)
    n = len(tokens)
    padding = -n % padding_multiple(n) if hidden.device.type == "cpu" else 0
    hidden, tokens = nn.functional.pad(hidden, (0, 0, 0, padding)), nn.functional.pad(tokens, (0, padding))
    parts = [
        _TokenLogprobs.apply(rows, head.weight, head.bias, row_tokens, tiling)
        for rows, row_tokens in zip(hidden.split(max(1, tile // 64)), tokens.split(max(1, tile // 64)), strict=True)
    ]
    logp, entropy = zip(*parts, strict=True)  # pyright: ignore[reportArgumentType]
    return torch.cat(logp)[:n], torch.cat(entropy)[:n]


class _TokenLogprobs(torch.autograd.Function):
    """Log-softmax and entropy as sums over tiles of the vocabulary, and their gradients over the recomputed tiles.

    In backward ∂logp/∂z = 1[v = token] − p and ∂H/∂z = −p (log p + H), z the logits over the temperature.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tensor, tiling: "_Tiling"
    ) -> tuple[Tensor, Tensor]:
        ctx.tiling = tiling
        top, total, first, chosen = _sums(tiling, hidden, weight, bias, tokens)
        norm, entropy = top + total.log(), total.log() - first / total
        ctx.save_for_backward(hidden, weight, bias, tokens, norm, entropy)
        ctx.set_materialize_grads(False)
        return chosen - top - total.log(), entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # p is no function of the logits to autograd: the result would be silently wrong
            raise RuntimeError("log-probabilities can be differentiated once only (create_graph=True was requested)")
        hidden, weight, bias, tokens, norm, entropy = ctx.saved_tensors
        (grad_logp, grad_entropy), needs, tiling = grads, ctx.needs_input_grad, ctx.tiling
        if grad_logp is None and grad_entropy is None:
            return (None,) * 5
        typed = hidden.to(tiling.type)
        grad_hidden = torch.zeros_like(hidden, dtype=norm.dtype) if needs[0] else None
        grad_weight = torch.empty_like(weight) if needs[1] else None
        grad_bias = torch.empty_like(bias) if needs[2] else None
        for part, z in tiling.tiles(hidden, weight, bias):
            # g, the gradient by this tile's logits, in place.
            slope = tiling.slope(z)
            z = _finite(z, bias).sub_(norm[:, None])
            p = z.exp()
            if grad_entropy is None:
                g = p.mul_(-grad_logp[:, None])  # pyright: ignore[reportOptionalSubscript]
            else:
                g = z.add_(entropy[:, None]).mul_(-grad_entropy[:, None])
                g = (g if grad_logp is None else g.sub_(grad_logp[:, None])).mul_(p)
            if grad_logp is not None:
                inside, column = _columns(tokens, part)
                g.scatter_add_(1, column, (grad_logp * inside)[:, None])
            g = (g if slope is None else g.mul_(slope)).to(tiling.type)
            # Its contributions to the gradients of the inputs.
            if grad_hidden is not None:
                grad_hidden += matmul_nt(g, weight[part].to(tiling.type).t())
            if grad_weight is not None:
                grad_weight[part] = matmul_nt(g.t(), typed.t())
            if grad_bias is not None:
                grad_bias[part] = g.sum(dim=0)
        gradients, factor = (grad_hidden, grad_weight, grad_bias), tiling.scale / tiling.temperature
        if factor != 1.0:
            gradients = tuple(None if field is None else field.mul_(factor) for field in gradients)
        return None if gradients[0] is None else gradients[0].to(hidden.dtype), *gradients[1:], None, None


def _sums(
    tiling: "_Tiling", hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For each token's logits z: top = max z, total = Σ e^(z − top), Σ (z − top) e^(z − top), and the token's own z."""
    n = len(tokens)
    total, first, chosen = (torch.zeros(n, dtype=tiling.sum_type, device=tokens.device) for _ in range(3))
    top = torch.full_like(total, torch.finfo(tiling.sum_type).min)
    for part, z in tiling.tiles(hidden, weight, bias):
        inside, column = _columns(tokens, part)
        chosen = torch.where(inside, z.gather(1, column)[:, 0], chosen)
        highest = torch.maximum(top, _finite(z, bias).amax(dim=1))
        z -= highest[:, None]
        e = z.exp()
        shift = (top - highest).clamp_(min=-1e4)  # e^-10000 is 0, and 0 times a finite number is 0
        first = shift.exp() * (first + shift * total) + torch.linalg.vecdot(e, z)
        total = shift.exp() * total + e.sum(dim=1)
        top = highest
    return top, total, first, chosen


def _columns(tokens: Tensor, part: slice) -> tuple[Tensor, Tensor]:
    """True for tokens in a slice of the vocabulary, and each token's column in the slice; any column for other tokens.

    The host reads no value, so that it does not wait for the device.
    """
    inside = (tokens >= part.start) & (tokens < part.stop)
    return inside, (tokens - part.start).clamp(0, part.stop - part.start - 1)[:, None]


def _finite(z: Tensor, bias: Tensor | None) -> Tensor:
    """The logits with −inf replaced by the least finite number, in place: p is 0 for both, but 0 · −inf is NaN.

    Only a bias can rule a token out.
    """
    return z if bias is None else z.clamp_(min=torch.finfo(z.dtype).min)


def _product_type(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """The type of the products: autocast's if it is enabled."""
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind) and weight.dtype == torch.float32:
        return torch.get_autocast_dtype(kind)
    return weight.dtype


@dataclass(frozen=True)
class _Tiling:
    """The map from hidden states to logits over the temperature, and the number of logits in a tile."""

    temperature: float
    scale: float
    cap: float | None
    type: torch.dtype
    tile: int

    @property
    def sum_type(self) -> torch.dtype:
        """The type of the logits and of sums over them: float32, or the products' type if that is wider."""
        return torch.promote_types(self.type, torch.float32)

    def tiles(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Iterator[tuple[slice, Tensor]]:
        """Slices of the vocabulary, and all tokens' logits over the temperature there, which may be overwritten."""
        typed, width = hidden.to(self.type), max(1, self.tile // max(1, len(hidden)))
        factor = self.scale / (self.cap or self.temperature)
        for start in range(0, len(weight), width):
            part = slice(start, min(len(weight), start + width))
            z = matmul_nt(typed, weight[part].to(self.type)).to(self.sum_type)
            z = z if bias is None else z.add_(bias[part])
            z = z if factor == 1.0 else z.mul_(factor)
            yield part, z.tanh_().mul_(self.cap / self.temperature) if self.cap else z

    def slope(self, z: Tensor) -> Tensor | None:
        """The derivative of the soft cap, 1 − tanh²; None without a cap."""
        return None if self.cap is None else 1 - (z * (self.temperature / self.cap)).square_()
