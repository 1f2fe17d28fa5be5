"""How far two raters agree beyond chance (Cohen's κ, on scales too), and how two scores go together."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from grape_rl.maths.calibration import Z95


@dataclass(frozen=True)
class Kappa:
    """Cohen's κ with its interval of 95 %, and what it has to be read beside.

    ``accuracy`` is the share of examples with the same label; ``base_rate`` what always saying the second rater's
    commonest label would have had; ``count`` the number of examples.
    """

    kappa: float
    low: float
    high: float
    accuracy: float
    base_rate: float
    count: int


def confusion(a: Int[Tensor, " n"], b: Int[Tensor, " n"], labels: int) -> Int[Tensor, "l l"]:
    """How often the first rater said label i (row) where the second said j (column).

    >>> confusion(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), labels=2)
    tensor([[1, 0],
            [1, 1]])
    """
    return torch.bincount(a * labels + b, minlength=labels * labels).reshape(labels, labels)


def cohen_kappa(a: Int[Tensor, " n"], b: Int[Tensor, " n"], labels: int) -> Kappa:
    """``(observed − expected) / (1 − expected)``: 1 for raters that agree, 0 for ones that do so by chance alone.

    Observed is the share of examples with the same label, expected what it would be if each rater kept its shares and
    they knew nothing of each other. The interval is the large-sample one (Fleiss, Cohen and Everitt, 1969), cut at ±1:
    unlike a bootstrap it is the same at every call, and one formula holds for the weighted κ as well. It is too narrow
    for a few examples; where all agree it is a point, so read the count beside it.

    κ is NaN where both raters always say one and the same label: there is no disagreement that chance could explain.
    Without examples all but the count is NaN.

    >>> result = cohen_kappa(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 1, 0]), labels=2)
    >>> result.kappa, result.accuracy, result.base_rate
    (0.5, 0.75, 0.75)
    """
    return _kappa(confusion(a, b, labels), torch.eye(labels, dtype=torch.float64))


def weighted_kappa(a: Int[Tensor, " n"], b: Int[Tensor, " n"], position: Float[Tensor, " l"]) -> Kappa:
    """Cohen's κ for labels on a scale: a disagreement counts by the square of its distance (Cohen, 1968).

    ``position[i]`` is where label i stands; two labels' agreement is ``1 − (position_i − position_j)² / range²``. The
    ``accuracy`` is still the share of examples with the same label. Intervals and NaN are those of ``cohen_kappa``.
    """
    at = position.double()
    apart = (at[:, None] - at[None, :]).square()
    return _kappa(confusion(a, b, len(position)), 1 - apart / apart.max())


def correlation(x: Float[Tensor, " n"], y: Float[Tensor, " n"]) -> float:
    """Pearson's correlation. NaN where either does not vary, or there are no examples.

    >>> correlation(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([5.0, 3.0, 1.0]))
    -1.0
    """
    if not len(x) or bool((x == x[0]).all()) or bool((y == y[0]).all()):
        return math.nan
    x, y = x.double() - x.double().mean(), y.double() - y.double().mean()
    return max(-1.0, min(1.0, float((x * y).sum() / (x.square().sum() * y.square().sum()).sqrt())))


def rank_correlation(x: Float[Tensor, " n"], y: Float[Tensor, " n"]) -> float:
    """Spearman's correlation: Pearson's of the ranks, where equal values share the mean of theirs. NaN likewise."""
    return correlation(_ranks(x), _ranks(y))


def _ranks(x: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """How many are lower, and half of those that are equal."""
    ordered = x.sort().values
    return (torch.searchsorted(ordered, x) + torch.searchsorted(ordered, x, right=True)).double() / 2


def _kappa(table: Int[Tensor, "l l"], weight: Float[Tensor, "l l"]) -> Kappa:
    count = int(table.sum())
    share = table.double() / count
    a, b = share.sum(1), share.sum(0)
    observed, expected = (weight * share).sum(), (weight * a[:, None] * b[None, :]).sum()
    left = 1 - expected
    kappa = torch.where(left > 1e-12, (observed - expected) / left, torch.nan)
    # What an example in cell i, j adds to κ, but for a constant: the variance of κ is that of its mean.
    mean = (weight @ b)[:, None] + (a @ weight)[None, :]
    spread = (share * (weight - mean * (1 - kappa)).square()).sum() - (kappa - expected * (1 - kappa)).square()
    half = Z95 * (spread.clamp(min=0) / count).sqrt() / left
    return Kappa(
        float(kappa),
        float((kappa - half).clamp(min=-1)),
        float((kappa + half).clamp(max=1)),
        float(share.diagonal().sum()),
        float(b.max()),
        count,
    )
