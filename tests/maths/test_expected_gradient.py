"""Expected gradient of each advantage and loss, by enumeration, against the exact ∇J.

The expected gradient of −(1/G) Σ_i A_i log π(y_i) depends on an advantage only through its *credit*: the mean of A_i
given y_i, over the other responses of the group. It is −∇J with the credit in the reward's place, held fixed. An
advantage is unbiased where its credit is the reward plus a constant.
"""

import itertools
import math
import statistics

import pytest
import torch
from estimators import ADVANTAGES, EXACT, FIXED, ONE, TINY, TOKEN_LOSSES, VARIED, expected_gradient, rewards, token_sum

from grape_rl.maths.advantage import group_relative, leave_one_out
from grape_rl.maths.exact import (
    expectation,
    expected_reward,
    expected_reward_gradient,
    logprobs,
    probabilities,
    random_table,
)
from grape_rl.maths.groups import EPSILON
from grape_rl.maths.surrogate import policy_gradient, sequence_clipped

CASES = [
    pytest.param(ONE, 2, id="one token, 2"),
    pytest.param(ONE, 3, id="one token, 3"),
    pytest.param(FIXED, 2, id="two tokens, 2"),
    pytest.param(VARIED, 2, id="one or two tokens, 2"),
    pytest.param(TINY, 3, id="one or two tokens, 3"),
]


def lengths(world):
    return world.mask.sum(1).double()


def row_mean(field, mask):
    return (field * mask).sum(1) / mask.sum(1)


def scaled_by_hand(rewards):
    spread = statistics.stdev(rewards)
    return (rewards[0] - statistics.fmean(rewards)) / (spread + EPSILON)


def credit(world, table, reward, size, name):
    """The mean of A_i given y_i. For a baseline in closed form; with a deviation, a loop over the other responses."""
    expected = expected_reward(world, table, reward).detach()
    match name:
        case "none":
            return reward
        case "leave one out" | "others' mean":
            return reward - expected
        case "group mean" | "batch mean":
            return (reward - expected) * (size - 1) / size
    p, r = probabilities(world, table).tolist(), reward.tolist()
    sums = [0.0] * len(r)
    for mine in range(len(r)):
        for others in itertools.product(range(len(r)), repeat=size - 1):
            sums[mine] += math.prod(p[j] for j in others) * scaled_by_hand([r[mine], *(r[j] for j in others)])
    return torch.tensor(sums, dtype=torch.float64)


@pytest.mark.parametrize("loss", TOKEN_LOSSES)
@pytest.mark.parametrize("name", ADVANTAGES)
@pytest.mark.parametrize(("world", "size"), CASES)
def test_at_the_behavior_policy_every_token_loss_has_the_gradient_of_the_advantage(world, size, name, loss):
    table, reward = random_table(world, 0), rewards(world)
    found = expected_gradient(world, table, table, reward, size, ADVANTAGES[name], TOKEN_LOSSES[loss])
    truth = expected_reward_gradient(world, table, credit(world, table, reward, size, name))
    torch.testing.assert_close(found, -truth, **EXACT)


@pytest.mark.parametrize("name", ADVANTAGES)
@pytest.mark.parametrize(("world", "size"), CASES)
def test_which_advantages_are_unbiased(world, size, name):
    """Baselines without the response's own reward are; with it (G−1)/G times; with a deviation no factor is right."""
    table, reward = random_table(world, 0), rewards(world)
    found = expected_gradient(world, table, table, reward, size, ADVANTAGES[name], TOKEN_LOSSES["policy gradient"])
    truth = -expected_reward_gradient(world, table, reward)
    if name in ("none", "leave one out", "others' mean"):
        torch.testing.assert_close(found, truth, **EXACT)
    elif name in ("group mean", "batch mean"):
        torch.testing.assert_close(found, truth * (size - 1) / size, **EXACT)
    else:
        factor = (found * truth).sum() / truth.square().sum()  # the best one there is
        assert (found - factor * truth).norm() > 0.01 * found.norm()


@pytest.mark.parametrize("name", ADVANTAGES)
@pytest.mark.parametrize(("world", "size"), CASES)
def test_gspo_at_the_behavior_policy_divides_the_advantage_by_the_length(world, size, name):
    """Row means of GSPO's loss climb E[credit / |y|], credit and length fixed: ∇J / T only where all lengths are T."""
    table, reward = random_table(world, 0), rewards(world)
    found = expected_gradient(world, table, table, reward, size, ADVANTAGES[name], sequence_clipped, row_mean)
    fair = credit(world, table, reward, size, name)
    torch.testing.assert_close(found, -expected_reward_gradient(world, table, fair / lengths(world)), **EXACT)
    undivided = -expected_reward_gradient(world, table, fair)
    if len(set(lengths(world).tolist())) == 1:
        torch.testing.assert_close(found, undivided / world.mask.shape[1], **EXACT)
    else:
        factor = (found * undivided).sum() / undivided.square().sum()
        assert (found - factor * undivided).norm() > 0.01 * found.norm()


def test_gspo_with_a_baseline_also_changes_the_length():
    """In closed form: E[(R_i − R_j)/|y_i| ∇log π] = ∇E[R/|y|] − J ∇E[1/|y|]."""
    table, reward, length = random_table(VARIED, 0), rewards(VARIED), lengths(VARIED)
    found = expected_gradient(VARIED, table, table, reward, 2, leave_one_out, sequence_clipped, row_mean)
    about_reward = expected_reward_gradient(VARIED, table, reward / length)
    about_length = expected_reward_gradient(VARIED, table, 1 / length)
    baseline = expected_reward(VARIED, table, reward).detach()
    torch.testing.assert_close(found, -(about_reward - baseline * about_length), **EXACT)


