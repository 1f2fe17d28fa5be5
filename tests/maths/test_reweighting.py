"""Advantages that drop, weigh or measure responses: against loops, and what they leave alone."""

import math
import statistics

import pytest
import torch
from estimators import EXACT, ONE, VARIED, expected_gradient, rewards
from hypothesis import given, settings
from hypothesis import strategies as st

from grape_rl.maths.advantage import EPSILON, group_relative
from grape_rl.maths.exact import expectation, expected_reward, expected_reward_gradient, logprobs, random_table
from grape_rl.maths.reweighting import accepted, length_penalized, posterior, red_drop, red_weight, undiluted
from grape_rl.maths.surrogate import policy_gradient

NAN = math.nan
unhurried = settings(deadline=None, max_examples=60)  # the first call loads things
numbers = st.integers(0, 40).map(lambda i: i / 8)  # exact in binary, so that equal is equal
batches = st.lists(st.tuples(st.one_of(st.just(NAN), numbers), st.sampled_from([-3, 0, 8])), min_size=1, max_size=14)


def tensors(batch):
    return torch.tensor([r for r, _ in batch], dtype=torch.float64), torch.tensor([g for _, g in batch])


def close(found, expected):
    torch.testing.assert_close(found.tolist(), expected, rtol=1e-10, atol=1e-10, equal_nan=True)


def mine(batch, i):
    """The valid rewards of i's group."""
    return [r for r, g in batch if g == batch[i][1] and not math.isnan(r)]


@unhurried
@given(batches)
def test_undiluted_against_a_loop(batch):
    valid = [i for i, (r, _) in enumerate(batch) if not math.isnan(r)]
    telling = [i for i in valid if len(set(mine(batch, i))) > 1]
    factor = len(valid) / len(telling) if telling else 1.0
    expected = [
        NAN if math.isnan(r) else (r - statistics.fmean(mine(batch, i))) * factor for i, (r, _) in enumerate(batch)
    ]
    close(undiluted(*tensors(batch)), expected)


def test_undiluted_makes_the_mean_over_all_one_over_those_that_tell():
    reward = torch.tensor([0.0, 1.0, 5.0, 5.0, 5.0, 5.0], dtype=torch.float64)
    group = torch.tensor([0, 0, 1, 1, 2, 2])
    alone = group_relative(reward[:2], group[:2], "none")
    assert undiluted(reward, group).square().mean() * 6 == 9 * alone.square().mean() * 2
    close(undiluted(reward, group).abs().mean(), alone.abs().mean().item())
    close(undiluted(reward[:2], group[:2]), alone.tolist())


@unhurried
@given(batches, st.integers(0, 5), st.integers(0, 12), st.sampled_from(["group", "batch", "none"]))
def test_length_penalized_against_a_loop(batch, buffer, seed, scale):
    limit = 12
    length = torch.randint(1, limit + 1, (len(batch),), generator=torch.Generator().manual_seed(seed))
    lowered = []
    for (r, g), n in zip(batch, length.tolist(), strict=True):
        if n <= limit - buffer:
            lowered.append((r, g))
        else:
            lowered.append((r + ((limit - buffer) - n) / buffer, g))
    reward, group = tensors(batch)
    found = length_penalized(reward, group, length, limit, scale, buffer)
    close(found, group_relative(*tensors(lowered), scale).tolist())


def test_without_a_buffer_length_is_not_looked_at():
    reward, group = torch.tensor([0.0, 0.5, 1.0]), torch.tensor([0, 0, 0])
    found = length_penalized(reward, group, torch.tensor([1, 8, 8]), max_tokens=8)
    assert torch.equal(found, group_relative(reward, group))


def test_the_punishment_is_whole_at_the_limit_and_half_in_the_middle():
    length = torch.tensor([1, 6, 8, 10])
    found = length_penalized(torch.zeros(4), torch.zeros(4, dtype=torch.int64), length, 10, "none", 4)
    assert (found - found[0]).tolist() == [0.0, 0.0, -0.5, -1.0]


