"""DPO: against a loop, at the reference, and at the optimum that it is made for."""

import math

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
from grape_rl.maths.preference import dpo


def pairs(seed=0, size=8):
    generator = torch.Generator().manual_seed(seed)
    return tuple((-20 * torch.rand(size, generator=generator, dtype=torch.float64)).requires_grad_() for _ in range(4))


@pytest.mark.parametrize("chosen_beta", [{}, {"beta": 2.0}])
def test_against_a_loop(chosen_beta):
    fields, beta = pairs(), chosen_beta.get("beta", 0.1)
    expected = [
        math.log(1 + math.exp(-beta * (math.log(math.exp(w - ref_w)) - (l - ref_l))))
        for w, l, ref_w, ref_l in zip(*(field.tolist() for field in fields), strict=True)  # noqa: E741
    ]
    torch.testing.assert_close(dpo(*fields, **chosen_beta).tolist(), expected, rtol=1e-9, atol=1e-12)


def test_at_the_reference_the_loss_is_log_2_and_pulls_the_two_apart():
    chosen, rejected, _, _ = pairs()
    loss = dpo(chosen, rejected, chosen.detach(), rejected.detach(), beta=0.3)
    torch.testing.assert_close(loss, torch.full_like(loss, math.log(2)), rtol=1e-12, atol=0)
    up, down = torch.autograd.grad(loss.sum(), (chosen, rejected))
    torch.testing.assert_close(up, torch.full_like(up, -0.15), rtol=1e-12, atol=0)
    torch.testing.assert_close(down, torch.full_like(down, 0.15), rtol=1e-12, atol=0)


def test_gradients_against_differences():
    assert torch.autograd.gradcheck(dpo, pairs())


def test_far_from_the_reference_nothing_overflows():
    far = torch.tensor([2000.0, -2000.0], requires_grad=True)
    zero = torch.zeros(2)
    loss = dpo(far, zero, zero, zero, beta=1.0)
    assert loss.tolist() == [0.0, 2000.0]
    assert torch.autograd.grad(loss.sum(), far)[0].tolist() == [0.0, -1.0]


def test_preferences_of_a_reward_lead_to_the_optimum_of_that_reward_less_the_kl():
    """π* ∝ π_ref e^{R/β}: there E[R] − β KL(π‖π_ref) has no gradient, nor has DPO on Bradley–Terry pairs of R."""
    world, beta = enumerated(3, 2, end=2), 0.4
    reference = random_table(world, 1).detach()
    reward = (torch.arange(len(world.tokens), dtype=torch.float64) * 1.7).cos()
    tilted = probabilities(world, reference) * (reward / beta).exp()
    table = table_of(world, tilted / tilted.sum()).requires_grad_()

    goal = expected_reward(world, table, reward) - beta * response_kl(world, table, reference)
    torch.testing.assert_close(torch.autograd.grad(goal, table)[0], torch.zeros_like(table), rtol=0, atol=1e-13)

    n = len(reward)
    chosen, rejected = torch.arange(n).repeat_interleave(n), torch.arange(n).repeat(n)
    p, logp, reference_logp = probabilities(world, reference), logprobs(world, table), logprobs(world, reference)
    chance = p[chosen] * p[rejected] * (reward[chosen] - reward[rejected]).sigmoid()
    policy, frozen = logp.sum(1), reference_logp.sum(1)
    loss = chance @ dpo(policy[chosen], policy[rejected], frozen[chosen], frozen[rejected], beta)
    torch.testing.assert_close(torch.autograd.grad(loss, table)[0], torch.zeros_like(table), rtol=0, atol=1e-13)
