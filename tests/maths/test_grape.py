"""GRAPE's reward against a plain loop, and the properties of the paper's formula."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from grape_rl.maths.advantage import group_relative, leave_one_out
from grape_rl.maths.grape import confidence_weighted, mean_score
from grape_rl.maths.surrogate import policy_gradient

NAN = math.nan
unhurried = settings(deadline=None)  # the first call loads things

scores = st.integers(0, 1000).map(lambda i: i / 1000)
confidences = st.sampled_from([0.0, 0.1, 0.3, 0.55, 0.7, 1.0])
weights = st.sampled_from([-2.0, -0.5, 0.1, 0.2, 0.3, 1.0, 3.0])
verdicts = st.one_of(st.tuples(scores, confidences), st.tuples(scores, confidences), st.just((NAN, NAN)))
ids = st.sampled_from([-1, 0, 5])


@st.composite
def graded(draw, verdict=verdicts, weight=weights, min_items=1, max_items=4):
    """score, confidence, weight, group of a small batch."""
    b, k = draw(st.integers(1, 8)), draw(st.integers(min_items, max_items))
    table = draw(st.lists(st.lists(verdict, min_size=k, max_size=k), min_size=b, max_size=b))
    pair = torch.tensor(table, dtype=torch.float64)
    w = draw(st.lists(weight, min_size=k, max_size=k))
    group = draw(st.lists(ids, min_size=b, max_size=b))
    return pair[..., 0], pair[..., 1], torch.tensor(w, dtype=torch.float64), torch.tensor(group)


whole = graded(st.tuples(scores, confidences.filter(bool)))  # no verdict missing, each with some confidence


def close(found, expected, tolerance=1e-12):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


def by_hand(score, confidence, weight, group, scope="group"):
    """The rules one after the other, in exact fractions, a response and an item at a time."""
    s, c, g = score.tolist(), confidence.tolist(), group.tolist()
    w = [Fraction(str(x)) for x in weight.tolist()]
    b, k = len(g), len(w)

    def known(i, item):
        return not (math.isnan(s[i][item]) or math.isnan(c[i][item]))

    def mean(values):
        return sum((Fraction(x) for x in values), Fraction(0)) / len(values)

    rewards = []
    for i in range(b):
        mates = [j for j in range(b) if g[j] == g[i]]
        above = below = Fraction(0)
        for item in range(k):
            have = [j for j in mates if known(j, item)]
            if 2 * len(have) < len(mates):
                continue
            pool = have if scope == "group" else [j for j in range(b) if known(j, item)]
            certainty = mean([c[j][item] for j in pool])
            mine = Fraction(s[i][item]) if known(i, item) else mean([s[j][item] for j in have])
            above += w[item] * certainty * mine
            below += abs(w[item]) * certainty
        missing = sum((abs(w[item]) for item in range(k) if not known(i, item)), Fraction(0))
        if below == 0 or 2 * missing > sum(abs(x) for x in w):
            rewards.append(NAN)
        else:
            rewards.append(float(above / below))
    return rewards


@unhurried
@given(graded(), st.sampled_from(["group", "batch"]))
def test_against_the_rules_in_plain_python(batch, scope):
    close(confidence_weighted(*batch, scope).tolist(), by_hand(*batch, scope))


@unhurried
@given(graded())
def test_mean_score_has_confidence_1_wherever_there_is_a_score(batch):
    score, _, weight, group = batch
    close(mean_score(score, weight, group).tolist(), by_hand(score, torch.ones_like(score), weight, group))


# Rules for what is missing, one at a time


def reward_of(score, confidence=None, weight=None, group=None, scope="group"):
    score = torch.tensor(score, dtype=torch.float64)
    confidence = torch.ones_like(score) if confidence is None else torch.tensor(confidence, dtype=torch.float64)
    weight = torch.ones(score.shape[1]).double() if weight is None else torch.tensor(weight, dtype=torch.float64)
    group = torch.zeros(len(score), dtype=torch.int64) if group is None else torch.tensor(group)
    return confidence_weighted(score, confidence, weight, group, scope).tolist()


def test_a_missing_score_is_replaced_by_the_items_mean_in_the_group():
    close(reward_of([[1.0, NAN], [0.0, 0.2], [0.5, 0.4]]), [(1 + 0.3) / 2, 0.1, 0.45])


@pytest.mark.parametrize("holder", ["score", "confidence"])
def test_a_verdict_needs_score_and_confidence(holder):
    score, confidence = [[1.0, 0.9], [0.0, 0.2], [0.5, 0.4]], [[0.5, 0.5], [0.5, 0.2], [0.5, 0.8]]
    {"score": score, "confidence": confidence}[holder][0][1] = NAN
    close(reward_of(score, confidence), [(1 + 0.3) / 2, 0.1, 0.45])


def test_an_item_with_half_of_its_verdicts_stays_and_with_fewer_is_dropped_for_that_group_only():
    half = [[1.0, NAN], [0.0, 0.4]]
    fewer = [[1.0, NAN], [0.0, NAN], [0.5, 0.4]]
    close(reward_of(half), [0.7, 0.2])
    close(reward_of(fewer), [1.0, 0.0, 0.5])
    close(reward_of(fewer + half, group=[0, 0, 0, 1, 1]), [1.0, 0.0, 0.5, 0.7, 0.2])


def test_a_response_without_over_half_of_its_weight_has_no_reward():
    close(reward_of([[1.0, NAN], [0.0, 0.4]], weight=[1.0, -1.1])[0], NAN)
    close(reward_of([[1.0, NAN], [0.0, 0.4]], weight=[1.1, -1.0])[0], (1.1 * 1 - 0.4) / 2.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 2, 0]])
def test_exactly_half_is_not_over_half_despite_rounding(order, dtype):
    score = torch.tensor([[NAN, NAN, 1.0], [0.5, 0.5, 0.5]], dtype=dtype)[:, order]
    weight = torch.tensor([0.1, 0.2, 0.3], dtype=dtype)[order]
    for flipped in (score, torch.tensor([[1.0, 1.0, NAN], [0.5, 0.5, 0.5]], dtype=dtype)[:, order]):
        assert mean_score(flipped, weight, torch.tensor([0, 0])).isfinite().all()


def test_a_group_without_usable_items_has_no_reward():
    close(reward_of([[1.0, 0.0], [0.0, 1.0]], confidence=[[0.0, 0.0], [0.0, 0.0]]), [NAN, NAN])
    close(reward_of([[1.0], [0.0]], weight=[0.0]), [NAN, NAN])
    close(reward_of([[NAN], [NAN], [0.3]], group=[0, 0, 1]), [NAN, NAN, 0.3])


def test_scope_selects_the_samples_of_the_mean_confidence():
    score, confidence = [[1.0, 0.0], [1.0, 0.0]], [[0.2, 0.6], [1.0, 0.2]]
    close(reward_of(score, confidence, group=[0, 1]), [0.25, 1 / 1.2])
    close(reward_of(score, confidence, group=[0, 1], scope="batch"), [0.6, 0.6])
    default = confidence_weighted(torch.tensor(score), torch.tensor(confidence), torch.ones(2), torch.tensor([0, 1]))
    close(default.tolist(), [0.25, 1 / 1.2], tolerance=1e-6)


def test_a_lower_confidence_of_ones_own_does_not_raise_the_reward():
    """Two responses alike but for their critic's confidence get the same reward."""
    found = reward_of([[1.0, 0.0], [1.0, 0.0], [0.2, 0.8]], [[0.9, 0.1], [0.1, 0.9], [0.5, 0.5]])
    assert found[0] == found[1]


