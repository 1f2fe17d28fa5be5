"""From how sure a critic says it is to how often it is right: curves that are fitted to people's labels, and measures.

``confidence`` is the critic's, in [0, 1]; ``correct`` is 1 where its label was right and 0 where it was not. Everything
is computed in float64.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Z95 = 1.959963984540054
"""The normal distribution's 97.5 % point: what makes an interval of 95 %."""

Correct = Float[Tensor, " n"] | Bool[Tensor, " n"]
Fit = Callable[[Float[Tensor, " n"], Correct], Callable[[Float[Tensor, " m"]], Float[Tensor, " m"]]]
"""Confidence and whether it was right → a function that calibrates confidence."""


def isotonic(
    confidence: Float[Tensor, " n"], correct: Correct, weight: Float[Tensor, " n"] | None = None
) -> tuple[Float[Tensor, " k"], Float[Tensor, " k"]]:
    """The non-decreasing curve f with the least ``Σ weight (f(confidence) − correct)²``, as knots for ``interpolated``.

    Pool adjacent violators: equal confidences are one point, their mean; then neighbors that fall are pooled into
    blocks. A block of several points has a knot at either end, so the curve is level along it. It passes through the
    fit at each confidence that was seen. ``weight`` (above 0; 1 if left out) counts an example several times. No
    examples: no knots.

    >>> isotonic(torch.tensor([0.2, 0.4, 0.6, 0.8]), torch.tensor([0.0, 1.0, 0.0, 1.0]))[1]
    tensor([0.0000, 0.5000, 0.5000, 1.0000], dtype=torch.float64)
    """
    each = torch.ones_like(confidence) if weight is None else weight
    points: dict[float, tuple[float, float]] = {}  # by confidence: the weight, and that of what is right
    for x, right, w in zip(_floats(confidence), _floats(correct), _floats(each), strict=True):
        mass, hit = points.get(x, (0.0, 0.0))
        points[x] = mass + w, hit + w * right
    blocks: list[tuple[float, float, float, float]] = []  # first and last confidence, weight, and that of what is right
    for x, (mass, hit) in sorted(points.items()):
        first = x
        while blocks and blocks[-1][3] * mass >= hit * blocks[-1][2]:
            first, _, before, found = blocks.pop()
            mass, hit = mass + before, hit + found
        blocks.append((first, x, mass, hit))
    knots = [(x, hit / mass) for first, last, mass, hit in blocks for x in dict.fromkeys((first, last))]
    x, y = torch.tensor(knots, dtype=torch.float64).reshape(-1, 2).unbind(1)
    return x, y


def interpolated(
    confidence: Float[Tensor, "..."], x: Float[Tensor, " k"], y: Float[Tensor, " k"]
) -> Float[Tensor, "..."]:
    """The curve through the knots (``x`` rising), straight between them and level beyond, clipped to [0, 1].

    NaN where the confidence is NaN, and everywhere without a knot.

    >>> interpolated(torch.tensor([0.0, 0.5, 1.0]), torch.tensor([0.4, 0.8]), torch.tensor([0.2, 0.6]))
    tensor([0.2000, 0.3000, 0.6000], dtype=torch.float64)
    """
    at, x, y = (each.double().contiguous() for each in (confidence, x, y))
    if not len(x):
        return torch.full_like(at, torch.nan)
    right = torch.searchsorted(x, at).clamp(max=len(x) - 1)
    left = (right - 1).clamp(min=0)
    run = x[right] - x[left]
    share = torch.where(run > 0, (at - x[left]) / run, 0).clamp(0, 1)
    return (y[left] + share * (y[right] - y[left])).clamp(0, 1).masked_fill(at.isnan(), torch.nan)