@pytest.mark.parametrize("i", range(len(VARIED.tokens)))
def test_at_the_behavior_policy_gspo_and_the_policy_gradient_agree_row_by_row_under_either_reduction(i):
    """One response at a time, so nothing is averaged away: each token carries 1/|y| of every token's gradient."""
    table = random_table(VARIED, 0)
    logp, mask = logprobs(VARIED, table)[i : i + 1], VARIED.mask[i : i + 1]
    advantage = torch.full_like(logp, 1.3).detach()
    for reduction in (token_sum, row_mean):
        gspo = reduction(sequence_clipped(logp, logp.detach(), advantage, mask), mask).sum()
        plain = reduction(policy_gradient(logp, advantage), mask).sum()
        found, expected = (torch.autograd.grad(loss, table, retain_graph=True)[0] for loss in (gspo, plain))
        torch.testing.assert_close(found, expected, **EXACT)


# Scaling by a deviation


def test_scaled_groups_of_two_ascend_the_win_probability():
    """A_i = ±1/√2 by who is better, so they climb P(y beats y') with y' fixed, and see only the ranks of rewards."""
    table, reward = random_table(VARIED, 0), rewards(VARIED)
    p = probabilities(VARIED, table).detach()
    win = (reward[:, None] > reward).double() @ p - (reward[:, None] < reward).double() @ p
    for same_order in (reward, reward.exp(), 1000 * reward):
        found = expected_gradient(VARIED, table, table, same_order, 2, group_relative, TOKEN_LOSSES["ratio"])
        truth = -expected_reward_gradient(VARIED, table, win) / math.sqrt(2)
        # The 1e-6 in the divisor, beside differences of 0.01 and more.
        torch.testing.assert_close(found, truth, rtol=0, atol=1e-4)


def test_with_one_outlier_reward_scaling_rotates_the_gradient():
    table, reward = random_table(VARIED, 0), rewards(VARIED)
    reward[3] = 100
    found = expected_gradient(VARIED, table, table, reward, 2, group_relative, TOKEN_LOSSES["ratio"])
    truth = -expected_reward_gradient(VARIED, table, reward)
    assert torch.cosine_similarity(found.flatten(), truth.flatten(), dim=0) < 0.7


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("seed", [0, 1])
def test_with_binary_rewards_scaling_only_rescales_the_gradient(seed, size):
    """The expected gradient is c(p) ∇p, p the chance of a 1, with c the mean gain of a 1 over a 0.

    c is constant for groups of two and three, and from four on depends on p: prompts weigh by their difficulty.
    """
    table, reward = random_table(ONE, seed), torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    p = probabilities(ONE, table)[0].item()
    c = 0.0
    for ones in range(size):
        chance = math.comb(size - 1, ones) * p**ones * (1 - p) ** (size - 1 - ones)
        gain = {}
        for mine in (1.0, 0.0):
            rewards_here = [mine] + [1.0] * ones + [0.0] * (size - 1 - ones)
            gain[mine] = scaled_by_hand(rewards_here)
        c += chance * (gain[1.0] - gain[0.0])
    found = expected_gradient(ONE, table, table, reward, size, group_relative, TOKEN_LOSSES["policy gradient"])
    torch.testing.assert_close(found, -c * expected_reward_gradient(ONE, table, reward), **EXACT)
    constant = {2: 1 / math.sqrt(2), 3: 2 / math.sqrt(3)}
    if size in constant:
        assert math.isclose(c, constant[size], rel_tol=1e-5)  # the 1e-6 in the divisor


@pytest.mark.parametrize("logit", [0.0, 0.7, 3.0])
def test_for_four_the_factor_depends_on_the_difficulty(logit):
    """In closed form 3/2 − 3 p (1 − p) (1 − √3/2): least at even odds, most where a prompt is very hard or easy."""
    table = torch.tensor([[logit, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    reward = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    p = probabilities(ONE, table)[0].item()
    c = 1.5 - 3 * p * (1 - p) * (1 - math.sqrt(3) / 2)
    found = expected_gradient(ONE, table, table, reward, 4, group_relative, TOKEN_LOSSES["ratio"])
    truth = -c * expected_reward_gradient(ONE, table, reward)
    torch.testing.assert_close(found, truth, rtol=1e-5, atol=0)  # the 1e-6 in the divisor


def test_batch_scaling_couples_the_gradients_of_prompts():
    """Two prompts, two responses each. Move the second's rewards away by c: its own spread stays, the deviation of all
    four tends to c/√3, and the expected gradient of the first to √3/c times its unscaled one."""
    table, reward = random_table(ONE, 0), rewards(ONE)
    logp, group = logprobs(ONE, table), torch.tensor([0, 0, 1, 1])

    def first_prompt(scale, c):
        def estimator(index):
            moved = reward[index] + c * group
            return policy_gradient(logp[index], group_relative(moved, group, scale)[:, None])[:2].mean()

        return torch.autograd.grad(expectation(ONE, table, 4, estimator), table, retain_graph=True)[0]

    unscaled = first_prompt("none", 0.0)
    torch.testing.assert_close(unscaled, -expected_reward_gradient(ONE, table, reward) / 2, **EXACT)
    for c in (1e3, 1e4):
        # Relative error: the rewards' own spread, near 1, over c.
        torch.testing.assert_close(first_prompt("batch", c) * c / math.sqrt(3), unscaled, rtol=2 / c, atol=2 / c)
        torch.testing.assert_close(first_prompt("group", c), first_prompt("group", 0.0), rtol=0, atol=1e-7)
