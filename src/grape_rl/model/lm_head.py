"""The head: from hidden states to the log-probability of the chosen token and the entropy of the choice.

The logits of all tokens never exist at once. A tile of them (all tokens x some of the vocabulary) is made, summed up,
and forgotten, as small as the processor's cache; in backward it is made again. That is a third more products, and takes
less time than to write it to memory and read it back.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from grape_rl.model.onednn_linear import matmul_nt, padding_multiple

TILE = 2**21
"""The most logits that exist at once on a CPU: 8 MiB in float32, which a cache can hold."""

ACCELERATOR_TILE = 2**26
"""The same elsewhere: large enough that a tile is worth the calls it takes."""

LogitsFunction = Callable[[Float[Tensor, "n d"]], Float[Tensor, "n v"]]


@dataclass(frozen=True)
class LMHead:
    """A model's last step: logits = capped(scale · (hidden · weightᵀ + bias)), capped(z) = cap · tanh(z / cap)."""

    weight: Float[Tensor, "v d"]
    bias: Float[Tensor, " v"] | None = None
    scale: float = 1.0
    cap: float | None = None


def lm_head_of(model: nn.Module) -> LMHead:
    """The head that ``model`` itself applies. One that is adapted is its weight and the adapters' in one.

    Raises:
        ValueError: the model has no output embeddings, so it is not a causal language model.
    """
    layer, scale, cap = _layer(model)
    if isinstance(layer, nn.Linear):
        return LMHead(layer.weight, layer.bias, scale, cap)
    # What else maps hidden states to logits is linear too: readied's probe would not pass otherwise.
    at = next(layer.parameters())
    width = model.config.get_text_config().hidden_size  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    bias = layer(torch.zeros(1, width, dtype=at.dtype, device=at.device))
    return LMHead((layer(torch.eye(width, dtype=at.dtype, device=at.device)) - bias).t(), bias[0], scale, cap)


def logits_of(model: nn.Module) -> LogitsFunction:
    """The map from hidden states to logits that ``model`` itself applies, its scaling and soft-capping included.

    Raises:
        ValueError: the model has no output embeddings, so it is not a causal language model.
    """
    layer, scale, cap = _layer(model)

    def logits(hidden: Float[Tensor, "n d"]) -> Float[Tensor, "n v"]:
        out = layer(hidden).float() if hidden.dtype in (torch.float16, torch.bfloat16) else layer(hidden)
        out = out * scale if scale != 1.0 else out
        return cap * torch.tanh(out / cap) if cap else out

    return logits


def _layer(model: nn.Module) -> tuple[nn.Module, float, float | None]:
    layer = model.get_output_embeddings()  # pyright: ignore[reportCallIssue]
    if layer is None:
        raise ValueError(f"{type(model).__name__} has no output embeddings: a causal language model is needed")
    config = model.config.get_text_config()  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    scale = getattr(config, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0)
    return layer, scale, getattr(config, "final_logit_softcapping", None) or None


def token_logprobs(
    head: LMHead, hidden: Float[Tensor, "n d"], tokens: Int[Tensor, " n"], temperature: float = 1.0, tile: int = 0
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Log-probability of each token, and the entropy of the distribution it was chosen from.

    logp = log softmax(logits / temperature)[tokens];  entropy = −Σ_v p_v log p_v, in nats.

    At most ``tile`` logits exist at once (0: as many as suit the device), however many tokens there are. Under autocast
    products are taken in its type, and all else in float32.
    """
    tile = tile or (TILE if hidden.device.type == "cpu" else ACCELERATOR_TILE)
    n = len(tokens)
    more = -n % padding_multiple(n) if hidden.device.type == "cpu" else 0
    hidden, tokens = nn.functional.pad(hidden, (0, 0, 0, more)), nn.functional.pad(tokens, (0, more))
    parts = [
        _Chosen.apply(rows, head.weight, head.bias, of_rows, temperature, head.scale, head.cap, tile)
        for rows, of_rows in zip(hidden.split(max(1, tile // 64)), tokens.split(max(1, tile // 64)), strict=True)
    ]
    logp, entropy = zip(*parts, strict=True)  # pyright: ignore[reportArgumentType]
    return torch.cat(logp)[:n], torch.cat(entropy)[:n]


class _Chosen(torch.autograd.Function):
    """log softmax and entropy by sums over tiles of the vocabulary, and their gradients by the same tiles made again.

    In backward ∂logp/∂z = 1[v = token] − p and ∂H/∂z = −p (log p + H), z the logits over the temperature.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tokens: Tensor,
        temperature: float,
        scale: float,
        cap: float | None,
        tile: int,
    ) -> tuple[Tensor, Tensor]:
        ctx.shape = shape = _Shape(temperature, scale, cap, _product_type(hidden, weight), tile)
        top, total, first, chosen = _sums(shape, hidden, weight, bias, tokens)
        norm, entropy = top + total.log(), total.log() - first / total
        ctx.save_for_backward(hidden, weight, bias, tokens, norm, entropy)
        ctx.set_materialize_grads(False)
        return chosen - top - total.log(), entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # p is no function of the logits to autograd: the result would be wrong in silence
            raise RuntimeError("log-probabilities can be differentiated once only (create_graph=True was asked for)")
        hidden, weight, bias, tokens, norm, entropy = ctx.saved_tensors
        (of_logp, of_entropy), needs, shape = grads, ctx.needs_input_grad, ctx.shape
        if of_logp is None and of_entropy is None:
            return (None,) * 8
        typed = hidden.to(shape.type)
        of_hidden = torch.zeros_like(hidden, dtype=norm.dtype) if needs[0] else None
        of_weight = torch.empty_like(weight) if needs[1] else None
        of_bias = torch.empty_like(bias) if needs[2] else None
        for part, z in shape.tiles(hidden, weight, bias):
            slope = shape.slope(z)
            z = _finite(z, bias).sub_(norm[:, None])
            p = z.exp()
            if of_entropy is None:
                g = p.mul_(-of_logp[:, None])  # pyright: ignore[reportOptionalSubscript]
            else:
                g = z.add_(entropy[:, None]).mul_(-of_entropy[:, None])
                g = (g if of_logp is None else g.sub_(of_logp[:, None])).mul_(p)
            if of_logp is not None:
                inside, column = _columns(tokens, part)
                g.scatter_add_(1, column, (of_logp * inside)[:, None])
            g = (g if slope is None else g.mul_(slope)).to(shape.type)
            if of_hidden is not None:
                of_hidden += matmul_nt(g, weight[part].to(shape.type).t())
            if of_weight is not None:
                of_weight[part] = matmul_nt(g.t(), typed.t())
            if of_bias is not None:
                of_bias[part] = g.sum(dim=0)
        found, factor = (of_hidden, of_weight, of_bias), shape.scale / shape.temperature
        if factor != 1.0:
            found = tuple(None if field is None else field.mul_(factor) for field in found)
        return None if found[0] is None else found[0].to(hidden.dtype), *found[1:], *(None,) * 5


