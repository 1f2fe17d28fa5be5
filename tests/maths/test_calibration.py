"""Calibration curves against brute force, grids and gradients; its measures against loops; intervals by simulation."""

import itertools
import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from grape_rl.maths.calibration import (
    brier,
    cross_validated,
    expected_calibration_error,
    interpolated,
    isotonic,
    platt,
    reliability,
    wilson,
)

sure = st.integers(0, 20).map(lambda told: told / 20)
examples = st.lists(st.tuples(sure, st.booleans()), min_size=1, max_size=40)


def tensors(found):
    return (
        torch.tensor([c for c, _ in found], dtype=torch.float64),
        torch.tensor([float(r) for _, r in found], dtype=torch.float64),
    )


def best_steps(points):
    """The least squares of all non-decreasing step curves: every way to cut the points into runs of one mean."""
    best = (math.inf, None)
    for cuts in itertools.product([False, True], repeat=len(points) - 1):
        runs = [[points[0]]]
        for point, cut in zip(points[1:], cuts, strict=True):
            runs.append([point]) if cut else runs[-1].append(point)
        means = [sum(w * y for _, y, w in run) / sum(w for *_, w in run) for run in runs]
        if all(low <= high for low, high in itertools.pairwise(means)):
            fit = [mean for mean, run in zip(means, runs, strict=True) for _ in run]
            lost = sum(w * (f - y) ** 2 for f, (_, y, w) in zip(fit, points, strict=True))
            best = min(best, (lost, fit), key=lambda each: each[0])
    return best


@given(st.lists(st.tuples(st.sampled_from([0.1, 0.3, 0.5, 0.6, 0.9]), st.booleans(), st.integers(1, 4)), min_size=1, max_size=7))  # fmt: skip  # noqa: E501
@settings(max_examples=150, deadline=None)
def test_isotonic_is_the_best_of_all_monotone_steps(found):
    confidence, correct = tensors([each[:2] for each in found])
    weight = torch.tensor([float(each[2]) for each in found], dtype=torch.float64)
    x, y = isotonic(confidence, correct, weight)
    got = interpolated(confidence, x, y)
    # Equal confidences have one value, so the curves are over the confidences that differ.
    points = []
    for c in sorted({each[0] for each in found}):
        here = [each for each in found if each[0] == c]
        mass = sum(each[2] for each in here)
        points.append((c, sum(each[1] * each[2] for each in here) / mass, mass))
    _, fit = best_steps(points)
    expected = {c: value for (c, *_), value in zip(points, fit, strict=True)}
    assert got.tolist() == pytest.approx([expected[each[0]] for each in found], abs=1e-12)
    doubled = [pair for (c, r, w) in found for pair in [(c, r)] * w]  # a weight is so many examples
    assert interpolated(confidence, *isotonic(*tensors(doubled))).tolist() == pytest.approx(got.tolist(), abs=1e-12)


@given(examples)
@settings(max_examples=60, deadline=None)
def test_isotonic_rises_within_bounds_and_keeps_the_mean(found):
    confidence, correct = tensors(found)
    x, y = isotonic(confidence, correct)
    grid = torch.linspace(0, 1, 101, dtype=torch.float64)
    curve = interpolated(grid, x, y)
    assert (curve.diff() >= -1e-12).all() and curve.min() >= 0 and curve.max() <= 1
    assert (x.diff() > 0).all() and x.min() >= 0 and x.max() <= 1
    fitted = interpolated(confidence, x, y)
    assert float(fitted.mean()) == pytest.approx(float(correct.mean()))
    assert brier(fitted, correct) <= min(brier(confidence, correct), brier(correct.mean().expand(len(found)), correct)) + 1e-12  # fmt: skip  # noqa: E501
    again = torch.randperm(len(found), generator=torch.Generator().manual_seed(0))
    assert isotonic(confidence[again], correct[again])[1].tolist() == pytest.approx(y.tolist())


def test_between_and_beyond_the_knots():
    x, y = torch.tensor([0.2, 0.4, 0.8]), torch.tensor([0.1, 0.5, 1.4])
    at = torch.tensor([[0.0, 0.2, 0.3], [0.5, 1.0, math.nan]])
    found = interpolated(at, x, y)
    assert found.flatten().tolist() == pytest.approx([0.1, 0.1, 0.3, 0.725, 1, math.nan], nan_ok=True, abs=1e-6)
    assert interpolated(torch.tensor([0.1, 0.9]), x[:1], y[:1]).tolist() == pytest.approx([0.1, 0.1], abs=1e-6)
    empty = torch.zeros(0)
    assert interpolated(torch.tensor([0.5]), *isotonic(empty, empty)).isnan().all()


def platt_loss(a, b, found):
    """Platt's own words: cross-entropy with n₊ + 1 of n₊ + 2 and 1 of n₋ + 2 in place of 1 and 0."""
    right = sum(r for _, r in found)
    wrong = len(found) - right
    high, low = (right + 1) / (right + 2), 1 / (wrong + 2)
    total = 0.0
    for c, r in found:
        p = 1 / (1 + math.exp(-(a * c + b)))
        t = high if r else low
        total -= t * math.log(p) + (1 - t) * math.log(1 - p)
    return total


