"""GDPO's sum of normalized items against a loop, and the effect of normalizing before summing."""

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grape_rl.maths.advantage import batch_normalized, group_relative
from grape_rl.maths.gdpo import normalize_then_sum
from grape_rl.maths.grape import unweighted
from grape_rl.maths.groups import EPSILON, group_mean

NAN = math.nan
unhurried = settings(deadline=None, max_examples=60)  # the first call loads things

scores = st.integers(0, 40).map(lambda i: i / 8)  # exact in binary, so that equal is equal
known = st.tuples(scores, st.sampled_from([0.0, 0.5, 1.0]))
verdicts = st.one_of(known, known, known, st.sampled_from([(NAN, NAN), (1.0, NAN)]))
weights = st.sampled_from([-2.0, -0.5, 0.0, 0.25, 1.0, 3.0])


@st.composite
def graded(draw, verdict=verdicts, weight=weights, max_items=3, most=9):
    """score, confidence, weight, group of a small batch."""
    b, k = draw(st.integers(1, most)), draw(st.integers(1, max_items))
    pair = torch.tensor(draw(st.lists(st.lists(verdict, min_size=k, max_size=k), min_size=b, max_size=b))).double()
    w = draw(st.lists(weight, min_size=k, max_size=k))
    group = draw(st.lists(st.sampled_from([-1, 4]), min_size=b, max_size=b))
    return pair[..., 0], pair[..., 1], torch.tensor(w).double(), torch.tensor(group)


whole = graded(st.tuples(scores, st.just(1.0)), st.sampled_from([-2.0, 0.25, 1.0, 3.0]))  # no verdict missing


def close(found, expected, tolerance=1e-10):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


@unhurried
@given(graded())
def test_against_the_rules_in_plain_python(batch):
    score, confidence, weight, group = (each.tolist() for each in batch)
    expected = []
    for i, g in enumerate(group):
        mates = [j for j, other in enumerate(group) if other == g]
        total, lost, usable = 0.0, 0.0, False
        for k, w in enumerate(weight):
            have = {j: score[j][k] for j in mates if not (math.isnan(score[j][k]) or math.isnan(confidence[j][k]))}
            lost += abs(w) * (i not in have)
            if len(have) < len(mates) / 2:
                continue
            usable = usable or w != 0
            values = list(have.values())
            if i in have and len(set(values)) > 1:
                total += w * (have[i] - statistics.fmean(values)) / (statistics.stdev(values) + EPSILON)
        expected.append(total if usable and 2 * lost <= sum(map(abs, weight)) else NAN)
    close(normalize_then_sum(*batch).tolist(), expected)


@unhurried
@given(graded(st.tuples(scores, st.just(1.0)), st.just(1.0), max_items=1))
def test_one_item_gives_grpos_advantage_to_the_last_bit_up_to_the_batch_scale(batch):
    score, _, _, group = batch
    found, grpo = normalize_then_sum(*batch), group_relative(score[:, 0], group)
    assert torch.equal(found, grpo)
    scaled, largest = batch_normalized(found, group), grpo.abs().argmax()
    if grpo.any():
        assert scaled[largest] / grpo[largest] > 0
        close(scaled, grpo * (scaled[largest] / grpo[largest]))  # the groups' means are 0 but for their rounding
    else:
        assert not scaled.any()


@unhurried
@given(whole, st.sampled_from([2.0**-7, 2.0**9]), st.integers(-9, 9))
def test_the_scale_of_an_item_does_not_matter(batch, factor, offset):
    """But for the 1e-6 beside the deviation: of scores this large, less than 1e-8 of it."""
    score, confidence, weight, group = batch
    other = score.clone()
    other[:, 0] = score[:, 0] * factor + offset
    exact = normalize_then_sum(score * 2.0**20, confidence, weight, group)
    close(normalize_then_sum(other * 2.0**20, confidence, weight, group), exact, tolerance=1e-7)


def test_the_range_of_an_item_matters_for_the_mean_score_only():
    """Right or wrong in 0 and 1, brevity in 0 to 30: summed first, brevity is all that is seen."""
    score = torch.tensor([[1.0, 0.0], [0.0, 30.0], [1.0, 0.0], [0.0, 30.0]], dtype=torch.float64)
    ones, weight, group = torch.ones_like(score), torch.tensor([2.0, 1.0]).double(), torch.zeros(4, dtype=torch.int64)
    assert (group_relative(unweighted(score, ones, weight, group), group) > 0).tolist() == [False, True, False, True]
    assert (normalize_then_sum(score, ones, weight, group) > 0).tolist() == [True, False, True, False]


