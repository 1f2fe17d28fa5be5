"""Advantages against plain loops over their definitions, and their invariances."""

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grape_rl.maths.advantage import baseline_advantage, batch_normalized, gae, group_relative, leave_one_out
from grape_rl.maths.groups import EPSILON, group_count, group_mean
from grape_rl.maths.rejection import best_of_group

NAN = math.nan
FUNCTIONS = (group_relative, leave_one_out, baseline_advantage, batch_normalized, best_of_group)
unhurried = settings(deadline=None)  # the first call loads things

# Thousandths: different rewards differ by enough for a deviation to keep its digits.
numbers = st.one_of(st.integers(-5000, 5000).map(lambda i: i / 1000), st.sampled_from([0.1, 0.7]))
ids = st.sampled_from([-3, 0, 8, 100])
batches = st.lists(st.tuples(st.one_of(st.just(NAN), numbers), ids), min_size=1, max_size=12)


def tensors(batch):
    return torch.tensor([r for r, _ in batch], dtype=torch.float64), torch.tensor([g for _, g in batch])


def close(actual, expected):
    """Equal up to float64 rounding of numbers up to about 1e4 (10 divided by a deviation of 1e-3), NaN for NaN."""
    torch.testing.assert_close(actual.tolist(), expected, rtol=1e-9, atol=1e-9, equal_nan=True)


def group_rewards(batch, i):
    """Valid rewards of i's group, its own included."""
    return [r for r, g in batch if g == batch[i][1] and not math.isnan(r)]


def stdev(values):
    return statistics.stdev(values) if len(values) > 1 else 0.0


@unhurried
@given(batches, st.sampled_from(["group", "batch", "none"]))
def test_group_relative_against_a_loop(batch, scale):
    everyone = [r for r, _ in batch if not math.isnan(r)]
    expected = []
    for i, (r, _) in enumerate(batch):
        mine = group_rewards(batch, i)
        if math.isnan(r):
            expected.append(NAN)
        elif len(set(mine)) == 1:
            expected.append(0.0)
        else:
            divisor = {"group": stdev(mine) + EPSILON, "batch": stdev(everyone) + EPSILON, "none": 1.0}[scale]
            expected.append((r - statistics.fmean(mine)) / divisor)
    close(group_relative(*tensors(batch), scale), expected)


@unhurried
@given(batches)
def test_leave_one_out_against_a_loop(batch):
    expected = []
    for i, (r, _) in enumerate(batch):
        mine = group_rewards(batch, i)
        alone = math.isnan(r) or len(mine) < 2
        expected.append(NAN if alone else r - (math.fsum(mine) - r) / (len(mine) - 1))
    close(leave_one_out(*tensors(batch)), expected)


@unhurried
@given(batches)
def test_baseline_advantage_against_loops(batch):
    everyone = [r for r, _ in batch if not math.isnan(r)]
    mean = statistics.fmean(everyone) if everyone else NAN
    close(baseline_advantage(*tensors(batch), "none"), [r for r, _ in batch])
    close(baseline_advantage(*tensors(batch), "batch"), [r - mean for r, _ in batch])
    close(baseline_advantage(*tensors(batch), "leave_one_out"), leave_one_out(*tensors(batch)).tolist())
    close(baseline_advantage(*tensors(batch)), [r - mean for r, _ in batch])


@unhurried
@given(batches)
def test_batch_normalized_against_loops(batch):
    known = [r for r, _ in batch if not math.isnan(r)]
    apart = [NAN if math.isnan(r) else r - statistics.fmean(group_rewards(batch, i)) for i, (r, _) in enumerate(batch)]
    flat = [NAN if math.isnan(r) else r - statistics.fmean(known) for r, _ in batch]
    for center, centered in (("batch", flat), ("group", apart)):
        divisor = stdev([d for d in centered if not math.isnan(d)]) + EPSILON
        # Equal rewards: Python's mean may differ from them in the last place, which a division by 1e-6 amplifies.
        expected = [d / divisor for d in centered]
        found = batch_normalized(*tensors(batch), center)
        torch.testing.assert_close(found.tolist(), expected, rtol=1e-8, atol=1e-8, equal_nan=True)
    close(batch_normalized(*tensors(batch)), batch_normalized(*tensors(batch), "batch").tolist())


