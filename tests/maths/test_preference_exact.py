"""Optima of preference losses by enumeration."""

import pytest
import torch

from grape_rl.maths.exact import (
    enumerated,
    expected_reward,
    logprobs,
    probabilities,
    random_table,
    response_kl,
    table_of,
)
from grape_rl.maths.preference import dpo, hinge, ipo, rpo


def test_preferences_of_a_reward_have_the_optimum_of_the_reward_minus_the_kl():
    """π* ∝ π_ref e^{R/β}: there E[R] − β KL(π‖π_ref) has no gradient, nor has DPO on Bradley–Terry pairs of R."""
    world, beta = enumerated(3, 2, end=2), 0.4
    reference = random_table(world, 1).detach()
    reward = (torch.arange(len(world.tokens), dtype=torch.float64) * 1.7).cos()
    tilted = probabilities(world, reference) * (reward / beta).exp()
    table = table_of(world, tilted / tilted.sum()).requires_grad_()

    goal = expected_reward(world, table, reward) - beta * response_kl(world, table, reference)
    torch.testing.assert_close(torch.autograd.grad(goal, table)[0], torch.zeros_like(table), rtol=0, atol=1e-13)
    (gradient,) = torch.autograd.grad(expected_loss(world, table, reference, reward, beta, dpo), table)
    torch.testing.assert_close(gradient, torch.zeros_like(table), rtol=0, atol=1e-13)


def expected_loss(world, table, reference, reward, beta, loss):
    """The mean loss over all pairs that the reference draws, labeled by Bradley and Terry from the reward."""
    n = len(reward)
    chosen, rejected = torch.arange(n).repeat_interleave(n), torch.arange(n).repeat(n)
    p = probabilities(world, reference)
    chance = p[chosen] * p[rejected] * (reward[chosen] - reward[rejected]).sigmoid()
    policy, frozen = logprobs(world, table).sum(1), logprobs(world, reference).sum(1)
    return 2 * chance @ loss(policy[chosen], policy[rejected], frozen[chosen], frozen[rejected], beta)


def trained(world, start, loss):
    """The table where ``loss`` has come to rest, from ``start``."""
    table = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [table], max_iter=500, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        value = loss(table)
        value.backward()
        return value

    optimizer.step(closure)
    return table.detach()


@pytest.mark.parametrize("beta", [0.2, 1.0])
def test_dpo_at_convergence_is_the_tilted_reference(beta):
    world = enumerated(3, 2, end=2)
    reference = random_table(world, 1).detach()
    reward = (torch.arange(len(world.tokens), dtype=torch.float64) * 1.7).cos()
    end = trained(world, reference, lambda table: expected_loss(world, table, reference, reward, beta, dpo))
    tilted = probabilities(world, reference) * (reward / beta).exp()
    torch.testing.assert_close(probabilities(world, end), tilted / tilted.sum(), rtol=0, atol=1e-6)
    assert (probabilities(world, end) - probabilities(world, reference)).abs().max() > 0.05


def test_squared_rpo_has_the_same_optimum_from_rewards_alone():
    world, beta = enumerated(3, 2, end=2), 0.4
    reference = random_table(world, 2).detach()
    reward = (torch.arange(len(world.tokens), dtype=torch.float64) * 1.7).cos()
    n = len(reward)
    pair = torch.combinations(torch.arange(n)).T  # each once, whichever of the two is better

    def loss(table):
        policy, frozen = logprobs(world, table).sum(1), logprobs(world, reference).sum(1)
        sides = (policy[pair[0]], policy[pair[1]], frozen[pair[0]], frozen[pair[1]], reward[pair[0]], reward[pair[1]])
        return rpo(*sides, beta, 1.0, "squared").mean()

    tilted = probabilities(world, reference) * (reward / beta).exp()
    torch.testing.assert_close(
        probabilities(world, trained(world, reference, loss)), tilted / tilted.sum(), rtol=0, atol=1e-6
    )


def test_ipo_converges_to_its_margin_and_hinge_to_its_edge():
    """Of one pair that is always labeled alike: DPO's margin would grow without end."""
    zero = torch.zeros(1, dtype=torch.float64)
    for loss, at in (
        (lambda m: ipo(m, zero, zero, zero, zero + 1, zero + 1, 0.25), 2.0),
        (lambda m: hinge(m, zero, zero, zero, 0.25), 4.0),
    ):
        margin = torch.tensor([at], dtype=torch.float64, requires_grad=True)
        assert loss(margin).item() == 0
        assert loss(margin - 1e-3).item() > 0
