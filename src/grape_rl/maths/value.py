"""The value function's maths: what it learns, how well it does, and the scale of the advantages that it gives."""

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from grape_rl.maths.bounds import NonNegative

EPSILON = 1e-6
"""Added to a standard deviation before dividing by it."""


def value_loss(
    value: Float[Tensor, "b t"],
    behavior_value: Float[Tensor, "b t"],
    value_target: Float[Tensor, "b t"],
    clip_value: NonNegative = 0.2,
) -> Float[Tensor, "b t"]:
    """PPO's loss of the value: ``½ max((value − value_target)², (clip(value, behavior_value ± clip_value) − …)²)``.

    The … is ``value_target`` too. PPO's code (arXiv 1707.06347 leaves it out): a value that has moved by
    ``clip_value`` towards its target since the step began gets no gradient. ``behavior_value`` is the value when the
    responses were drawn. All in the reward's units: where rewards go up to 100, a ``clip_value`` of 0.2 lets a value
    move by 0.2 a step, and a large one is no clip at all.

    >>> zero = torch.zeros(1, 1)
    >>> value_loss(zero + 0.5, zero, zero + 1.0), value_loss(zero + 0.5, zero, zero - 1.0)
    (tensor([[0.3200]]), tensor([[1.1250]]))
    """
    near = torch.clamp(value, behavior_value - clip_value, behavior_value + clip_value)
    return torch.maximum((value - value_target).square(), (near - value_target).square()) / 2


def whitened(
    advantage: Float[Tensor, "b t"], mask: Bool[Tensor, "b t"], whiten: Literal["batch", "none"] = "batch"
) -> Float[Tensor, "b t"]:
    """Advantages of tokens, centered and scaled over all of the batch: ``(advantage − mean) / (std + 1e-6)``.

    Over the tokens where ``mask`` is True, with Bessel's correction; the others are 0. Equal advantages are 0.
    ``whiten`` "none" leaves them as they are: then the rewards' scale is that of the loss. PPO's code; the paper does
    not speak of it.

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
            # Measured from the lowest, equal advantages are all 0, and no rounding of their mean is blown up.
            above = advantage - known.min()
            deviation = (above - above[mask].mean()).masked_fill(~mask, 0)
            spread = (deviation.square().sum() / max(1, len(known) - 1)).sqrt()
            return deviation / (spread + EPSILON)
        case _:
            raise ValueError(f"whiten is {whiten!r}; it must be 'batch' or 'none'")


def explained_variance(
    value: Float[Tensor, "b t"], value_target: Float[Tensor, "b t"], mask: Bool[Tensor, "b t"]
) -> float:
    """The share of the targets' variance that the value foresaw: ``1 − var(value_target − value) / var(value_target)``.

    1 where they differ by a constant, 0 for a constant value, negative where none would be better. NaN where the
    targets do not vary.

    >>> explained_variance(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 2.0]]), torch.tensor([[True, True]]))
    0.75
    """
    target, left = value_target[mask], (value_target - value)[mask]
    whole = float(target.var(correction=0)) if len(target) else 0.0
    return 1 - float(left.var(correction=0)) / whole if whole > 0 else math.nan
