"""Losses of reward models: against loops, and the maximum-likelihood scores against the true rewards."""

import math
from itertools import product

import pytest
import torch
from torch.autograd import gradcheck

from grape_rl.maths.exact import enumerated
from grape_rl.maths.reward_model import bradley_terry, score_centering, step_cross_entropy, step_reward


def normal(*shape, seed=0, scale=2.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_bradley_terry_is_the_log_of_the_odds_by_hand():
    chosen, rejected, margin = normal(9, seed=1), normal(9, seed=2), normal(9, seed=3)
    found = bradley_terry(chosen, rejected, margin)
    for i in range(9):
        odds = math.exp(float(chosen[i]) - float(margin[i])) / math.exp(float(rejected[i]))
        assert float(found[i]) == pytest.approx(math.log((1 + odds) / odds), rel=1e-12)
    assert bradley_terry(torch.tensor([-800.0]), torch.tensor([0.0]), torch.tensor([0.0])).item() == 800, "no overflow"


def test_gradients_against_differences():
    chosen, rejected, margin = (normal(4, seed=s).requires_grad_() for s in (1, 2, 3))
    assert gradcheck(bradley_terry, (chosen, rejected, margin))
    assert gradcheck(score_centering, (chosen, rejected))
    label = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    assert gradcheck(lambda logit: step_cross_entropy(logit, label), (chosen,))


def preferred(reward, extra=None, centering=0.0):
    """Maximum-likelihood scores for ordered pairs with the frequencies that ``reward`` implies."""
    n = len(reward)
    pairs = [(i, j) for i, j in product(range(n), repeat=2) if i != j]
    win, lose = (torch.tensor(each) for each in zip(*pairs, strict=True))
    often = torch.tensor([1 / (1 + math.exp(float(reward[j] - reward[i]))) for i, j in pairs], dtype=torch.float64)
    margin = torch.zeros(len(pairs), dtype=torch.float64) if extra is None else extra[win] - extra[lose]
    score = torch.zeros(n, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([score], max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        each = bradley_terry(score[win], score[lose], margin) + centering * score_centering(score[win], score[lose])
        loss = (often * each).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return score.detach()


def test_maximum_likelihood_recovers_the_rewards_up_to_a_constant():
    world = enumerated(vocabulary=3, length=2, end=2)
    reward = normal(len(world.tokens), seed=4)
    found = preferred(reward)
    assert len(reward) == 7
    torch.testing.assert_close(found - found[0], reward - reward[0], atol=1e-4, rtol=0)


def test_a_margin_shifts_the_optimum():
    """The margins of a pair in both orders are opposite: each response's score shifts by its own part."""
    reward, extra = normal(5, seed=5), normal(5, seed=6)
    moved = preferred(reward, extra) - preferred(reward)
    torch.testing.assert_close(moved - moved[0], extra - extra[0], atol=1e-4, rtol=0)


def test_centering_determines_the_level_of_the_scores():
    reward = normal(6, seed=7) + 5
    found = preferred(reward, centering=1e-5)
    assert abs(float(found.mean())) < 0.05, "the mean of the scores is about 0"
    torch.testing.assert_close(found - found[0], reward - reward[0], atol=1e-2, rtol=0)
    assert score_centering(torch.tensor([3.0]), torch.tensor([-1.0])).item() == 4


def test_step_cross_entropy_is_the_log_of_a_probability_by_hand():
    logit = normal(8, seed=8)
    label = torch.tensor([1, 0, 0, 1, 1, 0, 1, 0], dtype=torch.float64)
    for s, z, found in zip(logit.tolist(), label.tolist(), step_cross_entropy(logit, label).tolist(), strict=True):
        right = 1 / (1 + math.exp(-s))
        assert found == pytest.approx(-math.log(right if z else 1 - right), rel=1e-12)


def test_step_reward_by_hand():
    logit = normal(5, seed=9)
    each = [1 / (1 + math.exp(-s)) for s in logit.tolist()]
    wanted = {"min": min(each), "product": math.prod(each), "last": each[-1], "mean": sum(each) / 5}
    for how, value in wanted.items():
        assert float(step_reward(logit, how)) == pytest.approx(value, rel=1e-12)
    with pytest.raises(ValueError, match="a response without steps has no reward"):
        step_reward(logit[:0], "min")
