"""Float32 linear layers by oneDNN on CPUs with AVX-512, where it is faster than torch's default, MKL.

MKL uses AVX-512 only on Intel processors; oneDNN, which is also part of torch, uses it on others too. Both round to
float32 in every operation, but in a different order.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

ONEDNN: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
ONEDNN_IS_FASTER = ONEDNN is not None and "AVX512" in torch.backends.cpu.get_cpu_capability()
"""True if torch has oneDNN's linear product and the processor has AVX-512."""


MIN_MULTIPLICATIONS = 2**21
"""The size of a product from which oneDNN is faster: one call of it takes about 20 µs."""


def uses_onednn(*fields: Tensor) -> bool:
    """True if products of these tensors should use oneDNN: float32 on a CPU with AVX-512, without autocast."""
    return (
        ONEDNN_IS_FASTER
        and all(field.dtype == torch.float32 and field.device.type == "cpu" for field in fields)
        and not torch.is_autocast_enabled("cpu")
    )


def matmul_nt(x: Float[Tensor, "n k"], weight: Float[Tensor, "m k"]) -> Float[Tensor, "n m"]:
    """x · weightᵀ, without a graph. Both may be transposed in memory."""
    return ONEDNN(x, weight, None, "none", [], "") if uses_onednn(x, weight) else x @ weight.t()


def padding_multiple(n: int) -> int:
    """The multiple to which n rows are rounded up: a sixteenth of the power of 2 below n, so 16 sizes per power of 2.

    oneDNN compiles and caches a kernel for each shape. If every micro-batch had a new shape, it would compile and cache
    thousands.

    >>> [n + -n % padding_multiple(n) for n in (20, 100, 1000)]
    [20, 100, 1024]
    """
    return 2 ** max(0, n.bit_length() - 5)


class _Linear(torch.autograd.Function):
    """x · weightᵀ + bias by oneDNN. Its gradients are products of the same kind, so they are differentiable too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return ONEDNN(x, weight, bias, "none", [], "")

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (g,), (x, weight) = grads, ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            _Linear.apply(g, weight.t(), None) if needs_x else None,
            _Linear.apply(g.t(), x.t(), None) if needs_weight else None,
            g.sum(dim=0) if needs_bias else None,
        )


class OneDNNLinear(nn.Linear):
    """A linear layer that uses oneDNN for products that it is faster for, and torch's default otherwise."""

    def forward(self, input: Float[Tensor, "*b k"]) -> Float[Tensor, "*b m"]:
        """input · weightᵀ + bias."""
        if input.numel() * self.out_features < MIN_MULTIPLICATIONS or not uses_onednn(input, self.weight):
            return super().forward(input)
        x = input.reshape(-1, input.shape[-1])
        if torch.is_grad_enabled():
            out: Tensor = _Linear.apply(x, self.weight, self.bias)  # pyright: ignore[reportAssignmentType]
        else:
            out = ONEDNN(x, self.weight, self.bias, "none", [], "")
        return out.view(*input.shape[:-1], out.shape[-1])


def use_onednn_linear(model: nn.Module) -> None:
    """Replace the class of the model's linear layers by ``OneDNNLinear``, if that is faster on this machine.

    Parameters and their names stay the same.
    """
    if ONEDNN_IS_FASTER:
        for module in model.modules():
            if type(module) is nn.Linear:
                module.__class__ = OneDNNLinear