# The paper's properties


@unhurried
@given(graded(st.tuples(st.floats(0, 1), st.floats(0.01, 1)), max_items=1), st.sampled_from(["group", "batch"]))
def test_one_item_is_grpo_on_its_score_to_the_last_bit(batch, scope):
    score, confidence, weight, group = batch
    for dtype in (torch.float32, torch.float64):
        s, c, w = score.to(dtype), confidence.to(dtype), weight.to(dtype)
        assert torch.equal(confidence_weighted(s, c, w, group, scope), s[:, 0] * w.sign())
        grape = group_relative(confidence_weighted(s, c, w.abs(), group, scope), group, "group")
        assert torch.equal(grape, group_relative(s[:, 0], group, "group"))


@unhurried
@given(graded(), st.sampled_from(["group", "batch"]), st.integers(-20, 20))
def test_rescaling_all_confidences_by_a_power_of_two_changes_no_bit(batch, scope, power):
    score, confidence, weight, group = batch
    found = confidence_weighted(score, confidence * 2.0**power, weight, group, scope)
    close(found, confidence_weighted(score, confidence, weight, group, scope), tolerance=0)


@unhurried
@given(graded(), st.sampled_from(["group", "batch"]), st.floats(1e-3, 1e3))
def test_rescaling_all_confidences_changes_nothing(batch, scope, factor):
    score, confidence, weight, group = batch
    found = confidence_weighted(score, confidence * factor, weight, group, scope)
    close(found, confidence_weighted(score, confidence, weight, group, scope))


