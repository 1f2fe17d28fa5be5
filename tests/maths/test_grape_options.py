"""Options of GRAPE's reward: running mean confidence, power, normalizer, and leave-one-out baseline."""

import inspect
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from grape_rl.maths.advantage import group_relative, leave_one_out
from grape_rl.maths.grape import confidence_weighted, mean_score, running_confidence, unweighted
from grape_rl.maths.groups import EPSILON

NAN = math.nan
unhurried = settings(deadline=None)  # the first call loads things

scores = st.integers(0, 1000).map(lambda i: i / 1000)
confidences = st.sampled_from([0.0, 0.1, 0.3, 0.55, 0.7, 1.0])
weights = st.sampled_from([-2.0, -0.5, 0.1, 0.3, 1.0, 3.0])
verdicts = st.one_of(st.tuples(scores, confidences), st.tuples(scores, confidences), st.just((NAN, NAN)))
means = st.one_of(st.just(NAN), confidences)
normalizers = st.sampled_from(["confidence", "none"])
powers = st.sampled_from([0, 1, 2, 3])  # whole, so that a fraction has them exactly


def exact(values):
    return torch.tensor(values, dtype=torch.float64)


@st.composite
def graded(draw, verdict=verdicts):
    """score, confidence, weight, group of a small batch, and running means."""
    b, k = draw(st.integers(1, 8)), draw(st.integers(1, 4))
    pair = exact(draw(st.lists(st.lists(verdict, min_size=k, max_size=k), min_size=b, max_size=b)))
    w, running = (exact(draw(st.lists(of, min_size=k, max_size=k))) for of in (weights, means))
    group = torch.tensor(draw(st.lists(st.sampled_from([-1, 0, 5]), min_size=b, max_size=b)))
    return (pair[..., 0], pair[..., 1], w, group), running


whole = graded(st.tuples(scores, confidences.filter(bool)))


def close(found, expected, tolerance=1e-12):
    found, expected = (torch.as_tensor(each, dtype=torch.float64) for each in (found, expected))
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


def by_hand(batch, running, scope, power, normalizer):
    """A response and an item at a time, in exact fractions."""
    score, confidence, weight, group = (each.tolist() for each in batch)
    b, items = len(group), range(len(weight))
    known = [[not math.isnan(score[i][k] + confidence[i][k]) for k in items] for i in range(b)]

    def mean(values):
        return sum(map(Fraction, values)) / len(values)

    rewards = []
    for i in range(b):
        mates = [j for j in range(b) if group[j] == group[i]]
        above = below = Fraction(0)
        for k in items:
            have = [j for j in mates if known[j][k]]
            if 2 * len(have) < len(mates):
                continue
            everyone = [j for j in range(b) if known[j][k]]
            sure = mean([confidence[j][k] for j in (everyone if scope == "batch" else have)])
            if scope == "running" and not math.isnan(running[k]):
                sure = Fraction(running[k].item())
            sure = sure**power
            above += (
                Fraction(weight[k])
                * sure
                * (Fraction(score[i][k]) if known[i][k] else mean([score[j][k] for j in have]))
            )
            below += abs(Fraction(weight[k])) * sure
        missing = sum(abs(Fraction(str(weight[k]))) for k in items if not known[i][k])
        if below == 0 or 2 * missing > sum(abs(Fraction(str(w))) for w in weight):
            rewards.append(NAN)
        else:
            rewards.append(float(above / below if normalizer == "confidence" else above))
    return rewards


@unhurried
@given(graded(), st.sampled_from(["group", "batch", "running"]), powers, normalizers)
def test_against_the_rules_in_plain_python(given_, scope, power, normalizer):
    batch, running = given_
    found = confidence_weighted(*batch, scope, float(power), normalizer, running)
    close(found, by_hand(batch, running, scope, power, normalizer))


# The power


