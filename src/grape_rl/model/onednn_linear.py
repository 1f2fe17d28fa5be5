"""Linear layers in float32 on CPUs with AVX-512: the same product, by the library that uses all of the processor.

torch multiplies float32 matrices by MKL, which on other processors than its maker's stays with instructions half as
wide; oneDNN, which torch has aboard too, does not. Both round to float32 in every step, in another order.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

ONEDNN: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
ONEDNN_IS_FASTER = ONEDNN is not None and "AVX512" in torch.backends.cpu.get_cpu_capability()
"""Whether the product by oneDNN is there, and the processor has what makes it faster."""


MIN_MULTIPLICATIONS = 2**21
"""From how many multiplications on oneDNN is the faster one: a call of it costs some 20 µs."""


def uses_onednn(*fields: Tensor) -> bool:
    """Whether products of these are to be taken by oneDNN: float32 on a wide CPU, and nothing casts them."""
    return (
        ONEDNN_IS_FASTER
        and all(field.dtype == torch.float32 and field.device.type == "cpu" for field in fields)
        and not torch.is_autocast_enabled("cpu")
    )


def matmul_nt(x: Float[Tensor, "n k"], weight: Float[Tensor, "m k"]) -> Float[Tensor, "n m"]:
    """x · weightᵀ, without a graph. Either may lie in memory transposed."""
    return ONEDNN(x, weight, None, "none", [], "") if uses_onednn(x, weight) else x @ weight.t()


def padding_multiple(n: int) -> int:
    """What sizes of about ``n`` rows are rounded up to a multiple of: one of 16 between two powers of 2.

    oneDNN makes a program for each shape that it multiplies, and keeps it. Of a new shape in each micro-batch it would
    make, and keep, thousands.

    >>> [n + -n % granule(n) for n in (20, 100, 1000)]
    [20, 100, 1024]
    """
    return 2 ** max(0, n.bit_length() - 5)


class _Linear(torch.autograd.Function):
    """x · weightᵀ + bias, and its gradients by the same product: each is differentiable again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return ONEDNN(x, weight, bias, "none", [], "")

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (g,), (x, weight) = grads, ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            _Linear.apply(g, weight.t(), None) if of_x else None,
            _Linear.apply(g.t(), x.t(), None) if of_weight else None,
            g.sum(dim=0) if of_bias else None,
        )


class OneDNNLinear(nn.Linear):
    """A linear layer that multiplies by oneDNN where that suits, and as any other where it does not."""

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
    """Make the model's linear layers wide ones, where the machine gains by it. Names and weights stay as they are."""
    if ONEDNN_IS_FASTER:
        for module in model.modules():
            if type(module) is nn.Linear:
                module.__class__ = OneDNNLinear