def _sums(
    shape: "_Shape", hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of each token's logits z: top = max z, total = Σ e^(z − top), Σ (z − top) e^(z − top), and its own z."""
    n = len(tokens)
    total, first, chosen = (torch.zeros(n, dtype=shape.sum_type, device=tokens.device) for _ in range(3))
    top = torch.full_like(total, torch.finfo(shape.sum_type).min)
    for part, z in shape.tiles(hidden, weight, bias):
        inside, column = _columns(tokens, part)
        chosen = torch.where(inside, z.gather(1, column)[:, 0], chosen)
        highest = torch.maximum(top, _finite(z, bias).amax(dim=1))
        z -= highest[:, None]
        e = z.exp()
        shift = (top - highest).clamp_(min=-1e4)  # e^-10000 is 0, and 0 times what is finite is 0
        first = shift.exp() * (first + shift * total) + torch.linalg.vecdot(e, z)
        total = shift.exp() * total + e.sum(dim=1)
        top = highest
    return top, total, first, chosen


def _columns(tokens: Tensor, part: slice) -> tuple[Tensor, Tensor]:
    """Which tokens are in a slice of the vocabulary, and the column there of each; of the others, any column.

    Nothing of it is read on the host, which a device need not wait for then.
    """
    inside = (tokens >= part.start) & (tokens < part.stop)
    return inside, (tokens - part.start).clamp(0, part.stop - part.start - 1)[:, None]


def _finite(z: Tensor, bias: Tensor | None) -> Tensor:
    """The same with the least number for −inf, in place: p is 0 by either, but 0 · −inf would be NaN.

    Only a bias can rule a token out.
    """
    return z if bias is None else z.clamp_(min=torch.finfo(z.dtype).min)


def _product_type(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """The type that the products are taken in: autocast's where it is on."""
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind) and weight.dtype == torch.float32:
        return torch.get_autocast_dtype(kind)
    return weight.dtype


@dataclass(frozen=True)
class _Shape:
    """How hidden states become logits over the temperature, and how many of these at once."""

    temperature: float
    scale: float
    cap: float | None
    type: torch.dtype
    tile: int

    @property
    def sum_type(self) -> torch.dtype:
        """The type of logits and of what is summed over them: float32, or more where the products have more."""
        return torch.promote_types(self.type, torch.float32)

    def tiles(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Iterator[tuple[slice, Tensor]]:
        """Slices of the vocabulary, and the logits over the temperature of all tokens there, free to be written to."""
        typed, width = hidden.to(self.type), max(1, self.tile // max(1, len(hidden)))
        factor = self.scale / (self.cap or self.temperature)
        for start in range(0, len(weight), width):
            part = slice(start, min(len(weight), start + width))
            z = matmul_nt(typed, weight[part].to(self.type)).to(self.sum_type)
            z = z if bias is None else z.add_(bias[part])
            z = z if factor == 1.0 else z.mul_(factor)
            yield part, z.tanh_().mul_(self.cap / self.temperature) if self.cap else z

    def slope(self, z: Tensor) -> Tensor | None:
        """What a cap makes of the gradient: 1 − tanh²; None without one."""
        return None if self.cap is None else 1 - (z * (self.temperature / self.cap)).square_()