@unhurried
@given(graded())
def test_power_0_is_the_weighted_mean_to_the_bit(given_):
    batch, _ = given_
    score, _, weight, group = batch
    close(confidence_weighted(*batch, power=0.0), unweighted(*batch), tolerance=0)
    close(confidence_weighted(*batch, power=0.0), mean_score(score, weight, group), tolerance=0)


@unhurried
@given(whole, st.sampled_from([0.5, 1.0, 1.5, 4.0]), st.floats(1e-2, 1e2))
def test_rescaling_all_confidences_changes_nothing_at_any_power(given_, power, factor):
    (score, confidence, weight, group), _ = given_
    plain = confidence_weighted(score, confidence, weight, group, power=power)
    close(confidence_weighted(score, confidence * factor, weight, group, power=power), plain)


def test_a_large_power_selects_the_most_confident_item():
    score = exact([[1.0, 0.0, 0.5], [0.0, 1.0, 0.5]])
    confidence = exact([[0.9, 0.8, 0.1], [0.9, 0.8, 0.1]])
    found = confidence_weighted(score, confidence, torch.ones(3).double(), torch.tensor([0, 0]), power=400.0)
    close(found, [1.0, 0.0])
    half = confidence_weighted(score, confidence**2, torch.ones(3).double(), torch.tensor([0, 0]), power=0.5)
    close(half, confidence_weighted(score, confidence, torch.ones(3).double(), torch.tensor([0, 0])))


@unhurried
@given(graded(st.tuples(scores, confidences.filter(bool))), st.sampled_from([0.0, 0.5, 3.0]))
def test_one_item_is_grpo_to_the_last_bit_at_any_power(given_, power):
    (score, confidence, weight, group), running = given_
    one = (score[:, :1], confidence[:, :1], weight[:1], group)
    assume(bool(running[0] != 0))
    for scope in ("group", "batch", "running"):
        found = confidence_weighted(*one, scope, power, running=running[:1])
        assert torch.equal(found, score[:, 0] * weight[0].sign())


# Without the normalizer


@unhurried
@given(whole, st.integers(-8, 8))
def test_without_the_normalizer_confidence_scales_the_reward_and_group_scaling_removes_it(given_, power):
    (score, confidence, weight, group), _ = given_
    plain = confidence_weighted(score, confidence, weight, group, normalizer="none")
    scaled = confidence_weighted(score, confidence * 2.0**power, weight, group, normalizer="none")
    close(scaled, plain * 2.0**power, tolerance=0)
    normal = confidence_weighted(score, confidence, weight, group)
    spread = torch.stack([group_relative(reward, group, "none").abs() for reward in (plain, scaled, normal)])
    apart = (spread > 1e-2).all(0)  # against the 1e-6 that is added to the deviation
    for reward in (plain, scaled):
        close(group_relative(reward, group)[apart], group_relative(normal, group)[apart], tolerance=2e-3)


@unhurried
@given(whole, scores, confidences, weights)
def test_without_the_normalizer_a_constant_item_changes_no_advantage(given_, same, sure, importance):
    (score, confidence, weight, group), _ = given_
    longer = torch.cat([score, torch.full_like(score[:, :1], same)], 1)
    surer = torch.cat([confidence, torch.full_like(confidence[:, :1], sure)], 1)
    heavier = torch.cat([weight, exact([importance])])
    before, after = (
        group_relative(confidence_weighted(*each, group, normalizer="none"), group, "none")
        for each in ((score, confidence, weight), (longer, surer, heavier))
    )
    close(after, before)


def test_without_the_normalizer_a_group_without_usable_items_has_no_reward():
    found = confidence_weighted(
        torch.tensor([[1.0], [0.0]]), torch.zeros(2, 1), torch.ones(1), torch.tensor([0, 0]), normalizer="none"
    )
    assert found.isnan().all()


# Running means


