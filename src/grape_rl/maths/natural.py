"""Natural gradient: Fisher-vector products, and conjugate gradient to solve a linear system with them."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def conjugate_gradient(
    apply: Callable[[Float[Tensor, " n"]], Float[Tensor, " n"]],
    b: Float[Tensor, " n"],
    iterations: int = 10,
    tolerance: float = 1e-10,
) -> Float[Tensor, " n"]:
    """Solution x of ``apply(x) = b`` by conjugate gradient, for a symmetric positive (semi)definite linear ``apply``.

    Starts at x = 0. After n iterations x is exact up to rounding. After fewer, x is the best combination of b, Ab, A²b
    … (TRPO, arXiv 1502.05477, appendix C). ``iterations`` is the maximum number of products. Iteration stops early once
    ``‖b − apply(x)‖ ≤ tolerance ‖b‖``, or once ``apply`` has no positive curvature along the next direction; x is then
    the result of the iterations so far.

    Raises:
        ValueError: ``apply`` is not positive along b itself, or returns numbers that are not finite.

    >>> conjugate_gradient(lambda x: torch.tensor([2.0, 4.0]) * x, torch.tensor([2.0, 2.0]))
    tensor([1.0000, 0.5000])
    """
    # A residual below the rounding of b is noise, and if the matrix is singular a step along noise is unbounded.
    converged = max(tolerance, torch.finfo(b.dtype).eps) ** 2 * (b @ b)
    x, residual, direction = torch.zeros_like(b), b, b
    square = residual @ residual
    for step in range(iterations):
        if square <= converged:
            break
        applied = apply(direction)
        curvature = direction @ applied
        if not curvature.isfinite() or (step == 0 and curvature <= 0):
            raise ValueError(
                f"curvature is {curvature.item()} in iteration {step}; it must be positive and finite (more damping?)"
            )
        if curvature <= 0:
            break
        x = x + square / curvature * direction
        residual = residual - square / curvature * applied
        previous, square = square, residual @ residual
        direction = residual + square / previous * direction
    return x


def fisher_vector_product(
    kl: Float[Tensor, ""],
    parameters: Sequence[Tensor],
    vector: Float[Tensor, " n"],
    damping: float = 0.0,
) -> Float[Tensor, " n"]:
    """Fisher-vector product ``(H + damping I) vector``, H the Hessian of ``kl`` with respect to ``parameters``.

    The parameters are flattened and concatenated in order. For ``kl`` = KL(π_old‖π) at π = π_old, H is the Fisher
    information matrix (TRPO, arXiv 1502.05477, appendix C). H is never formed: ``kl`` is differentiated twice. The
    graph of ``kl`` is retained, so one ``kl`` serves all products.

    Raises:
        ValueError: the number of entries of ``vector`` differs from the number of parameters.
    """
    size = sum(parameter.numel() for parameter in parameters)
    if len(vector) != size:
        raise ValueError(f"vector has {len(vector)} entries; the parameters have {size}")
    gradient = torch.autograd.grad(kl, parameters, create_graph=True, materialize_grads=True)
    along = _flat(gradient) @ vector.detach()
    product = torch.autograd.grad(along, parameters, retain_graph=True, materialize_grads=True)
    return _flat(product) + damping * vector.detach()


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])
