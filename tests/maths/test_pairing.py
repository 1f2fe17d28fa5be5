"""Preference pairs from rewards: against a loop, excluded pairs, and the effect of training on them."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grape_rl.maths.advantage import leave_one_out
from grape_rl.maths.exact import (
    enumerated,
    expectation,
    expected_reward,
    logprobs,
    probabilities,
    random_table,
    response_kl,
)
from grape_rl.maths.pairing import ranked_pairs
from grape_rl.maths.preference import dpo, rpo
from grape_rl.maths.surrogate import policy_gradient

NAN, NONE = math.nan, torch.full((4,), -1)
unhurried = settings(deadline=None, max_examples=80)  # the first call loads things
numbers = st.integers(0, 6).map(lambda i: i / 4)  # few, and exact in binary: many ties
responses = st.tuples(st.one_of(st.just(NAN), numbers), st.sampled_from([-3, 0, 8]), st.integers(0, 3))
batches = st.lists(responses, min_size=1, max_size=10)
pairings = st.sampled_from(["best_worst", "adjacent", "all"])
gaps = st.sampled_from([0.0, 0.25, 0.5, 1.0])


def tensors(batch):
    reward, group, text = zip(*batch, strict=True)
    # The same text to another prompt is another response.
    number = [10 * (g + 3) + t for g, t in zip(group, text, strict=True)]
    none = torch.full((len(batch),), -1)
    return torch.tensor(reward, dtype=torch.float64), torch.tensor(group), torch.tensor(number), none


def looped(batch, pairing, min_gap):
    """The pairs by the words of the rule, group by group."""
    out = set()
    for g in {g for _, g, _ in batch}:
        known = [i for i, (r, other, _) in enumerate(batch) if other == g and not math.isnan(r)]
        ranked = sorted(known, key=lambda i: (-batch[i][0], i))
        if pairing == "all":
            wanted = list(itertools.combinations(ranked, 2))
        elif pairing == "adjacent":
            wanted = list(itertools.pairwise(ranked))
        else:
            wanted = [(ranked[0], min(known, key=lambda i: (batch[i][0], i)))] if known else []
        for w, x in wanted:
            gap = batch[w][0] - batch[x][0]
            if gap > 0 and gap >= min_gap and batch[w][2] != batch[x][2]:
                out.add((w, x))
    return out


@unhurried
@given(batches, pairings, gaps)
def test_pairs_against_a_loop(batch, pairing, min_gap):
    found = ranked_pairs(*tensors(batch), pairing, min_gap).tolist()
    assert len(found) == len(set(map(tuple, found)))
    assert set(map(tuple, found)) == looped(batch, pairing, min_gap)


@unhurried
@given(batches, pairings, gaps)
def test_excluded_pairs(batch, pairing, min_gap):
    for w, x in ranked_pairs(*tensors(batch), pairing, min_gap).tolist():
        (better, mine, said), (worse, other, also) = batch[w], batch[x]
        assert mine == other, "across prompts"
        assert not math.isnan(better) and not math.isnan(worse), "a missing reward"
        assert better > worse and better - worse >= min_gap, "equal rewards, or nearly"
        assert said != also, "the same response twice"


@unhurried
@given(batches, st.randoms(use_true_random=False), pairings)
def test_pairs_follow_the_order_of_responses(batch, random, pairing):
    """Of rewards that all differ: among equal ones the earliest stands first."""
    batch = [(r + i / 1024, g, t) for i, (r, g, t) in enumerate(batch)]
    order = random.sample(range(len(batch)), len(batch))
    found = {tuple(pair) for pair in ranked_pairs(*tensors(batch), pairing).tolist()}
    moved = ranked_pairs(*tensors([batch[i] for i in order]), pairing).tolist()
    assert {(order[w], order[x]) for w, x in moved} == found


@unhurried
@given(batches, st.lists(st.integers(-1, 9), min_size=10, max_size=10), gaps)
def test_a_revision_is_paired_with_its_original_only(batch, of, min_gap):
    of = [j if j < i and batch[j][1] == batch[i][1] else -1 for i, j in zip(range(len(batch)), of, strict=False)]
    expected = {
        (i, j)
        for i, j in enumerate(of)
        if j >= 0 and batch[i][0] > batch[j][0] and batch[i][0] - batch[j][0] >= min_gap and batch[i][2] != batch[j][2]
    }
    found = ranked_pairs(*tensors(batch)[:3], torch.tensor(of), "revised", min_gap).tolist()
    assert len(found) == len(expected) and {tuple(pair) for pair in found} == expected


def test_ties_are_broken_by_order():
    reward, group = torch.tensor([1.0, 2.0, 1.0, 2.0]), torch.zeros(4, dtype=torch.long)
    assert ranked_pairs(reward, group, torch.arange(4), NONE).tolist() == [[1, 0]]
    assert ranked_pairs(reward, group, torch.arange(4), NONE, "adjacent").tolist() == [[3, 0]]
    assert ranked_pairs(reward, group, torch.arange(4), NONE, "all").tolist() == [[1, 0], [1, 2], [3, 0], [3, 2]]


def test_an_empty_batch_has_no_pairs():
    for reward in (torch.zeros(0), torch.ones(1), torch.ones(3), torch.full((3,), NAN)):
        group = torch.zeros(len(reward), dtype=torch.long)
        assert ranked_pairs(reward, group, torch.arange(len(reward)), torch.full((len(reward),), -1)).shape == (0, 2)


@pytest.mark.parametrize(
    ("reward", "more", "message"),
    [
        ([0.0, math.inf], {}, "reward has an infinite entry"),
        ([0.0, 1.0], {"min_gap": -0.5}, "min_gap is -0.5; it must be at least 0"),
        ([0.0, 1.0], {"min_gap": NAN}, "min_gap is nan"),
    ],
)
def test_invalid_arguments_raise(reward, more, message):
    with pytest.raises(ValueError, match=message):
        ranked_pairs(torch.tensor(reward), torch.tensor([0, 0]), torch.arange(2), NONE[:2], **more)


# What the pairs teach, with everything enumerated.

WORLD, BETA = enumerated(3, 2, end=2), 0.4
REWARD = (torch.arange(len(WORLD.tokens), dtype=torch.float64) * 1.7).cos()
TIED = torch.tensor([0.1, 0.7, 0.1, 0.7, 0.7, 0.1, -2.0], dtype=torch.float64)
EXACT = {"rtol": 1e-10, "atol": 1e-12}  # sums of some hundred terms in float64


def sides(table, reference, index, reward, pairing="best_worst"):
    """Log-probs and rewards of the pairs of a group of responses ``index`` to one prompt."""
    pairs = index[ranked_pairs(reward[index], torch.zeros_like(index), index, torch.full_like(index, -1), pairing)]
    policy, frozen = logprobs(WORLD, table).sum(1), logprobs(WORLD, reference).sum(1).detach()
    w, x = pairs.T
    return policy[w], policy[x], frozen[w], frozen[x], reward[w], reward[x]


@pytest.mark.parametrize("reward", [REWARD, TIED], ids=["distinct", "tied"])
def test_the_expected_gradient_of_online_dpo_is_over_all_pairs_of_responses(reward):
    """−β Σ_{R(y) > R(y')} 2 p(y) p(y') σ(−β Δ) ∇(log π(y) − log π(y')): two samples come up either way round."""
    table, reference = random_table(WORLD, 0), random_table(WORLD, 1)
    found = expectation(WORLD, table, 2, lambda index: dpo(*sides(table, reference, index, reward)[:4], BETA).sum())
    (gradient,) = torch.autograd.grad(found, table)

    p, score = probabilities(WORLD, table).tolist(), []
    for y in range(len(p)):
        score.append(torch.autograd.grad(logprobs(WORLD, table)[y].sum(), table)[0])
    h = (logprobs(WORLD, table).sum(1) - logprobs(WORLD, reference).sum(1)).tolist()
    expected = torch.zeros_like(gradient)
    for w, x in itertools.product(range(len(p)), repeat=2):
        if reward[w] > reward[x]:
            slope = -BETA / (1 + math.exp(BETA * (h[w] - h[x])))
            expected += 2 * p[w] * p[x] * slope * (score[w] - score[x])
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(gradient, expected, **EXACT)


def tilted(table, reference, scale):
    """The reward of each response less what it costs to leave the reference: η r − β log(π/π_ref)."""
    gain = logprobs(WORLD, table).sum(1) - logprobs(WORLD, reference).sum(1)
    return (scale * REWARD - BETA * gain).detach()


def test_half_of_squared_rpo_is_rloo_with_the_kl_in_the_reward():
    """∇ ½ (a − b)² = −2β · ∇J as RLOO estimates it from the same two samples, whichever two they are."""
    table, reference, scale = random_table(WORLD, 0), random_table(WORLD, 1), 1.3
    for index in map(torch.tensor, itertools.permutations(range(len(REWARD)), 2)):
        half = 0.5 * rpo(*sides(table, reference, index, REWARD), BETA, scale, "squared").sum()
        (gradient,) = torch.autograd.grad(half, table)
        advantage = leave_one_out(tilted(table, reference, scale)[index], torch.zeros_like(index))
        logp = logprobs(WORLD, table)[index]
        loss = policy_gradient(logp, advantage[:, None].expand_as(logp)).sum() / 2
        (descent,) = torch.autograd.grad(loss, table)
        torch.testing.assert_close(gradient, 2 * BETA * descent, **EXACT)


def test_squared_online_rpo_ascends_the_reward_minus_the_kl():
    """On average over the policy's own pairs, half the square has the gradient −2β ∇(η E[R] − β KL(π‖π_ref))."""
    table, reference, scale = random_table(WORLD, 0), random_table(WORLD, 1), 1.3

    def loss(index):
        return 0.5 * rpo(*sides(table, reference, index, REWARD), BETA, scale, "squared").sum()

    (gradient,) = torch.autograd.grad(expectation(WORLD, table, 2, loss), table)
    goal = scale * expected_reward(WORLD, table, REWARD) - BETA * response_kl(WORLD, table, reference)
    (climb,) = torch.autograd.grad(goal, table)
    assert climb.abs().max() > 0.01
    torch.testing.assert_close(gradient, -2 * BETA * climb, **EXACT)


@pytest.mark.parametrize("pairing", ["best_worst", "adjacent", "all"])
def test_online_dpo_starts_uphill_for_every_pairing(pairing):
    table = random_table(WORLD, 0)

    def loss(index):
        return dpo(*sides(table, table, index, REWARD, pairing)[:4], BETA).sum()

    (gradient,) = torch.autograd.grad(expectation(WORLD, table, 3, loss), table)
    (climb,) = torch.autograd.grad(expected_reward(WORLD, table, REWARD), table)
    assert (gradient * climb).sum() < -0.01