def platt(confidence: Float[Tensor, " n"], correct: Correct, steps: int = 100) -> tuple[float, float]:
    """Slope a and offset b of ``σ(a confidence + b)``, by maximum likelihood with Platt's targets (Platt, 1999).

    The targets are (n₊ + 1)/(n₊ + 2) for what was right and 1/(n₋ + 2) for what was wrong, not 1 and 0: so a few
    examples are never certain, and the best curve is finite. It is of the confidence itself and not of its logit, since
    critics like to be certain, and the logit of 1 is infinite. By Newton's method with halved steps (Lin, Lin and Weng,
    2007). A slope below 0 is a critic that errs more the surer it is.

    One confidence only: a is 0. No examples: both are NaN.

    Raises:
        ValueError: no convergence within ``steps`` steps.
    """
    x, right = confidence.double(), correct.double()
    if not len(x):
        return math.nan, math.nan
    positive = float(right.sum())
    target = torch.where(right > 0.5, (positive + 1) / (positive + 2), 1 / (len(x) - positive + 2))
    a, b = 0.0, float(target.mean().logit())
    if not bool((x != x[0]).any()):
        return a, b
    middle = float(x.mean())
    x = x - middle  # else slope and offset are nearly one parameter where all confidences are high

    def loss(a: float, b: float) -> float:
        z = a * x + b
        return float((torch.nn.functional.softplus(z) - target * z).sum())

    for _ in range(steps):
        p = (a * x + b).sigmoid()
        da, db = float(((p - target) * x).sum()), float((p - target).sum())
        if max(abs(da), abs(db)) <= 1e-9 * len(x):
            return a, b - a * middle
        sure = p * (1 - p)
        aa, ab, bb = float((sure * x * x).sum()), float((sure * x).sum()), float(sure.sum())
        determinant = aa * bb - ab * ab
        step_a, step_b = (bb * da - ab * db) / determinant, (aa * db - ab * da) / determinant
        size, now, promised = 1.0, loss(a, b), 1e-4 * (da * step_a + db * step_b)
        while size > 1e-10 and loss(a - size * step_a, b - size * step_b) > now - size * promised:
            size /= 2
        a, b = a - size * step_a, b - size * step_b
    raise ValueError(f"platt: no convergence in {steps} steps; use isotonic")


def cross_validated(
    fit: Fit, confidence: Float[Tensor, " n"], correct: Correct, fold: Int[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """Each example's confidence, calibrated by a curve that was fitted to the other folds alone.

    Folds are numbered from 0. With a single fold there are no others: NaN.
    """
    found = torch.full((len(confidence),), torch.nan, dtype=torch.float64)
    for number in range(int(fold.max()) + 1 if len(fold) else 0):
        out = fold == number
        if not bool(out.all()):
            found[out] = fit(confidence[~out], correct[~out])(confidence[out])
    return found


def brier(confidence: Float[Tensor, " n"], correct: Correct) -> float:
    """Brier's score: the mean of ``(confidence − correct)²``. NaN without examples."""
    return float((confidence.double() - correct.double()).square().mean())


@dataclass(frozen=True)
class Reliability:
    """By bins of the confidence: its mean, how often it was right with Wilson's interval of 95 %, how many there were.

    In a bin that nothing falls into all is NaN, and the count 0.
    """

    confidence: Float[Tensor, " bins"]
    accuracy: Float[Tensor, " bins"]
    count: Int[Tensor, " bins"]
    low: Float[Tensor, " bins"]
    high: Float[Tensor, " bins"]


def reliability(confidence: Float[Tensor, " n"], correct: Correct, bins: int = 10) -> Reliability:
    """The reliability curve over ``bins`` bins of equal width: bin i holds ``i/bins ≤ confidence < (i+1)/bins``, and
    the last one 1 too.

    Raises:
        ValueError: fewer than one bin.
    """
    if bins < 1:
        raise ValueError(f"bins is {bins}; there has to be one at least")
    edges = torch.tensor([i / bins for i in range(1, bins)], dtype=torch.float64)
    place = torch.bucketize(confidence.double(), edges, right=True)
    count = torch.bincount(place, minlength=bins)
    right = torch.zeros(bins, dtype=torch.float64).index_add(0, place, correct.double())
    sure = torch.zeros(bins, dtype=torch.float64).index_add(0, place, confidence.double())
    return Reliability(sure / count, right / count, count, *wilson(right, count.double()))


def expected_calibration_error(confidence: Float[Tensor, " n"], correct: Correct, bins: int = 10) -> float:
    """``Σ over bins of count/n |accuracy − mean confidence|`` (see ``reliability``). NaN without examples.

    With few examples a bin it is too high: what a perfectly calibrated critic has there is the noise of the accuracies.
    """
    found = reliability(confidence, correct, bins)
    gap = (found.accuracy - found.confidence).abs().nan_to_num(0)
    return float((gap * found.count).sum() / found.count.sum())


def wilson(right: Float[Tensor, " n"], count: Float[Tensor, " n"]) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Wilson's interval of 95 % for the share of ``right`` in ``count`` (Wilson, 1927). NaN where the count is 0.

    >>> [f"{float(bound[0]):.3f}" for bound in wilson(torch.tensor([9.0]), torch.tensor([10.0]))]
    ['0.596', '0.982']
    """
    share, extra = right / count, Z95**2 / count
    middle = (share + extra / 2) / (1 + extra)
    half = Z95 * ((share * (1 - share) + extra / 4) / count).sqrt() / (1 + extra)
    return (middle - half).minimum(share).clamp(min=0), (middle + half).maximum(share).clamp(max=1)


def _floats(values: Tensor) -> list[float]:
    return cast(list[float], values.double().tolist())  # pyright: ignore[reportUnknownMemberType]
