"""Value function: its loss, its explained variance, and whitening of the advantages computed from it."""

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from grape_rl.maths.bounds import NonNegative
from grape_rl.maths.groups import EPSILON


def value_loss(
    value: Float[Tensor, "b t"],
    behavior_value: Float[Tensor, "b t"],
    value_target: Float[Tensor, "b t"],
    clip_value: NonNegative = 0.2,
) -> Float[Tensor, "b t"]:
    """Clipped value loss: ``½ max((value − value_target)², (clipped_value − value_target)²)``.

    ``clipped_value = clip(value, behavior_value ± clip_value)``, and ``behavior_value`` is the value at sampling time.
    From PPO's code; arXiv 1707.06347 does not describe it. A value that has moved by ``clip_value`` toward its target
    since the step began has no gradient. Values are in the units of the reward: if rewards go up to 100, the
    ``clip_value`` 0.2 limits the change of a value to 0.2 per step, and a large ``clip_value`` disables the clip.

    >>> zero = torch.zeros(1, 1)
    >>> value_loss(zero + 0.5, zero, zero + 1.0), value_loss(zero + 0.5, zero, zero - 1.0)
    (tensor([[0.3200]]), tensor([[1.1250]]))
    """
    clipped_value = torch.clamp(value, behavior_value - clip_value, behavior_value + clip_value)
    return torch.maximum((value - value_target).square(), (clipped_value - value_target).square()) / 2


def whitened(
    advantage: Float[Tensor, "b t"], mask: Bool[Tensor, "b t"], whiten: Literal["batch", "none"] = "batch"
) -> Float[Tensor, "b t"]:
    """Whitened per-token advantages: ``(advantage − mean) / (std + 1e-6)`` over the batch.

    The statistics are over the tokens where ``mask`` is True, with Bessel's correction; other tokens are 0. Equal
    advantages become 0. ``whiten`` "batch" applies the formula; "none" returns the advantages
    unchanged, so the scale of the rewards is the scale of the loss. From PPO's code; the paper does not describe it.

    Raises:
        ValueError: an unknown ``whiten``.

    >>> whitened(torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([[True, True, False]])).round(decimals=3)
    tensor([[-0.7070,  0.7070,  0.0000]])
    """
    match whiten:
        case "none":
            return advantage
        case "batch":
            known = advantage[mask]
            if not len(known):
                return torch.zeros_like(advantage)
            # Measured from the lowest, equal advantages are exactly 0; a rounding residue would be amplified.
            above = advantage - known.min()
            deviation = (above - above[mask].mean()).masked_fill(~mask, 0)
            spread = (deviation.square().sum() / max(1, len(known) - 1)).sqrt()
            return deviation / (spread + EPSILON)
        case _:
            raise ValueError(f"whiten is {whiten!r}; it must be 'batch' or 'none'")


def explained_variance(
    value: Float[Tensor, "b t"], value_target: Float[Tensor, "b t"], mask: Bool[Tensor, "b t"]
) -> float:
    """Explained variance of the value function: ``1 − var(value_target − value) / var(value_target)``.

    1 if value and target differ by a constant, 0 for a constant value, negative if a constant would be better. NaN if
    the targets do not vary.

    >>> explained_variance(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 2.0]]), torch.tensor([[True, True]]))
    0.75
    """
    target, residual = value_target[mask], (value_target - value)[mask]
    variance = float(target.var(correction=0)) if len(target) else 0.0
    return 1 - float(residual.var(correction=0)) / variance if variance > 0 else math.nan
