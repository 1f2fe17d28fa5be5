"""SFT, DFT and rejection sampling by enumeration: their optima, and the distribution of the best of N."""

import itertools
import math

import pytest
import torch

from grape_rl.maths.exact import (
    enumerated,
    expectation,
    expected_reward,
    expected_reward_gradient,
    logprobs,
    probabilities,
    random_table,
    response_kl,
    table_of,
)
from grape_rl.maths.rejection import best_of_group
from grape_rl.maths.surrogate import dft, policy_gradient

WORLD = enumerated(3, 2, end=2)
EXACT = {"rtol": 1e-10, "atol": 1e-12}

DISTINCT = (torch.arange(7, dtype=torch.float64) * 1.7).cos()
TIED = torch.tensor([0.1, 0.7, 0.1, 0.7, 0.7, 0.1, -2.0], dtype=torch.float64)


def sft_loss(table, data):
    """The expected negative log-likelihood of whole responses, over the responses of ``data``."""
    logp = logprobs(WORLD, table)
    return expectation(WORLD, data, 1, lambda index: policy_gradient(logp[index], torch.ones_like(logp[index])).sum())


def kept_distribution(table, reward, size, keep=1, threshold=-math.inf):
    """How often each response is kept from a group of ``size``, per group."""

    def counts(index):
        advantage = best_of_group(reward[index], torch.zeros_like(index), keep, threshold)
        kept = index[~advantage.isnan()]
        return torch.zeros(len(reward), dtype=torch.float64).index_add(0, kept, torch.ones(len(kept)).double())

    return expectation(WORLD, table, size, counts)


def test_sft_has_no_gradient_at_the_distribution_of_its_data():
    data = random_table(WORLD, 3).detach()
    at = (data + 1.7).requires_grad_()  # a constant on the logits changes no probability
    (gradient,) = torch.autograd.grad(sft_loss(at, data), at)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-13)


@pytest.mark.parametrize("seed", range(5))
def test_sft_loss_is_the_datas_entropy_plus_the_kl_from_data_to_policy(seed):
    """So every other policy does worse, by exactly its KL."""
    data, table = random_table(WORLD, 3).detach(), random_table(WORLD, seed + 10).detach()
    excess = sft_loss(table, data) - sft_loss(data, data)
    assert excess > 0
    torch.testing.assert_close(excess, response_kl(WORLD, data, table), **EXACT)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("reward", [DISTINCT, TIED], ids=["distinct", "tied"])
def test_the_best_of_n_is_the_order_statistic(reward, size):
    """P(kept = y) = (P(R ≤ R_y)^N − P(R < R_y)^N) · p(y) / P(R = R_y): among equals, the policy's own proportions."""
    table = random_table(WORLD, 0).detach()
    p = probabilities(WORLD, table)
    no_better, worse = (reward[:, None] >= reward).double() @ p, (reward[:, None] > reward).double() @ p
    expected = (no_better**size - worse**size) * p / (no_better - worse)
    torch.testing.assert_close(kept_distribution(table, reward, size), expected, **EXACT)


@pytest.mark.parametrize(("keep", "threshold"), [(2, -math.inf), (3, -math.inf), (1, 0.5), (2, 0.5)])
@pytest.mark.parametrize("reward", [DISTINCT, TIED], ids=["distinct", "tied"])
def test_keeping_several_and_thresholds_against_a_loop(reward, keep, threshold):
    table = random_table(WORLD, 0).detach()
    p, r = probabilities(WORLD, table).tolist(), reward.tolist()
    expected = [0.0] * len(r)
    for group in itertools.product(range(len(r)), repeat=3):
        for place in sorted(range(3), key=lambda i, group=group: (-r[group[i]], i))[:keep]:
            if r[group[place]] >= threshold:
                expected[group[place]] += math.prod(p[y] for y in group)
    torch.testing.assert_close(kept_distribution(table, reward, 3, keep, threshold).tolist(), expected, **EXACT)


def test_sft_on_the_best_of_n_has_its_optimum_at_their_distribution_and_starts_uphill():
    table = random_table(WORLD, 0)
    kept = kept_distribution(table, DISTINCT, 3)

    def loss_of(policy):
        logp = logprobs(WORLD, policy)

        def loss(index):
            advantage = best_of_group(DISTINCT[index], torch.zeros_like(index))
            kept = ~advantage.isnan()
            return policy_gradient(logp[index[kept]], advantage[kept, None].expand(-1, 2)).sum()

        return torch.autograd.grad(expectation(WORLD, table, 3, loss), policy)[0]

    end = table_of(WORLD, kept).requires_grad_()
    torch.testing.assert_close(loss_of(end), torch.zeros_like(end), rtol=0, atol=1e-13)
    start = table.detach().requires_grad_()
    uphill = -(loss_of(start) * expected_reward_gradient(WORLD, table, DISTINCT)).sum()
    assert uphill > 0.01
    assert expected_reward(WORLD, end.detach(), DISTINCT) > expected_reward(WORLD, table, DISTINCT) + 0.1


@pytest.mark.parametrize("seed", range(3))
def test_the_gradient_of_dft_is_that_of_the_token_probability(seed):
    """Over every token of every response that there is: −∇ Σ_y data(y) Σ_t π(y_t), though its value is another."""
    data, table = random_table(WORLD, 3).detach(), random_table(WORLD, seed + 10)

    def gradient(of_token):
        weighed = expectation(WORLD, data, 1, lambda index: of_token(logprobs(WORLD, table)[index]).sum())
        return weighed.item(), torch.autograd.grad(weighed, table)[0]

    value, found = gradient(lambda logp: dft(logp, torch.ones_like(logp)))
    other, expected = gradient(lambda logp: -logp.exp())
    torch.testing.assert_close(found, expected, **EXACT)
    assert expected.abs().max() > 0.01 and abs(value - other) > 0.1
    _, sft = gradient(lambda logp: policy_gradient(logp, torch.ones_like(logp)))
    assert not torch.allclose(found / found.norm(), sft / sft.norm(), atol=0.05)


def test_dft_ignores_improbable_tokens_and_scales_with_the_advantage():
    logp = torch.tensor([[-30.0, -0.1]], dtype=torch.float64, requires_grad=True)
    for advantage in (1.0, 2.0, 0.0):
        (slope,) = torch.autograd.grad(dft(logp, torch.full_like(logp, advantage)).sum(), logp)
        assert slope[0].tolist() == pytest.approx([-advantage * math.exp(-30), -advantage * math.exp(-0.1)], rel=1e-12)
