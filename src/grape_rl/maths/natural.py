"""The natural gradient's two tools: products with the Fisher matrix, and the solution of a system made of them."""

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
    """The solution x of ``apply(x) = b`` for a symmetric positive (semi)definite linear ``apply``, from x = 0.

    Exact after n iterations up to rounding; fewer give the best x among combinations of b, Ab, A²b … (TRPO, arXiv
    1502.05477, appendix C). It stops once ``‖b − apply(x)‖ ≤ tolerance ‖b‖``, or where ``apply`` has no positive
    curvature left along the next direction, so x then is what fewer iterations would have given.

    Raises:
        ValueError: ``apply`` is not positive along b itself, or gives numbers that are not finite.

    >>> conjugate_gradient(lambda x: torch.tensor([2.0, 4.0]) * x, torch.tensor([2.0, 2.0]))
    tensor([1.0000, 0.5000])
    """
    # Below the rounding of b what is left of the residual is noise, and where the matrix is singular a step along
    # noise has no bound.
    enough = max(tolerance, torch.finfo(b.dtype).eps) ** 2 * (b @ b)
    x, residual, direction = torch.zeros_like(b), b, b
    square = residual @ residual
    for step in range(iterations):
        if square <= enough:
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
    """The product ``(H + damping I) vector``, H the second derivative of ``kl`` by all ``parameters``.

    The parameters are flattened and joined in their order. With ``kl`` = KL(π_old‖π) at π = π_old, H is the Fisher
    matrix (TRPO, arXiv 1502.05477, appendix C). H is never formed: ``kl`` is differentiated twice, and keeps its graph,
    so the same one serves every product.

    Raises:
        ValueError: ``vector`` has not as many entries as the parameters together.
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
