"""Cohen's κ against tables by hand, an independent loop and limits; its interval by simulation."""

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grape_rl.maths.agreement import cohen_kappa, confusion, correlation, rank_correlation, weighted_kappa

pairs = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=40)


def columns(found):
    return torch.tensor([a for a, _ in found]), torch.tensor([b for _, b in found])


def by_loop(found, agree):
    """κ from all pairs of examples: chance agreement is the agreement of labels of two independent draws."""
    n = len(found)
    observed = sum(agree(a, b) for a, b in found) / n
    expected = sum(agree(a, b) for a, _ in found for _, b in found) / n**2
    return (observed - expected) / (1 - expected) if expected < 1 else math.nan


def test_tables_by_hand():
    # 20 yes/yes, 5 yes/no, 10 no/yes, 15 no/no: observed 0.70, expected 0.5·0.6 + 0.5·0.4 = 0.50
    found = [(1, 1)] * 20 + [(1, 0)] * 5 + [(0, 1)] * 10 + [(0, 0)] * 15
    got = cohen_kappa(*columns(found), labels=2)
    assert (got.kappa, got.accuracy, got.base_rate, got.count) == pytest.approx((0.4, 0.7, 0.6, 50))
    assert confusion(*columns(found), labels=2).tolist() == [[15, 10], [5, 20]]
    # The variance by the 2 × 2 terms of Fleiss, Cohen and Everitt, written out cell by cell.
    cells, k = {(1, 1): 0.4, (1, 0): 0.1, (0, 1): 0.2, (0, 0): 0.3}, 0.4
    rows, cols = {1: 0.5, 0: 0.5}, {1: 0.6, 0: 0.4}
    a = sum(cells[i, i] * (1 - (rows[i] + cols[i]) * (1 - k)) ** 2 for i in (0, 1))
    b = (1 - k) ** 2 * sum(cells[i, j] * (cols[i] + rows[j]) ** 2 for i, j in ((0, 1), (1, 0)))
    c = (k - 0.5 * (1 - k)) ** 2
    half = 1.95996398 * math.sqrt((a + b - c) / (50 * 0.5**2))
    assert (got.low, got.high) == pytest.approx((k - half, k + half), rel=1e-6)


@given(pairs)
@settings(max_examples=100, deadline=None)
def test_kappa_by_an_independent_loop(found):
    got = cohen_kappa(*columns(found), labels=4)
    assert got.kappa == pytest.approx(by_loop(found, lambda a, b: a == b), nan_ok=True)
    assert got.accuracy == pytest.approx(sum(a == b for a, b in found) / len(found))
    assert got.base_rate == pytest.approx(max(sum(b == label for _, b in found) for label in range(4)) / len(found))
    place = [0.0, 0.2, 0.5, 1.0]
    weighted = weighted_kappa(*columns(found), torch.tensor(place))
    assert weighted.kappa == pytest.approx(
        by_loop(found, lambda a, b: 1 - (place[a] - place[b]) ** 2), nan_ok=True, abs=1e-6
    )
    assert weighted.accuracy == got.accuracy
    if not math.isnan(got.kappa):
        assert -1 <= got.low <= got.kappa <= got.high <= 1
    turned = cohen_kappa(*reversed(columns(found)), labels=4)  # neither rater is the truth
    assert (turned.kappa, turned.low) == pytest.approx((got.kappa, got.low), nan_ok=True)


def test_for_two_labels_the_weighted_kappa_equals_the_unweighted_one():
    found = columns([(0, 0), (0, 1), (1, 1), (1, 1), (1, 0), (0, 0), (1, 1)])
    plain, weighted = cohen_kappa(*found, labels=2), weighted_kappa(*found, torch.tensor([0.0, 1.0]))
    assert (plain.kappa, plain.low, plain.high) == pytest.approx((weighted.kappa, weighted.low, weighted.high))


def test_on_a_scale_near_misses_cost_less():
    near, far = [(0, 1), (1, 2), (2, 2), (0, 0)], [(0, 2), (1, 1), (2, 2), (0, 0)]
    scale = torch.tensor([0.0, 0.5, 1.0])
    assert weighted_kappa(*columns(near), scale).kappa > cohen_kappa(*columns(near), 3).kappa
    assert weighted_kappa(*columns(far), scale).kappa < cohen_kappa(*columns(far), 3).kappa


def test_degenerate_tables():
    same = torch.ones(5, dtype=torch.long)
    got = cohen_kappa(same, same, labels=2)
    assert math.isnan(got.kappa) and math.isnan(got.low) and (got.accuracy, got.base_rate, got.count) == (1, 1, 5)
    none = cohen_kappa(same[:0], same[:0], labels=2)
    assert none.count == 0 and all(map(math.isnan, (none.kappa, none.low, none.high, none.accuracy, none.base_rate)))
    half = torch.tensor([0, 1, 0, 1])
    assert cohen_kappa(same[:4], half, labels=2).kappa == 0  # a constant rater has κ = 0
    perfect = cohen_kappa(half, half, labels=2)
    assert (perfect.kappa, perfect.low, perfect.high) == (1, 1, 1)
    opposite = cohen_kappa(half, 1 - half, labels=2)
    assert opposite.kappa == -1


@pytest.mark.parametrize("noise", [0.1, 0.3])
def test_the_interval_has_its_coverage(noise):
    """For a known error rate the true κ is inside 95 % of the intervals, unweighted and weighted."""
    draws = torch.Generator().manual_seed(1)
    truth = torch.randint(3, (400, 500), generator=draws)
    told = torch.where(torch.rand(400, 500, generator=draws) < noise, torch.randint(3, (400, 500), generator=draws), truth)  # fmt: skip  # noqa: E501
    # Uniform labels: observed 1 − noise·2/3 and expected 1/3 give κ = 1 − noise, whatever the weights.
    scale = torch.tensor([0.0, 0.5, 1.0])
    for rater in (lambda a, b: cohen_kappa(a, b, 3), lambda a, b: weighted_kappa(a, b, scale)):
        inside = [r.low <= 1 - noise <= r.high for r in map(rater, told, truth)]
        assert 0.92 <= sum(inside) / 400 <= 0.98


def test_correlations_against_the_standard_library():
    x, y = torch.tensor([1.0, 2.0, 3.0, 5.0]), torch.tensor([2.0, 1.0, 4.0, 4.0])
    assert correlation(x, y) == pytest.approx(statistics.correlation(x.tolist(), y.tolist()))
    ranks = [1, 2, 3, 4], [2, 1, 3.5, 3.5]
    assert rank_correlation(x, y) == pytest.approx(statistics.correlation(*ranks))
    assert rank_correlation(x, x.exp()) == 1 and correlation(x, x.exp()) < 1
    for one, other in ((x, torch.full((4,), 0.1)), (x[:0], x[:0])):
        assert math.isnan(correlation(one, other)) and math.isnan(rank_correlation(other, one))
