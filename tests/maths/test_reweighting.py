"""Advantages that rescale, penalize length, drop or weight responses: against loops, and their invariances."""

import math
import statistics

import pytest
import torch
from estimators import EXACT, ONE, VARIED, expected_gradient, rewards
from hypothesis import given, settings
from hypothesis import strategies as st

from grape_rl.maths.advantage import group_relative
from grape_rl.maths.exact import expectation, expected_reward, expected_reward_gradient, logprobs, random_table
from grape_rl.maths.groups import EPSILON
from grape_rl.maths.reweighting import em_weight, gpg_advantage, length_penalized, red_drop, red_weight
from grape_rl.maths.surrogate import policy_gradient

NAN = math.nan
unhurried = settings(deadline=None, max_examples=60)  # the first call loads things
numbers = st.integers(0, 40).map(lambda i: i / 8)  # exact in binary, so that equal is equal
batches = st.lists(st.tuples(st.one_of(st.just(NAN), numbers), st.sampled_from([-3, 0, 8])), min_size=1, max_size=14)


def tensors(batch):
    return torch.tensor([r for r, _ in batch], dtype=torch.float64), torch.tensor([g for _, g in batch])


def close(found, expected):
    torch.testing.assert_close(found.tolist(), expected, rtol=1e-10, atol=1e-10, equal_nan=True)


def group_rewards(batch, i):
    """Valid rewards of i's group."""
    return [r for r, g in batch if g == batch[i][1] and not math.isnan(r)]


@unhurried
@given(batches)
def test_gpg_advantage_against_a_loop(batch):
    valid = [i for i, (r, _) in enumerate(batch) if not math.isnan(r)]
    varied = [i for i in valid if len(set(group_rewards(batch, i))) > 1]
    factor = len(valid) / len(varied) if varied else 1.0
    expected = [
        NAN if math.isnan(r) else (r - statistics.fmean(group_rewards(batch, i))) * factor
        for i, (r, _) in enumerate(batch)
    ]
    close(gpg_advantage(*tensors(batch)), expected)


def test_gpg_advantage_turns_the_mean_over_all_into_a_mean_over_varied_groups():
    reward = torch.tensor([0.0, 1.0, 5.0, 5.0, 5.0, 5.0], dtype=torch.float64)
    group = torch.tensor([0, 0, 1, 1, 2, 2])
    alone = group_relative(reward[:2], group[:2], "none")
    assert gpg_advantage(reward, group).square().mean() * 6 == 9 * alone.square().mean() * 2
    close(gpg_advantage(reward, group).abs().mean(), alone.abs().mean().item())
    close(gpg_advantage(reward[:2], group[:2]), alone.tolist())


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


def test_without_a_buffer_the_length_is_ignored():
    reward, group = torch.tensor([0.0, 0.5, 1.0]), torch.tensor([0, 0, 0])
    found = length_penalized(reward, group, torch.tensor([1, 8, 8]), max_tokens=8)
    assert torch.equal(found, group_relative(reward, group))


def test_the_punishment_is_1_at_the_limit_and_half_in_the_middle_of_the_buffer():
    length = torch.tensor([1, 6, 8, 10])
    found = length_penalized(torch.zeros(4), torch.zeros(4, dtype=torch.int64), length, 10, "none", 4)
    assert (found - found[0]).tolist() == [0.0, 0.0, -0.5, -1.0]


@pytest.mark.parametrize("buffer", [-1, 11])
def test_an_invalid_buffer_raises(buffer):
    with pytest.raises(ValueError, match=f"overlong_buffer is {buffer}; it must be from 0 to max_tokens, 10"):
        length_penalized(torch.zeros(1), torch.tensor([0]), torch.tensor([1]), 10, overlong_buffer=buffer)


def test_a_buffer_may_be_as_long_as_the_limit():
    found = length_penalized(torch.zeros(2), torch.tensor([0, 0]), torch.tensor([0, 4]), 4, "none", 4)
    assert found.tolist() == [0.5, -0.5]


def test_a_response_at_the_mean_is_not_dropped():
    """The mean is 1: two rewards are at or above it, so one of the three below is dropped, and never the first."""
    reward, group = torch.tensor([1.0, 0.0, 0.0, 0.0, 4.0]), torch.zeros(5, dtype=torch.int64)
    for seed in range(20):
        found = red_drop(reward, group, seed)
        assert sorted(found.tolist()) == [-1.25, -1.25, -0.25, 0.0, 2.75] and found[0] == -0.25


@unhurried
@given(batches, st.integers(0, 2**62))
def test_red_drop_keeps_the_good_and_equally_many_bad_responses(batch, seed):
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
        remaining = [i for i in rows if i not in dropped]
        assert len(bad) - len(dropped) == len(good), "a remaining bad response is below the mean of the remaining ones"
        mean = statistics.fmean(batch[i][0] for i in remaining)
        close(torch.tensor([found[i] for i in remaining], dtype=torch.float64), [batch[i][0] - mean for i in remaining])


