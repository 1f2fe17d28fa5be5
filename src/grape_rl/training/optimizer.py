"""The optimizer, gradient clipping, and the learning-rate schedule."""

import math
from typing import Any, Literal

import torch
from torch import nn

from grape_rl.model.value_head import PolicyWithValue

Schedule = Literal["constant", "linear", "cosine"]

FUSED = ("cpu", "cuda")
"""Devices on which torch's fused AdamW is faster."""


def grad_norm_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Modules whose gradients are clipped separately, by the name of the metric that logs their norm.

    These are the policy and its value function. With one norm for both, a large gradient of the value function would
    scale the policy's gradient to almost nothing.
    """
    if isinstance(model, PolicyWithValue):
        return {"grad_norm": model.policy, "value_grad_norm": model.value}
    return {"grad_norm": model}


def adamw(
    model: nn.Module, weight_decay: float, betas: tuple[float, float], value_rate: float = 1.0
) -> torch.optim.AdamW:
    """AdamW over the trainable parameters, with weight decay on matrices only (not on norms and biases).

    The learning rate of a value function is ``value_rate`` times the policy's. The optimizer is fused (one pass over
    a parameter, its gradient and its moments) if every parameter is on a device that supports it.
    """
    groups: list[dict[str, Any]] = []
    for module, rate in zip(grad_norm_modules(model).values(), (1.0, value_rate), strict=False):
        trainable = [p for p in module.parameters() if p.requires_grad]
        matrices = [p for p in trainable if p.ndim >= 2]
        vectors = [p for p in trainable if p.ndim < 2]
        groups.append({"params": matrices, "weight_decay": weight_decay, "rate": rate})
        groups.append({"params": vectors, "weight_decay": 0.0, "rate": rate})
    fused = all(p.device.type in FUSED and p.is_floating_point() for g in groups for p in g["params"])
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=0.0, betas=betas, fused=fused)


def learning_rate(step: int, steps: int, peak: float, warmup: int, schedule: Schedule) -> float:
    """Learning rate of a step (from 0): linear warmup to ``peak`` over ``warmup`` steps, then constant or decay to 0.

    >>> [learning_rate(s, 4, 1.0, 2, "linear") for s in range(4)]
    [0.5, 1.0, 1.0, 0.5]
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    left = (steps - step) / max(1, steps - warmup)
    match schedule:
        case "constant":
            return peak
        case "linear":
            return peak * left
        case "cosine":
            return peak * 0.5 * (1 - math.cos(math.pi * left))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every parameter group to ``rate`` times the group's own ``rate``."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("rate", 1.0)


def clipped_step(model: nn.Module, optimizer: torch.optim.Optimizer, max_grad_norm: float) -> dict[str, float]:
    """Clip the gradients, make one optimizer step, and return the gradient norms before clipping.

    Raises:
        RuntimeError: a gradient is not finite. The weights are unchanged.
    """
    norms = {name: clip_gradient(module, max_grad_norm) for name, module in grad_norm_modules(model).items()}
    optimizer.step()
    return norms


def clip_gradient(module: nn.Module, max_grad_norm: float) -> float:
    """Clip the gradient to ``max_grad_norm`` in place, and return its norm before.

    Raises:
        RuntimeError: the gradient is not finite.
    """
    norm = float(nn.utils.clip_grad_norm_(module.parameters(), max_grad_norm))
    if not math.isfinite(norm):
        raise RuntimeError(f"the gradient's norm is {norm}: try a lower learning rate")
    return norm