@given(examples.filter(lambda found: len({c for c, _ in found}) > 1))
@settings(max_examples=60, deadline=None)
def test_platt_is_a_stationary_point(found):
    a, b = platt(*tensors(found))
    a_, b_ = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (a, b))
    confidence, correct = tensors(found)
    right = correct.sum()
    high, low = (right + 1) / (right + 2), 1 / (len(found) - right + 2)
    target = correct * high + (1 - correct) * low
    loss = torch.nn.functional.binary_cross_entropy_with_logits(a_ * confidence + b_, target, reduction="sum")
    loss.backward()
    assert abs(float(a_.grad)) < 1e-12 * len(found) and abs(float(b_.grad)) < 1e-12 * len(found)


def sigmoid(z):
    return 1 / (1 + math.exp(-z)) if z > -700 else 0.0


def root(increasing):
    """Where an increasing function is 0, by bisection."""
    low, high = -1.0, 1.0
    while increasing(low) > 0:
        low *= 2
    while increasing(high) < 0:
        high *= 2
    while low < (middle := (low + high) / 2) < high:
        low, high = (low, middle) if increasing(middle) > 0 else (middle, high)
    return (low + high) / 2


def platt_logits(found):
    """The fitted logits by another road: the offset by bisection for each slope, and the slope by bisection on those.

    For a fixed slope the derivative by the offset increases; at the best offset, the derivative by the slope does. The
    confidences are scaled to [−1, 1], which changes slope and offset but no logit.
    """
    right = sum(r for _, r in found)
    target = [(right + 1) / (right + 2) if r else 1 / (len(found) - right + 2) for _, r in found]
    middle = math.fsum(c for c, _ in found) / len(found)
    scale = max(abs(c - middle) for c, _ in found)
    points = [((c - middle) / scale, t) for (c, _), t in zip(found, target, strict=True)]

    def offset(a):
        return root(lambda b: math.fsum(sigmoid(a * z + b) - t for z, t in points))

    def slope_of_loss(a):
        b = offset(a)
        return math.fsum((sigmoid(a * z + b) - t) * z for z, t in points)

    a = root(slope_of_loss)
    return [a * z + offset(a) for z, _ in points]


critics = st.one_of(sure, st.floats(0, 1), st.floats(0, 8).map(lambda n: 1 - 10**-n), st.sampled_from([0.5, 0.5000001]))
labels = st.lists(st.tuples(critics, st.booleans()), min_size=2, max_size=12)


@given(labels.filter(lambda found: max(found)[0] - min(found)[0] > 1e-8))
@example([(0.6, False), (0.4, True), (0.2, True), (0.15, True), (0.2, True), (1.0, True)])  # once stalled on rounding
@example([(0.0, False)] * 11 + [(1e-8 * 1.1, True)])
@settings(max_examples=40, deadline=None)
def test_platt_against_bisection_on_the_gradient(found):
    a, b = platt(*tensors(found))
    # The slope of confidences that nearly agree is large, and cancels against the offset: up to 1e9 of 1e-16 each.
    tolerance = 1e-10 + 1e-15 * (abs(a) + abs(b))
    assert [a * c + b for c, _ in found] == pytest.approx(platt_logits(found), abs=tolerance, rel=0)


def test_platt_fits_many_labels_in_few_steps():
    confidence = torch.linspace(0, 1, 20_000, dtype=torch.float64)
    for power in (1, 50):  # spread evenly, and nearly all of them next to 0
        for correct in (confidence > 0.5, confidence > 0.999, confidence < 0.001):
            assert all(map(math.isfinite, platt(confidence**power, correct, steps=25)))


def test_platt_computes_in_float64():
    """Targets in float32 would be off by 1e-8: 2/3 has no exact value there."""
    confidence, correct = torch.tensor([0.25, 0.25, 0.75]), torch.tensor([True, False, False])
    assert platt(confidence, correct) == platt(confidence.double(), correct.double())
    a, b = platt(confidence, correct)
    # Two confidences and two parameters: each fitted probability is the mean target there.
    assert sigmoid(0.25 * a + b) == pytest.approx((2 / 3 + 1 / 4) / 2, abs=1e-13)
    assert sigmoid(0.75 * a + b) == pytest.approx(1 / 4, abs=1e-13)


def test_platt_is_lower_than_any_of_a_grid_around_it():
    found = [(c / 20, (c * 7) % 20 < c) for c in range(21)] * 2
    a, b = platt(*tensors(found))
    best = platt_loss(a, b, found)
    for da, db in itertools.product([-1, -0.1, -0.01, 0, 0.01, 0.1, 1], repeat=2):
        assert platt_loss(a + da, b + db, found) >= best - 1e-12