@unhurried
@given(graded(), normalizers)
def test_without_running_means_the_groups_mean_is_used(given_, normalizer):
    batch, running = given_
    of_group = confidence_weighted(*batch, "group", normalizer=normalizer)
    for none in (None, torch.full_like(running, NAN)):
        close(confidence_weighted(*batch, "running", normalizer=normalizer, running=none), of_group, tolerance=0)


@unhurried
@given(graded())
def test_with_all_running_means_the_batchs_confidence_does_not_matter(given_):
    (score, confidence, weight, group), running = given_
    running = running.nan_to_num(0.5)
    found = confidence_weighted(score, confidence, weight, group, "running", running=running)
    other = torch.where(confidence.isnan(), confidence, 1 - confidence)
    close(confidence_weighted(score, other, weight, group, "running", running=running), found, tolerance=0)


@unhurried
@given(graded(), st.randoms(use_true_random=False))
def test_permuting_responses_permutes_rewards_with_running_means(given_, random):
    (score, confidence, weight, group), running = given_
    order = list(range(len(group)))
    random.shuffle(order)
    found = confidence_weighted(score[order], confidence[order], weight, group[order], "running", running=running)
    close(found, confidence_weighted(score, confidence, weight, group, "running", running=running)[order])


@unhurried
@given(st.lists(st.lists(st.lists(means, min_size=2, max_size=2), min_size=1, max_size=4), min_size=1, max_size=5))
def test_running_means_against_a_loop(batches):
    found = torch.full((2,), NAN).double()
    expected: list[float] = [NAN, NAN]
    for batch in batches:
        found = running_confidence(exact(batch), found, decay=0.75)
        for k in range(2):
            known = [row[k] for row in batch if not math.isnan(row[k])]
            if known:
                mean = math.fsum(known) / len(known)
                expected[k] = mean if math.isnan(expected[k]) else 0.75 * expected[k] + 0.25 * mean
    close(found, expected)


def test_decay_0_gives_the_last_batchs_mean_and_1_the_firsts():
    first, second = (exact([[c], [c]]) for c in (0.1, 0.7))
    start = running_confidence(first, exact([NAN]))
    close([running_confidence(second, start, decay)[0] for decay in (0.0, 1.0)], [0.7, 0.1], tolerance=0)
    for decay in (-0.01, 1.01):
        with pytest.raises(ValueError, match="it must be in"):
            running_confidence(first, start, decay)


# The baseline


@unhurried
@given(st.lists(st.tuples(st.one_of(scores, st.just(NAN)), st.sampled_from([0, 3])), min_size=1, max_size=9))
def test_leave_one_out_multiplies_by_a_factor_per_group(batch):
    reward, group = exact([r for r, _ in batch]), torch.tensor([g for _, g in batch])
    close(group_relative(reward, group, "none", "leave_one_out"), leave_one_out(reward, group), tolerance=0)
    for scale in ("group", "batch", "none"):
        plain, apart = group_relative(reward, group, scale), group_relative(reward, group, scale, "leave_one_out")
        for i, g in enumerate(group.tolist()):
            n = int((~reward[group == g].isnan()).sum())
            close(apart[i], plain[i] * n / (n - 1) if n > 1 else NAN)


def test_leave_one_out_by_hand():
    found = group_relative(exact([0.0, 1.0, 0.5]), torch.tensor([0, 0, 1]), "group", "leave_one_out")
    close(found, [-1 / (math.sqrt(0.5) + EPSILON), 1 / (math.sqrt(0.5) + EPSILON), NAN])


def test_unknown_words_are_refused_where_annotations_are_not_checked():
    one, group = torch.ones(1, 1), torch.tensor([0])
    for name in ("scope", "normalizer"):
        with pytest.raises(ValueError, match=f"{name} is 'all'; it must be"):
            inspect.unwrap(confidence_weighted)(one, one, torch.ones(1), group, **{name: "all"})
    with pytest.raises(ValueError, match="baseline is 'median'; it must be"):
        inspect.unwrap(group_relative)(torch.ones(1), group, baseline="median")