@unhurried
@given(whole, scores, confidences, weights)
def test_a_constant_item_rescales_the_advantages_by_a_positive_factor(batch, same, sure, importance):
    """By Σ|w|c over (Σ|w|c + the new item's): below 1, and the same for the whole group."""
    score, confidence, weight, group = batch
    group = torch.zeros_like(group)
    before = group_relative(confidence_weighted(score, confidence, weight, group), group, "none")
    longer = torch.cat([score, torch.full_like(score[:, :1], same)], 1)
    surer = torch.cat([confidence, torch.full_like(confidence[:, :1], sure)], 1)
    heavier = torch.cat([weight, torch.tensor([importance], dtype=torch.float64)])
    after = group_relative(confidence_weighted(longer, surer, heavier, group), group, "none")
    total = (weight.abs() * confidence.mean(0)).sum()
    factor = total / (total + abs(importance) * sure)
    assert 0 < factor <= 1
    close(after, before * factor)


@unhurried
@given(graded())
def test_advantages_of_a_group_sum_to_zero(batch):
    *_, group = batch
    reward = confidence_weighted(*batch)
    for found in (group_relative(reward, group, "none"), group_relative(reward, group), leave_one_out(reward, group)):
        for g in set(group.tolist()):
            # 1e-6 beside 1e-17 of rounding is the least a scaled advantage is divided by.
            assert math.isclose(found[group == g].nansum().item(), 0, abs_tol=1e-9)


@unhurried
@given(st.lists(st.tuples(scores, confidences.filter(bool)), min_size=1, max_size=4), st.data())
def test_equal_rewards_give_no_gradient(verdict, data):
    """All responses graded alike, of which one may lack a verdict: the advantage is 0 to the bit."""
    size = data.draw(st.integers(2, 9))
    score, confidence = (torch.tensor(each).double().expand(size, -1).clone() for each in zip(*verdict, strict=True))
    missing = data.draw(st.integers(0, len(verdict) - 1))
    score[0, missing] = confidence[0, missing] = NAN
    group, weight = torch.zeros(size, dtype=torch.int64), torch.ones(len(verdict)).double()
    reward = confidence_weighted(score, confidence, weight, group)
    used = ~reward.isnan()
    logp = torch.full((size, 3), -1.5, dtype=torch.float64, requires_grad=True)
    advantage = group_relative(reward, group)[used, None].expand(-1, 3)
    (gradient,) = torch.autograd.grad(policy_gradient(logp[used], advantage).sum(), logp)
    assert not gradient.any()


@unhurried
@given(graded(), st.randoms(use_true_random=False), st.sampled_from(["group", "batch"]))
def test_permuting_responses_permutes_advantages(batch, random, scope):
    score, confidence, weight, group = batch
    order = list(range(len(group)))
    random.shuffle(order)
    there = confidence_weighted(score, confidence, weight, group, scope)
    here = confidence_weighted(score[order], confidence[order], weight, group[order], scope)
    close(here, there[order])
    close(group_relative(here, group[order], "none"), group_relative(there, group, "none")[order])


@unhurried
@given(graded(), st.randoms(use_true_random=False))
def test_the_order_of_items_does_not_matter(batch, random):
    score, confidence, weight, group = batch
    order = list(range(len(weight)))
    random.shuffle(order)
    close(
        confidence_weighted(score[:, order], confidence[:, order], weight[order], group),
        confidence_weighted(score, confidence, weight, group),
    )


@unhurried
@given(whole)
def test_the_reward_stays_in_the_range_of_the_scores_and_a_pitfall_lowers_it(batch):
    score, confidence, weight, group = batch
    reward = confidence_weighted(score, confidence, weight.abs(), group)
    assume(reward.isfinite().all())
    assert (reward <= score.max(1).values + 1e-12).all()
    assert (reward >= score.min(1).values - 1e-12).all()
    mirrored = confidence_weighted(score, confidence, -weight.abs(), group)
    close(mirrored, -reward, tolerance=0)


# Refusals


@pytest.mark.parametrize(
    ("score", "confidence", "weight", "message"),
    [
        ([[math.inf]], [[1.0]], [1.0], "score has an infinite entry"),
        ([[1.0]], [[-0.1]], [1.0], "confidence has an entry below 0"),
        ([[1.0]], [[math.inf]], [1.0], "confidence has an entry below 0 or infinite"),
        ([[1.0]], [[1.0]], [NAN], "every item's weight must be finite"),
        ([[1.0]], [[1.0]], [math.inf], "every item's weight must be finite"),
    ],
)
def test_invalid_scores_confidences_and_weights_raise(score, confidence, weight, message):
    with pytest.raises(ValueError, match=message):
        confidence_weighted(torch.tensor(score), torch.tensor(confidence), torch.tensor(weight), torch.tensor([0]))