def test_batch_normalized_has_std_one_and_group_centering_has_mean_zero_in_each_group():
    reward, group = torch.randn(40, generator=torch.Generator().manual_seed(0)).double(), torch.arange(40) % 5
    for center in ("batch", "group"):
        found = batch_normalized(reward + 3.0 * group, group, center)
        assert math.isclose(statistics.stdev(found.tolist()), 1, rel_tol=1e-5)  # the 1e-6 in the divisor
        assert math.isclose(found.mean().item(), 0, abs_tol=1e-12)
    assert group_mean(found, group).abs().max() < 1e-12
    batch_centered = batch_normalized(reward + 3.0 * group, group)
    assert group_mean(batch_centered, group).abs().max() > 0.5, "batch centering leaves group means"


def test_lite_ppo_and_reinforce_plus_plus_baseline_divide_by_different_standard_deviations():
    """The standard deviation of raw rewards includes the distance between groups; that of centered rewards does not."""
    reward, group = torch.tensor([0.0, 1.0, 100.0, 101.0], dtype=torch.float64), torch.tensor([0, 0, 1, 1])
    raw, centered = group_relative(reward, group, "batch"), batch_normalized(reward, group, "group")
    close(raw, [d / (statistics.stdev([0, 1, 100, 101]) + EPSILON) for d in (-0.5, 0.5, -0.5, 0.5)])
    close(centered, [d / (statistics.stdev([-0.5, 0.5, -0.5, 0.5]) + EPSILON) for d in (-0.5, 0.5, -0.5, 0.5)])


@unhurried
@given(st.floats(-1e6, 1e6), st.integers(1, 40), st.sampled_from([torch.float32, torch.float64]))
def test_equal_rewards_give_exactly_zero(reward, size, dtype):
    """To the bit, also with a missing reward: a rounding residue divided by a deviation of 1e-17 is not small."""
    rewards = torch.full((size + 1,), reward, dtype=dtype)
    rewards[size] = NAN
    group = torch.zeros(size + 1, dtype=torch.int64)
    for found in (
        *(group_relative(rewards, group, scale) for scale in ("group", "batch", "none")),
        baseline_advantage(rewards, group, "batch"),
        *(batch_normalized(rewards, group, center) for center in ("batch", "group")),
        *([leave_one_out(rewards, group)] if size > 1 else []),
    ):
        assert not found[:size].any()
        assert found[size].isnan()
        assert found.dtype == dtype


def test_equal_rewards_give_exactly_zero_alongside_a_varied_group():
    reward = torch.tensor([0.1, 5.0, 0.1, -2.0, 0.1], dtype=torch.float64)
    found = group_relative(reward, torch.tensor([0, 1, 0, 1, 0]), "batch")
    assert found[[0, 2, 4]].tolist() == [0.0, 0.0, 0.0]
    assert (found[[1, 3]] != 0).all()


@unhurried
@given(batches, st.floats(-1000, 1000))
def test_a_constant_added_to_all_rewards_changes_nothing(batch, constant):
    reward, group = tensors(batch)
    for function in (
        lambda r: group_relative(r, group, "group"),
        lambda r: group_relative(r, group, "batch"),
        lambda r: group_relative(r, group, "none"),
        lambda r: leave_one_out(r, group),
        lambda r: baseline_advantage(r, group, "batch"),
    ):
        # float64 represents 1000 to 1e-13, and the smallest standard deviation is near 1e-3.
        torch.testing.assert_close(function(reward + constant), function(reward), rtol=0, atol=1e-8, equal_nan=True)
    close(baseline_advantage(reward + constant, group, "none"), [r + constant for r, _ in batch])


@unhurried
@given(batches, st.floats(-1000, 1000))
def test_a_constant_added_changes_nothing_beyond_float32_rounding(batch, constant):
    """float32 represents 1000 to 6e-5; there are a few such roundings, and leave-one-out doubles them."""
    reward, group = tensors(batch)
    reward = reward.float()
    for function in (lambda r: group_relative(r, group, "none"), lambda r: leave_one_out(r, group)):
        torch.testing.assert_close(function(reward + constant), function(reward), rtol=0, atol=1e-3, equal_nan=True)