def test_red_drop_depends_on_its_seed_and_drops_bad_responses_equally_often():
    reward, group = torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.zeros(4, dtype=torch.int64)
    assert torch.equal(red_drop(reward, group, 7), red_drop(reward, group, 7))
    kept = sum((red_drop(reward, group, seed) != 0).double() for seed in range(600)) / 600
    assert kept[0] == 1
    assert (kept[1:] - 1 / 3).abs().max() < 0.08  # four standard deviations


def test_red_drop_with_scaling():
    reward, group = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64), torch.zeros(4, dtype=torch.int64)
    found = red_drop(reward, group, 0, "group")
    assert math.isclose(found[0].item(), 0.5 / (statistics.stdev([1, 0]) + EPSILON), rel_tol=1e-12)


@unhurried
@given(batches, st.sampled_from([0.5, 1.0, 3.0]))
def test_red_weight_against_a_loop(batch, temperature):
    expected = []
    for i, (r, _) in enumerate(batch):
        d = NAN if math.isnan(r) else r - statistics.fmean(group_rewards(batch, i))
        expected.append(d * math.exp(d / temperature))
    torch.testing.assert_close(
        red_weight(*tensors(batch), temperature).tolist(), expected, rtol=1e-10, atol=1e-10, equal_nan=True
    )


def test_red_weight_is_reinforce_at_a_high_temperature_and_needs_a_positive_one():
    reward, group = torch.tensor([0.0, 0.5, 2.0], dtype=torch.float64), torch.zeros(3, dtype=torch.int64)
    torch.testing.assert_close(red_weight(reward, group, 1e12), group_relative(reward, group, "none"))
    assert torch.equal(red_weight(reward, group), red_weight(reward, group, 1.0))
    for bad in (0.0, -1.0, NAN):
        with pytest.raises(ValueError, match=f"temperature is {bad}; it must be positive"):
            red_weight(reward, group, bad)


@unhurried
@given(batches)
def test_em_weight_against_a_loop(batch):
    expected, centered = [], []
    for i, (r, _) in enumerate(batch):
        valid = group_rewards(batch, i)
        known = not math.isnan(r)
        expected.append(r / sum(valid) * len(valid) if known and sum(valid) else NAN)
        centered.append(r - statistics.fmean(valid) if known else NAN)
    close(em_weight(*tensors(batch)), expected)
    close(em_weight(*tensors(batch), "centered"), centered)


@pytest.mark.parametrize("bad", [-0.1, math.inf])
def test_em_weight_raises_on_negative_and_infinite_rewards(bad):
    with pytest.raises(ValueError, match="reward has an entry below 0 or infinite"):
        em_weight(torch.tensor([1.0, bad]), torch.tensor([0, 0]))
    with pytest.raises(ValueError, match="weights is 'soft'"):
        em_weight.__wrapped__(torch.ones(2), torch.tensor([0, 0]), "soft")


@pytest.mark.parametrize("world", [ONE, VARIED])
def test_the_m_step_ascends_the_log_of_the_expected_reward(world):
    """With the denominator E[R], the expected gradient at the sampling policy is that of log J."""
    table, reward = random_table(world, 0), rewards(world) + 1.0
    assert (reward >= 0).all()
    goal = expected_reward(world, table, reward)
    found = expected_gradient(
        world, table, table, reward, 1,
        lambda r, group: r / goal.detach(), lambda logp, old, a, mask: policy_gradient(logp, a),
    )  # fmt: skip
    torch.testing.assert_close(found, -torch.autograd.grad(goal.log(), table)[0], **EXACT)


@pytest.mark.parametrize("size", [2, 3])
def test_the_em_weights_of_a_group_follow_the_gradient_of_the_success_probability(size):
    """Rewards 0 and 1: w_i is G/n for the n responses with reward 1; the step is c ∇p with c the mean of 1/n over p."""
    table, reward = random_table(ONE, 1), torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    p = logprobs(ONE, table)[0].exp().item()
    group = torch.zeros(size, dtype=torch.int64)

    def estimator(index):
        w = em_weight(reward[index], group).nan_to_num()
        return policy_gradient(logprobs(ONE, table)[index], w[:, None]).mean()

    (found,) = torch.autograd.grad(expectation(ONE, table, size, estimator), table)
    chance = 1 - (1 - p) ** size  # probability that a group has a 1: Σ_n binomial(n) · n · (1/n) = P(n > 0)
    torch.testing.assert_close(found, -chance / p * expected_reward_gradient(ONE, table, reward), **EXACT)
