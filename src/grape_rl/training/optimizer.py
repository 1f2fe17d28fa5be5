"""The optimizer, and its learning rate as a function of the step."""

import math
from typing import Any, Literal

import torch
from torch import nn

from grape_rl.model.value_head import PolicyWithValue

Schedule = Literal["constant", "linear", "cosine"]

FUSED = ("cpu", "cuda")
"""The devices on which torch's fused AdamW is of use."""


def parts(model: nn.Module) -> dict[str, nn.Module]:
    """What of a model has a gradient norm of its own, by the metric that tells it: the policy, and its value function.

    Under one norm, a value function that is far off would leave next to nothing of the policy's gradient.
    """
    if isinstance(model, PolicyWithValue):
        return {"grad_norm": model.policy, "value_grad_norm": model.value}
    return {"grad_norm": model}


def adamw(
    model: nn.Module, weight_decay: float, betas: tuple[float, float], value_rate: float = 1.0
) -> torch.optim.AdamW:
    """AdamW over the trainable parameters, with weight decay on matrices only (not on norms and biases).

    The parameters of a value function learn at ``value_rate`` times the policy's learning rate. Where every parameter
    lies on a device that can do so, a step is one pass over a parameter, its gradient and its moments.
    """
    groups: list[dict[str, Any]] = []
    for part, rate in zip(parts(model).values(), (1.0, value_rate), strict=False):
        trainable = [p for p in part.parameters() if p.requires_grad]
        decayed = [p for p in trainable if p.ndim >= 2]
        rest = [p for p in trainable if p.ndim < 2]
        groups.append({"params": decayed, "weight_decay": weight_decay, "rate": rate})
        groups.append({"params": rest, "weight_decay": 0.0, "rate": rate})
    fused = all(p.device.type in FUSED and p.is_floating_point() for g in groups for p in g["params"])
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=0.0, betas=betas, fused=fused)


def learning_rate(step: int, steps: int, peak: float, warmup: int, schedule: Schedule) -> float:
    """The rate of a step (from 0): a linear rise over ``warmup`` steps to ``peak``, then constant, or down to 0.

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
    """Give every parameter group the rate, times its own ``rate``."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("rate", 1.0)


def clipped_step(model: nn.Module, optimizer: torch.optim.Optimizer, max_grad_norm: float) -> float:
    """One optimizer step by the gradient, scaled down to ``max_grad_norm``; returns its norm before that.

    Raises:
        RuntimeError: a gradient that is not finite, before it moves the weights.
    """
    norm = clipped(model, max_grad_norm)
    optimizer.step()
    return norm


def clipped(model: nn.Module, max_grad_norm: float) -> float:
    """The gradient's norm, before it is scaled down to ``max_grad_norm`` in place.

    Raises:
        RuntimeError: a gradient that is not finite.
    """
    norm = float(nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm))
    if not math.isfinite(norm):
        raise RuntimeError(f"the gradient's norm is {norm}: try a lower learning rate")
    return norm
