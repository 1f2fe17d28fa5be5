"""The enumerated world itself, against loops over its definition."""

import itertools
import math

import pytest
import torch

from grape_rl.maths.divergence import exact_kl
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

WORLDS = [
    pytest.param(enumerated(4, 1), id="one token of four"),
    pytest.param(enumerated(3, 3), id="three tokens of three"),
    pytest.param(enumerated(3, 3, end=1), id="up to three of three, with an end"),
]


def responses(world):
    return [tuple(row[own].tolist()) for row, own in zip(world.tokens, world.mask, strict=True)]


@pytest.mark.parametrize(("vocabulary", "length", "end"), [(4, 1, None), (3, 3, None), (3, 3, 1), (4, 2, 0), (2, 3, 1)])
def test_every_response_is_listed_once(vocabulary, length, end):
    """A response is any string that either has full length or ends with its only end token."""
    strings = itertools.chain(*(itertools.product(range(vocabulary), repeat=n) for n in range(1, length + 1)))
    expected = {y for y in strings if end not in y[:-1] and (len(y) == length or y[-1] == end)}
    found = responses(enumerated(vocabulary, length, end))
    assert len(found) == len(set(found))
    assert set(found) == expected


@pytest.mark.parametrize("world", WORLDS)
def test_equal_prefixes_have_equal_rows_and_different_ones_different_rows(world):
    row_of = {}
    for y, rows in zip(responses(world), world.prefix.tolist(), strict=True):
        for t in range(len(y)):
            assert row_of.setdefault(y[:t], rows[t]) == rows[t]
    assert sorted(row_of.values()) == list(range(world.prefixes))
    assert not world.prefix[~world.mask].any()
    assert not world.tokens[~world.mask].any()


@pytest.mark.parametrize("world", WORLDS)
def test_probabilities_are_products_over_tokens_and_sum_to_one(world):
    table = random_table(world, seed=1)
    choice = table.detach().softmax(-1)
    found = probabilities(world, table)
    for i, y in enumerate(responses(world)):
        each = [float(choice[world.prefix[i, t], token]) for t, token in enumerate(y)]
        assert math.isclose(found[i].item(), math.prod(each), rel_tol=1e-12)
        own = logprobs(world, table)[i].tolist()
        assert own[len(y) :] == [0.0] * (len(own) - len(y))
    assert math.isclose(found.sum().item(), 1, rel_tol=1e-12)


@pytest.mark.parametrize("world", WORLDS)
def test_expected_reward_and_its_gradient(world):
    """∇J against central differences: the step 1e-6 leaves an error near 1e-10."""
    table, reward = random_table(world, seed=2).detach(), torch.linspace(-1, 2, len(world.tokens), dtype=torch.float64)
    p = probabilities(world, table).tolist()
    value = expected_reward(world, table, reward)
    assert math.isclose(value.item(), math.fsum(a * b for a, b in zip(p, reward.tolist(), strict=True)), rel_tol=1e-12)
    gradient = expected_reward_gradient(world, table, reward)
    for at in itertools.product(range(world.prefixes), range(world.vocabulary)):
        step = torch.zeros_like(table)
        step[at] = 1e-6
        difference = expected_reward(world, table + step, reward) - expected_reward(world, table - step, reward)
        assert math.isclose(difference.item() / 2e-6, float(gradient[at]), abs_tol=1e-9)


@pytest.mark.parametrize("world", WORLDS)
def test_kl_of_responses_is_the_expected_sum_of_the_kl_of_tokens(world):
    """The chain rule: Σ over prefixes of (probability to get there) × KL of the choice made there."""
    table, other = random_table(world, seed=3).detach(), random_table(world, seed=4).detach()
    p = probabilities(world, table)
    arrival = [float(p[((world.prefix == s) & world.mask).any(1)].sum()) for s in range(world.prefixes)]
    each = exact_kl(table, other).tolist()
    expected = math.fsum(a * b for a, b in zip(arrival, each, strict=True))
    assert math.isclose(float(response_kl(world, table, other)), expected, rel_tol=1e-12)
    assert float(response_kl(world, table, table)) == 0


@pytest.mark.parametrize("world", WORLDS)
def test_table_of_reproduces_the_distribution(world):
    p = torch.arange(1, len(world.tokens) + 1, dtype=torch.float64)
    p = p / p.sum()
    torch.testing.assert_close(probabilities(world, table_of(world, p)), p, rtol=1e-12, atol=0)
    only = torch.zeros_like(p)
    only[-1] = 1  # most prefixes then never occur
    assert torch.equal(probabilities(world, table_of(world, only)), only)


def test_expectation_sums_over_all_groups():
    world = enumerated(3, 2, end=0)
    table = random_table(world, seed=5)
    p, n = probabilities(world, table).tolist(), len(world.tokens)

    def estimator(index):
        return torch.stack([index[0] * 10.0 + index[1] ** 2, index[2].double()])

    expected = [0.0, 0.0]
    for i, j, k in itertools.product(range(n), repeat=3):
        chance = p[i] * p[j] * p[k]
        expected = [expected[0] + chance * (10 * i + j * j), expected[1] + chance * k]
    torch.testing.assert_close(expectation(world, table, 3, estimator).tolist(), expected, rtol=1e-12, atol=0)


def test_expectation_passes_no_gradient_through_the_sampling():
    """A constant has expected gradient 0, and so has a score: both would not if the probabilities carried one."""
    world = enumerated(3, 2, end=0)
    table = random_table(world, seed=6)
    assert not expectation(world, table, 1, lambda index: index.double()).requires_grad
    score = expectation(world, table, 1, lambda index: logprobs(world, table)[index].sum())
    (gradient,) = torch.autograd.grad(score, table)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-14)


def test_expectation_skips_impossible_responses():
    world = enumerated(2, 1)
    table = torch.tensor([[0.0, -torch.inf]], dtype=torch.float64)
    assert expectation(world, table, 2, lambda index: 1.0 / (1.0 - index.double())).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("bad", [(1, 2, None), (3, 0, None), (3, 2, 3), (3, 2, -1)])
def test_an_invalid_world_raises(bad):
    with pytest.raises(ValueError, match="vocabulary"):
        enumerated(*bad)