def test_platt_at_its_edges():
    one = torch.full((8,), 0.9), torch.ones(8)
    a, b = platt(*one)
    assert a == 0 and 1 / (1 + math.exp(-b)) == pytest.approx(9 / 10)  # 8 right: (8 + 1)/(8 + 2)
    a, b = platt(torch.tensor([0.9, 0.9, 0.9]), torch.tensor([1.0, 0.0, 0.0]))
    assert a == 0 and 1 / (1 + math.exp(-b)) == pytest.approx((2 / 3 + 1 / 4 + 1 / 4) / 3)
    assert all(map(math.isnan, platt(torch.zeros(0), torch.zeros(0))))
    split = torch.tensor([0.1, 0.2, 0.3, 0.999, 1.0]), torch.tensor([0.0, 0, 0, 1, 1])  # separable: still finite
    a, _ = platt(*split)
    assert 0 < a < 100
    assert platt(1 - split[0], split[1])[0] == pytest.approx(-a)  # more confident where it errs: the curve decreases
    nearly = torch.tensor([0.5, 0.5 + 1e-6] * 20), torch.tensor([0.0, 1.0] * 20)
    assert math.isfinite(platt(*nearly)[0])
    for other in (0.5, math.nextafter(0.5, 1), 0.5 + 1e-10):  # no slope from rounding noise
        assert platt(torch.tensor([0.5, other]).double(), torch.tensor([False, True])) == (0.0, 0.0)
    with pytest.raises(ValueError, match="platt: no convergence in 1 steps; use isotonic"):
        platt(*split, steps=1)


def by_loop(found, bins):
    held = [[] for _ in range(bins)]
    for c, r in found:
        place = max(i for i in range(bins) if i == 0 or i / bins <= c)
        held[place].append((c, float(r)))
    return held


@given(examples, st.integers(1, 12))
@settings(max_examples=80, deadline=None)
def test_bins_by_a_loop(found, bins):
    got = reliability(*tensors(found), bins)
    held = by_loop(found, bins)
    assert got.count.tolist() == [len(each) for each in held]
    off = 0.0
    for i, each in enumerate(held):
        if not each:
            assert all(math.isnan(field[i]) for field in (got.confidence, got.accuracy, got.low, got.high))
            continue
        mean, accuracy = sum(c for c, _ in each) / len(each), sum(r for _, r in each) / len(each)
        assert (float(got.confidence[i]), float(got.accuracy[i])) == pytest.approx((mean, accuracy))
        assert got.low[i] <= accuracy <= got.high[i]
        off += len(each) / len(found) * abs(mean - accuracy)
    assert expected_calibration_error(*tensors(found), bins) == pytest.approx(off)
    assert brier(*tensors(found)) == pytest.approx(sum((c - r) ** 2 for c, r in found) / len(found))


def test_measures_of_nothing():
    empty = torch.zeros(0)
    assert math.isnan(brier(empty, empty)) and math.isnan(expected_calibration_error(empty, empty))
    assert reliability(empty, empty, 3).count.tolist() == [0, 0, 0]
    assert reliability(torch.tensor([1.0]), torch.tensor([True]), 4).count.tolist() == [0, 0, 0, 1]
    with pytest.raises(ValueError, match="bins is 0"):
        reliability(empty, empty, 0)


def test_wilson_solves_its_equation_and_covers():
    """Its ends are where the normal test of a share just fails; and 95 of 100 times the true share is inside."""
    right, count = torch.tensor([0.0, 3, 10, 10], dtype=torch.float64), torch.tensor([8.0, 12, 10, 40]).double()
    for low, high, k, n in zip(*wilson(right, count), right, count, strict=True):
        for end in (low, high):
            if 1e-6 < end < 1 - 1e-6:
                assert float((k / n - end).abs()) == pytest.approx(1.95996398 * float((end * (1 - end) / n).sqrt()))
    draws = torch.Generator().manual_seed(0)
    for share in (0.5, 0.8, 0.95):
        hits = (torch.rand(4000, 40, generator=draws, dtype=torch.float64) < share).double().sum(1)
        low, high = wilson(hits, torch.full_like(hits, 40))
        assert 0.92 < float(((low <= share) & (share <= high)).double().mean()) < 0.98


def test_out_of_fold_curves_never_saw_what_they_calibrate():
    def fit(confidence, correct):
        seen.append(set(confidence.tolist()))
        mean = correct.double().mean()
        return lambda at: torch.full_like(at.double(), float(mean))

    seen = []
    confidence = torch.arange(6).double() / 10
    correct = torch.tensor([1.0, 0, 1, 1, 0, 0]).double()
    fold = torch.tensor([0, 1, 2, 0, 1, 2])
    found = cross_validated(fit, confidence, correct, fold)
    assert found.tolist() == pytest.approx([1 / 4, 3 / 4, 2 / 4, 1 / 4, 3 / 4, 2 / 4])
    assert all(seen[n] == set(confidence[fold != n].tolist()) for n in range(3))
    assert cross_validated(fit, confidence, correct, torch.zeros(6, dtype=torch.long)).isnan().all()