@pytest.mark.parametrize("buffer", [-1, 11])
def test_a_buffer_that_is_none_is_refused(buffer):
    with pytest.raises(ValueError, match=f"overlong_buffer is {buffer}; it must be from 0 to max_tokens, 10"):
        length_penalized(torch.zeros(1), torch.tensor([0]), torch.tensor([1]), 10, overlong_buffer=buffer)


def test_a_buffer_may_be_as_long_as_the_limit():
    found = length_penalized(torch.zeros(2), torch.tensor([0, 0]), torch.tensor([0, 4]), 4, "none", 4)
    assert found.tolist() == [0.5, -0.5]


def test_a_response_at_the_mean_is_not_a_bad_one():
    """Mean 1: two are at or above it, so of the three below one goes, and the first is never dropped."""
    reward, group = torch.tensor([1.0, 0.0, 0.0, 0.0, 4.0]), torch.zeros(5, dtype=torch.int64)
    for seed in range(20):
        found = red_drop(reward, group, seed)
        assert sorted(found.tolist()) == [-1.25, -1.25, -0.25, 0.0, 2.75] and found[0] == -0.25


@unhurried
@given(batches, st.integers(0, 2**62))
def test_red_drop_keeps_the_good_and_as_many_bad_and_compares_those(batch, seed):
    reward, group = tensors(batch)
    found = red_drop(reward, group, seed).tolist()
    assert [math.isnan(a) for a in found] == [math.isnan(r) for r, _ in batch]
    for g in {g for _, g in batch}:
        rows = [i for i, (r, other) in enumerate(batch) if other == g and not math.isnan(r)]
        if not rows:
            continue
        mean = statistics.fmean(batch[i][0] for i in rows)
        good = [i for i in rows if batch[i][0] >= mean]
        bad = [i for i in rows if batch[i][0] < mean]
        if len(bad) <= len(good):
            close(torch.tensor([found[i] for i in rows], dtype=torch.float64), [batch[i][0] - mean for i in rows])
            continue
        dropped = [i for i in bad if found[i] == 0]
        kept = [i for i in rows if i not in dropped]
        assert len(bad) - len(dropped) == len(good), "a bad one that is kept is below the mean of what is kept"
        about = statistics.fmean(batch[i][0] for i in kept)
        close(torch.tensor([found[i] for i in kept], dtype=torch.float64), [batch[i][0] - about for i in kept])


def test_red_drop_drops_by_its_seed_and_every_bad_one_as_often():
    reward, group = torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.zeros(4, dtype=torch.int64)
    assert torch.equal(red_drop(reward, group, 7), red_drop(reward, group, 7))
    kept = sum((red_drop(reward, group, seed) != 0).double() for seed in range(600)) / 600
    assert kept[0] == 1
    assert (kept[1:] - 1 / 3).abs().max() < 0.08  # four standard deviations


def test_red_drop_may_be_scaled():
    reward, group = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64), torch.zeros(4, dtype=torch.int64)
    found = red_drop(reward, group, 0, "group")
    assert math.isclose(found[0].item(), 0.5 / (statistics.stdev([1, 0]) + EPSILON), rel_tol=1e-12)


@unhurried
@given(batches, st.sampled_from([0.5, 1.0, 3.0]))
def test_red_weight_against_a_loop(batch, temperature):
    expected = []
    for i, (r, _) in enumerate(batch):
        d = NAN if math.isnan(r) else r - statistics.fmean(mine(batch, i))
        expected.append(d * math.exp(d / temperature))
    torch.testing.assert_close(
        red_weight(*tensors(batch), temperature).tolist(), expected, rtol=1e-10, atol=1e-10, equal_nan=True
    )


def test_red_weight_is_reinforce_where_it_is_hot_and_refuses_to_be_cold():
    reward, group = torch.tensor([0.0, 0.5, 2.0], dtype=torch.float64), torch.zeros(3, dtype=torch.int64)
    torch.testing.assert_close(red_weight(reward, group, 1e12), group_relative(reward, group, "none"))
    assert torch.equal(red_weight(reward, group), red_weight(reward, group, 1.0))
    for bad in (0.0, -1.0, NAN):
        with pytest.raises(ValueError, match=f"temperature is {bad}; it must be positive"):
            red_weight(reward, group, bad)


