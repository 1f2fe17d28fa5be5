"""Calibration of a critic's confidence against people's labels: fitted curves, and measures of calibration.

``confidence`` is the critic's, in [0, 1]; ``correct`` is 1 where its label was right and 0 where it was wrong. All
computation is in float64.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Z95 = 1.959963984540054
"""The 97.5 % quantile of the normal distribution, for two-sided 95 % intervals."""

Correct = Float[Tensor, " n"] | Bool[Tensor, " n"]
CurveFitter = Callable[[Float[Tensor, " n"], Correct], Callable[[Float[Tensor, " m"]], Float[Tensor, " m"]]]
"""A fit: confidences and the correctness of their labels → a function that calibrates confidences."""


def isotonic(
    confidence: Float[Tensor, " n"], correct: Correct, weight: Float[Tensor, " n"] | None = None
) -> tuple[Float[Tensor, " k"], Float[Tensor, " k"]]:
    """Isotonic regression: the non-decreasing f that minimizes ``Σ weight (f(confidence) − correct)²``.

    Returns the knots of f, for ``interpolated``. Pool adjacent violators: examples of equal confidence are averaged
    into one point, then decreasing neighbors are pooled into blocks. A block of several points has a knot at each end,
    so the curve is constant along it. The curve passes through the fitted value at every confidence in the data.
    ``weight`` (above 0; 1 by default) counts an example that many times. Without examples there are no knots.

    >>> isotonic(torch.tensor([0.2, 0.4, 0.6, 0.8]), torch.tensor([0.0, 1.0, 0.0, 1.0]))[1]
    tensor([0.0000, 0.5000, 0.5000, 1.0000], dtype=torch.float64)
    """
    weight = torch.ones_like(confidence) if weight is None else weight
    points: dict[float, tuple[float, float]] = {}  # confidence → total weight, and weight of the correct labels
    for x, right, w in zip(_floats(confidence), _floats(correct), _floats(weight), strict=True):
        mass, hits = points.get(x, (0.0, 0.0))
        points[x] = mass + w, hits + w * right
    blocks: list[tuple[float, float, float, float]] = []  # first and last confidence, total weight, correct weight
    for x, (mass, hits) in sorted(points.items()):
        first = x
        while blocks and blocks[-1][3] * mass >= hits * blocks[-1][2]:
            first, _, block_mass, block_hits = blocks.pop()
            mass, hits = mass + block_mass, hits + block_hits
        blocks.append((first, x, mass, hits))
    knots = [(x, hits / mass) for first, last, mass, hits in blocks for x in dict.fromkeys((first, last))]
    x, y = torch.tensor(knots, dtype=torch.float64).reshape(-1, 2).unbind(1)
    return x, y


def interpolated(
    confidence: Float[Tensor, "..."], x: Float[Tensor, " k"], y: Float[Tensor, " k"]
) -> Float[Tensor, "..."]:
    """Piecewise linear curve through the knots (``x`` increasing), constant beyond them, clipped to [0, 1].

    NaN where the confidence is NaN, and everywhere if there are no knots.

    >>> interpolated(torch.tensor([0.0, 0.5, 1.0]), torch.tensor([0.4, 0.8]), torch.tensor([0.2, 0.6]))
    tensor([0.2000, 0.3000, 0.6000], dtype=torch.float64)
    """
    points, x, y = (values.double().contiguous() for values in (confidence, x, y))
    if not len(x):
        return torch.full_like(points, torch.nan)
    right = torch.searchsorted(x, points).clamp(max=len(x) - 1)
    left = (right - 1).clamp(min=0)
    width = x[right] - x[left]
    share = torch.where(width > 0, (points - x[left]) / width, 0).clamp(0, 1)
    return (y[left] + share * (y[right] - y[left])).clamp(0, 1).masked_fill(points.isnan(), torch.nan)


def platt(confidence: Float[Tensor, " n"], correct: Correct, steps: int = 100) -> tuple[float, float]:
    """Slope a and offset b of ``σ(a confidence + b)``, by maximum likelihood with Platt's targets (Platt, 1999).

    The targets are (n₊ + 1)/(n₊ + 2) for correct labels and 1/(n₋ + 2) for incorrect ones, not 1 and 0. So a few
    examples never give certainty, and the optimum is finite. The input is the confidence itself and not its logit:
    critics often report a confidence of 1, which has an infinite logit. A negative slope means that the critic errs
    more often the more confident it is.

    Minimized by Newton steps, halved while the loss rises again at their end. That test reads the sign of the slope of
    the loss and compares no losses, so rounding cannot stall the fit. Let r be the largest change of any logit in a
    full step. A step of size ``log(1 + r)/r`` never overshoots, because the curvature of the loss changes at most by
    the factor ``exp(r t)`` along the step (Bach, 2010): no step is made smaller. The fit ends after a step with
    r ≤ 1e-9.

    If all confidences are equal to within 1e-9, a is 0. Without examples a and b are NaN.

    Raises:
        ValueError: no convergence within ``steps`` steps.
    """
    x, right = confidence.double(), correct.double()
    if not len(x):
        return math.nan, math.nan
    positive = float(right.sum())
    high, low = (positive + 1) / (positive + 2), 1 / (len(x) - positive + 2)
    target = torch.full_like(x, low).masked_fill(right > 0.5, high)
    a, b = 0.0, float(target.mean().logit())
    middle = float(x.mean())
    scale = float((x - middle).abs().max())
    if scale < 1e-9:
        return a, b
    z = (x - middle) / scale
    for _ in range(steps):
        p = (a * z + b).sigmoid()
        residual, curvature = p - target, p * (1 - p)
        # Around its weighted mean, z is uncorrelated with the constant: the 2 × 2 system is diagonal.
        center = float((curvature * z).sum() / curvature.sum())
        offset = z - center
        slope_step = float((residual * offset).sum() / (curvature * offset.square()).sum())
        level_step = float(residual.sum() / curvature.sum())
        change = slope_step * offset + level_step
        reach = float(change.abs().max())
        least = math.log1p(reach) / reach if reach else 1.0
        size = 1.0
        while size > least and float((((a * z + b - size * change).sigmoid() - target) * change).sum()) < 0:
            size = max(size / 2, least)
        a -= size * slope_step
        b -= size * (level_step - slope_step * center)
        if reach <= 1e-9:
            return a / scale, b - a * middle / scale
    raise ValueError(f"platt: no convergence in {steps} steps; use isotonic")


def cross_validated(
    fit: CurveFitter, confidence: Float[Tensor, " n"], correct: Correct, fold: Int[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """Out-of-fold calibrated confidences: each example's curve is fitted to the other folds only.

    Folds are numbered from 0. NaN if there is a single fold.
    """
    calibrated = torch.full((len(confidence),), torch.nan, dtype=torch.float64)
    for number in range(int(fold.max()) + 1 if len(fold) else 0):
        held_out = fold == number
        if not bool(held_out.all()):
            calibrated[held_out] = fit(confidence[~held_out], correct[~held_out])(confidence[held_out])
    return calibrated


def brier(confidence: Float[Tensor, " n"], correct: Correct) -> float:
    """Brier score: the mean of ``(confidence − correct)²``. NaN without examples."""
    return float((confidence.double() - correct.double()).square().mean())


@dataclass(frozen=True)
class ReliabilityCurve:
    """Reliability by bin of the confidence: mean confidence, accuracy with its 95 % Wilson interval, and count.

    An empty bin has count 0 and NaN elsewhere.
    """

    confidence: Float[Tensor, " bins"]
    accuracy: Float[Tensor, " bins"]
    count: Int[Tensor, " bins"]
    low: Float[Tensor, " bins"]
    high: Float[Tensor, " bins"]


def reliability(confidence: Float[Tensor, " n"], correct: Correct, bins: int = 10) -> ReliabilityCurve:
    """Reliability over ``bins`` bins of equal width.

    Bin i contains ``i/bins ≤ confidence < (i+1)/bins``; the last bin also contains 1.

    Raises:
        ValueError: fewer than one bin.
    """
    if bins < 1:
        raise ValueError(f"bins is {bins}; it must be at least 1")
    edges = torch.tensor([i / bins for i in range(1, bins)], dtype=torch.float64)
    index = torch.bucketize(confidence.double(), edges, right=True)
    count = torch.bincount(index, minlength=bins)
    right = torch.zeros(bins, dtype=torch.float64).index_add(0, index, correct.double())
    total = torch.zeros(bins, dtype=torch.float64).index_add(0, index, confidence.double())
    return ReliabilityCurve(total / count, right / count, count, *wilson(right, count.double()))


def expected_calibration_error(confidence: Float[Tensor, " n"], correct: Correct, bins: int = 10) -> float:
    """Expected calibration error: ``Σ over bins of count/n |accuracy − mean confidence|`` (see ``reliability``).

    NaN without examples. With few examples per bin the estimate is biased upward: even a perfectly calibrated critic
    has an error, from the sampling noise of the accuracies.
    """
    curve = reliability(confidence, correct, bins)
    gap = (curve.accuracy - curve.confidence).abs().nan_to_num(0)
    return float((gap * curve.count).sum() / curve.count.sum())


def wilson(right: Float[Tensor, " n"], count: Float[Tensor, " n"]) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Bounds of the 95 % Wilson interval for the proportion ``right / count`` (Wilson, 1927). NaN where count is 0.

    >>> [f"{float(bound[0]):.3f}" for bound in wilson(torch.tensor([9.0]), torch.tensor([10.0]))]
    ['0.596', '0.982']
    """
    share, extra = right / count, Z95**2 / count
    middle = (share + extra / 2) / (1 + extra)
    half = Z95 * ((share * (1 - share) + extra / 4) / count).sqrt() / (1 + extra)
    return (middle - half).minimum(share).clamp(min=0), (middle + half).maximum(share).clamp(max=1)


def _floats(values: Tensor) -> list[float]:
    return cast(list[float], values.double().tolist())  # pyright: ignore[reportUnknownMemberType]