def test_different_scores_with_one_sum_have_different_advantages():
    """(1, 1) and (2, 0) are one reward. The second item spreads less, so that lacking it is further from the rest."""
    score = torch.tensor([[1.0, 1.0], [2.0, 0.0], [0.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    ones, weight, group = torch.ones_like(score), torch.ones(2).double(), torch.zeros(4, dtype=torch.int64)
    reward = unweighted(score, ones, weight, group)
    assert reward[0] == reward[1]
    found = normalize_then_sum(score, ones, weight, group)
    first, second = statistics.stdev([1, 2, 0, 0]) + EPSILON, statistics.stdev([1, 0, 1, 1]) + EPSILON
    others = [-0.75 / first + 0.25 / second] * 2
    close(found.tolist(), [0.25 / first + 0.25 / second, 1.25 / first - 0.75 / second, *others])
    assert abs(found[0] - found[1]) > 0.5


@unhurried
@given(whole, scores, weights)
def test_a_constant_item_adds_nothing(batch, same, importance):
    score, confidence, weight, group = batch
    longer = torch.cat([score, torch.full_like(score[:, :1], same)], 1)
    surer = torch.cat([confidence, torch.ones_like(confidence[:, :1])], 1)
    heavier = torch.cat([weight, torch.tensor([importance], dtype=torch.float64)])
    close(normalize_then_sum(longer, surer, heavier, group), normalize_then_sum(*batch), tolerance=0)


@unhurried
@given(graded(), st.randoms(use_true_random=False))
def test_the_order_of_responses_and_items_does_not_matter(batch, random):
    score, confidence, weight, group = batch
    rows, items = list(range(len(score))), list(range(len(weight)))
    random.shuffle(rows)
    random.shuffle(items)
    found = normalize_then_sum(score[rows][:, items], confidence[rows][:, items], weight[items], group[rows])
    close(found, normalize_then_sum(*batch)[rows])


@unhurried
@given(whole)
def test_the_mean_of_every_group_is_zero_and_a_negative_weight_inverts_its_item(batch):
    score, confidence, weight, group = batch
    found = normalize_then_sum(*batch)
    close(group_mean(found, group), torch.zeros_like(found))
    close(normalize_then_sum(score, confidence, -weight, group), -found, tolerance=0)


def test_confidence_matters_only_if_it_is_missing():
    score = torch.tensor([[1.0, 0.5], [0.0, 0.25], [0.5, 1.0]])
    weight, group = torch.ones(2), torch.zeros(3, dtype=torch.int64)
    sure = normalize_then_sum(score, torch.ones(3, 2), weight, group)
    unsure = torch.tensor([[0.1, 0.9], [0.0, 0.3], [1.0, 0.2]])
    assert torch.equal(normalize_then_sum(score, unsure, weight, group), sure)
    unsure[0, 1] = NAN
    assert normalize_then_sum(score, unsure, weight, group)[0] == group_relative(score[:, 0], group)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exactly_half_is_not_over_half_despite_rounding(dtype):
    weight, group = torch.tensor([0.1, 0.2, 0.3], dtype=dtype), torch.tensor([0, 0])
    for first in ([NAN, NAN, 1.0], [1.0, 1.0, NAN]):
        score = torch.tensor([first, [0.5, 0.5, 0.5]], dtype=dtype)
        found = normalize_then_sum(score, torch.ones_like(score), weight, group)
        assert found.isfinite().all() and found.dtype == dtype


def test_invalid_scores_and_weights_raise():
    ones, group = torch.ones(2, 1), torch.tensor([0, 0])
    with pytest.raises(ValueError, match="score has an infinite entry"):
        normalize_then_sum(torch.tensor([[1.0], [math.inf]]), ones, torch.ones(1), group)
    for bad in (NAN, math.inf):
        with pytest.raises(ValueError, match="every item's weight must be finite"):
            normalize_then_sum(ones, ones, torch.tensor([bad]), group)
