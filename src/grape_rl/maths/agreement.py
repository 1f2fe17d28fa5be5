"""Agreement of two raters beyond chance (Cohen's κ, unweighted and weighted), and correlation of two scores."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from grape_rl.maths.calibration import Z95


@dataclass(frozen=True)
class Kappa:
    """Cohen's κ with its 95 % confidence interval, from ``low`` to ``high``, and the numbers needed to interpret it.

    ``accuracy`` is the share of examples on which the raters agree. ``base_rate`` is the accuracy of always predicting
    the second rater's most frequent label. ``count`` is the number of examples.
    """

    kappa: float
    low: float
    high: float
    accuracy: float
    base_rate: float
    count: int


def confusion(a: Int[Tensor, " n"], b: Int[Tensor, " n"], labels: int) -> Int[Tensor, "l l"]:
    """Confusion matrix: entry (i, j) counts the examples with label i by the first rater and j by the second.

    >>> confusion(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), labels=2)
    tensor([[1, 0],
            [1, 1]])
    """
    return torch.bincount(a * labels + b, minlength=labels * labels).reshape(labels, labels)


def cohen_kappa(a: Int[Tensor, " n"], b: Int[Tensor, " n"], labels: int) -> Kappa:
    """Cohen's κ: ``(observed − expected) / (1 − expected)``, 1 for full agreement and 0 for agreement by chance.

    ``observed`` is the share of examples with equal labels. ``expected`` is that share for independent raters with the
    observed label frequencies. The interval is the large-sample one (Fleiss, Cohen and Everitt, 1969), clipped to ±1.
    Unlike a bootstrap, it is deterministic, and one formula covers the weighted κ as well. It is too narrow for a few
    examples, and has length 0 under full agreement, so read ``count`` alongside.

    κ is NaN if both raters give one and the same label to every example: chance alone explains the agreement. Without
    examples, every field but ``count`` is NaN.

    >>> result = cohen_kappa(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 1, 0]), labels=2)
    >>> result.kappa, result.accuracy, result.base_rate
    (0.5, 0.75, 0.75)
    """
    return _kappa(confusion(a, b, labels), torch.eye(labels, dtype=torch.float64))


def weighted_kappa(a: Int[Tensor, " n"], b: Int[Tensor, " n"], position: Float[Tensor, " l"]) -> Kappa:
    """Cohen's κ with quadratic weights, for labels on a scale (Cohen, 1968).

    ``position[i]`` is the position of label i on the scale. The agreement of two labels is
    ``1 − (position_i − position_j)² / range²``. ``accuracy`` is still the share of examples with equal labels. The
    interval and the NaN cases are as in ``cohen_kappa``.
    """
    scale = position.double()
    distance = (scale[:, None] - scale[None, :]).square()
    return _kappa(confusion(a, b, len(position)), 1 - distance / distance.max())


def correlation(x: Float[Tensor, " n"], y: Float[Tensor, " n"]) -> float:
    """Pearson correlation. NaN if either argument is constant or empty.

    >>> correlation(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([5.0, 3.0, 1.0]))
    -1.0
    """
    if not len(x) or bool((x == x[0]).all()) or bool((y == y[0]).all()):
        return math.nan
    x, y = x.double() - x.double().mean(), y.double() - y.double().mean()
    return max(-1.0, min(1.0, float((x * y).sum() / (x.square().sum() * y.square().sum()).sqrt())))


def rank_correlation(x: Float[Tensor, " n"], y: Float[Tensor, " n"]) -> float:
    """Spearman correlation: Pearson correlation of the ranks, ties averaged. NaN as in ``correlation``."""
    return correlation(_ranks(x), _ranks(y))


def _ranks(x: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Number of lower values, plus half the number of equal ones."""
    ordered = x.sort().values
    return (torch.searchsorted(ordered, x) + torch.searchsorted(ordered, x, right=True)).double() / 2


def _kappa(table: Int[Tensor, "l l"], weight: Float[Tensor, "l l"]) -> Kappa:
    """κ from a confusion matrix; ``weight[i, j]`` is the agreement of labels i and j, from 0 to 1."""
    count = int(table.sum())
    share = table.double() / count
    a, b = share.sum(1), share.sum(0)
    observed, expected = (weight * share).sum(), (weight * a[:, None] * b[None, :]).sum()
    headroom = 1 - expected
    kappa = torch.where(headroom > 1e-12, (observed - expected) / headroom, torch.nan)
    # The contribution of an example in cell (i, j) to κ, up to a constant: κ varies as their mean does.
    mean = (weight @ b)[:, None] + (a @ weight)[None, :]
    variance = (share * (weight - mean * (1 - kappa)).square()).sum() - (kappa - expected * (1 - kappa)).square()
    half = Z95 * (variance.clamp(min=0) / count).sqrt() / headroom
    return Kappa(
        float(kappa),
        float((kappa - half).clamp(min=-1)),
        float((kappa + half).clamp(max=1)),
        float(share.diagonal().sum()),
        float(b.max()),
        count,
    )