@unhurried
@given(batches)
def test_posterior_against_a_loop(batch):
    expected, centered = [], []
    for i, (r, _) in enumerate(batch):
        all_of = mine(batch, i)
        known = not math.isnan(r)
        expected.append(r / sum(all_of) * len(all_of) if known and sum(all_of) else NAN)
        centered.append(r - statistics.fmean(all_of) if known else NAN)
    close(posterior(*tensors(batch)), expected)
    close(posterior(*tensors(batch), "centered"), centered)


@pytest.mark.parametrize("bad", [-0.1, math.inf])
def test_posterior_refuses_what_is_no_probability(bad):
    with pytest.raises(ValueError, match="reward has an entry below 0 or infinite"):
        posterior(torch.tensor([1.0, bad]), torch.tensor([0, 0]))
    with pytest.raises(ValueError, match="weights is 'soft'"):
        posterior.__wrapped__(torch.ones(2), torch.tensor([0, 0]), "soft")


@pytest.mark.parametrize("world", [ONE, VARIED])
def test_the_m_step_climbs_the_log_of_the_expected_reward(world):
    """With E[R] in the divisor, the expected gradient at the sampling policy is that of log J: EM never steps down."""
    table, reward = random_table(world, 0), rewards(world) + 1.0
    assert (reward >= 0).all()
    goal = expected_reward(world, table, reward)
    found = expected_gradient(
        world, table, table, reward, 1,
        lambda r, group: r / goal.detach(), lambda logp, old, a, mask: policy_gradient(logp, a),
    )  # fmt: skip
    torch.testing.assert_close(found, -torch.autograd.grad(goal.log(), table)[0], **EXACT)


@pytest.mark.parametrize("size", [2, 3])
def test_the_posterior_of_a_group_points_up_the_chance_of_a_reward(size):
    """Rewards of 0 and 1: w_i is G/n for the n that have a 1, and the step is c ∇p with c the mean of 1/n over p."""
    table, reward = random_table(ONE, 1), torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    p = logprobs(ONE, table)[0].exp().item()
    group = torch.zeros(size, dtype=torch.int64)

    def estimator(index):
        w = posterior(reward[index], group).nan_to_num()
        return policy_gradient(logprobs(ONE, table)[index], w[:, None]).mean()

    (found,) = torch.autograd.grad(expectation(ONE, table, size, estimator), table)
    chance = 1 - (1 - p) ** size  # that a group has a 1 at all: Σ_n binomial(n) · n · (1/n) = P(n > 0)
    torch.testing.assert_close(found, -chance / p * expected_reward_gradient(ONE, table, reward), **EXACT)


# Rejection sampling that counts a response once

texts = st.lists(st.tuples(st.one_of(st.just(NAN), numbers), st.sampled_from([-3, 0]), st.integers(0, 3)), max_size=12)


@unhurried
@given(texts, st.integers(1, 3), st.one_of(st.just(-math.inf), numbers), st.booleans())
def test_what_rejection_sampling_accepts_against_a_loop(batch, keep, threshold, deduplicate):
    """One text may carry several rewards, as from a grader that wavers: the first that is known holds."""
    expected = [NAN] * len(batch)
    for g in (-3, 0):
        mine, said = [], set()
        for i, (r, other, text) in enumerate(batch):
            if other == g and not math.isnan(r) and not (deduplicate and text in said):
                mine.append(i)
                said.add(text)
        mine.sort(key=lambda i: (-batch[i][0], i))
        for i in mine[:keep]:
            if batch[i][0] >= threshold:
                expected[i] = 1.0
    reward = torch.tensor([r for r, *_ in batch], dtype=torch.float64)
    group = torch.tensor([g for _, g, _ in batch], dtype=torch.long)
    response = torch.tensor([10 * (g + 3) + t for _, g, t in batch], dtype=torch.long)
    close(accepted(reward, group, response, keep, threshold, deduplicate), expected)