@unhurried
@given(batches)
def test_advantages_of_a_group_sum_to_zero(batch):
    reward, group = tensors(batch)
    for found in (*(group_relative(reward, group, s) for s in ("group", "none")), group_relative(reward, group)):
        for g in set(group.tolist()):
            assert math.isclose(found[group == g].nansum().item(), 0, abs_tol=1e-9)


@unhurried
@given(batches, st.randoms(use_true_random=False))
def test_the_order_of_responses_does_not_matter(batch, random):
    order = list(range(len(batch)))
    random.shuffle(order)
    reward, group = tensors(batch)
    for function in (
        group_relative,
        leave_one_out,
        baseline_advantage,
        lambda r, g: group_relative(r, g, "batch"),
        group_mean,
        group_count,
    ):
        close(function(reward[order], group[order]), function(reward, group)[order].tolist())


def test_the_default_scale_is_that_of_grpo():
    reward, group = torch.tensor([0.0, 1.0, 1.0, 7.0]), torch.tensor([0, 0, 0, 1])
    close(group_relative(reward.double(), group), group_relative(reward.double(), group, "group").tolist())


def test_leave_one_out_is_the_group_mean_times_a_factor():
    reward, group = torch.tensor([1.0, 2.0, 6.0, 0.5], dtype=torch.float64), torch.zeros(4, dtype=torch.int64)
    close(leave_one_out(reward, group), (group_relative(reward, group, "none") * 4 / 3).tolist())


def test_an_empty_batch_has_no_advantages():
    reward, group = torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    for function in FUNCTIONS:
        assert function(reward, group).shape == (0,)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("bad", [math.inf, -math.inf])
def test_an_infinite_reward_raises(function, bad):
    with pytest.raises(ValueError, match=r"reward\[1\] is -?inf"):
        function(torch.tensor([0.0, bad]), torch.tensor([0, 0]))


# Generalized advantage estimation


def ragged(seed):
    generator = torch.Generator().manual_seed(seed)
    reward, value = (torch.randn(5, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    mask = torch.rand(5, 7, generator=generator) < 0.6
    mask[0], mask[1] = True, False
    return reward, value, mask


def deltas(reward, value, gamma):
    return [r + gamma * v_next - v for r, v, v_next in zip(reward, value, [*value, 0.0][1:], strict=True)]


@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.0])
@pytest.mark.parametrize("lam", [1.0, 0.95, 0.3, 0.0])
@pytest.mark.parametrize("seed", range(5))
def test_gae_is_the_discounted_sum_of_td_errors_over_masked_in_tokens(seed, lam, gamma):
    reward, value, mask = ragged(seed)
    expected = torch.zeros_like(value)
    for i in range(len(mask)):
        columns = mask[i].nonzero()[:, 0].tolist()
        delta = deltas(reward[i, columns].tolist(), value[i, columns].tolist(), gamma)
        for k, t in enumerate(columns):
            expected[i, t] = math.fsum((gamma * lam) ** l * d for l, d in enumerate(delta[k:]))  # noqa: E741
    torch.testing.assert_close(gae(reward, value, mask, gamma, lam), expected, rtol=1e-12, atol=1e-12)


def test_gae_at_its_limits():
    """lam = 1 is the return minus the value; lam = 0 is the one-step TD error."""
    reward, value, mask = ragged(0)
    mask[:] = True
    returns = reward.flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(gae(reward, value, mask, lam=1.0), returns - value, rtol=1e-12, atol=1e-12)
    one_step = [deltas(r, v, 0.9) for r, v in zip(reward.tolist(), value.tolist(), strict=True)]
    torch.testing.assert_close(gae(reward, value, mask, 0.9, 0.0).tolist(), one_step, rtol=1e-12, atol=1e-12)


def test_gae_does_not_read_masked_out_tokens():
    reward, value, mask = ragged(3)
    expected = gae(reward, value, mask)
    found = gae(reward.masked_fill(~mask, NAN), value.masked_fill(~mask, NAN), mask)
    assert torch.equal(found, expected)
    assert torch.equal(found, gae(reward, value, mask, gamma=1.0, lam=0.95))
    assert not found[~mask].any()


def test_gae_of_no_tokens_is_empty():
    assert gae(torch.zeros(3, 0), torch.zeros(3, 0), torch.zeros(3, 0, dtype=torch.bool)).shape == (3, 0)
