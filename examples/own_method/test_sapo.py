"""The gradient of SAPO's loss, by enumeration: the language model is so small that every response can be listed."""

import math

import pytest
import torch
from sapo import soft_gated

from grape_rl.maths.advantage import leave_one_out
from grape_rl.maths.exact import (
    enumerated,
    expectation,
    expected_reward_gradient,
    logprobs,
    probabilities,
    random_table,
)

WORLD = enumerated(vocabulary=3, length=2, end=2)
REWARD = torch.linspace(-1, 1, len(WORLD.tokens), dtype=torch.float64)


def test_at_the_behavior_policy_the_expected_gradient_is_that_of_the_reward():
    """At ρ = 1 the gate's slope is 1 for any τ: with an unbiased baseline SAPO follows ∇J exactly."""
    table = random_table(WORLD, seed=0)

    def loss(index):
        logp, mask = logprobs(WORLD, table)[index], WORLD.mask[index]
        advantage = leave_one_out(REWARD[index], torch.zeros(len(index), dtype=torch.long))[:, None].expand_as(logp)
        return (soft_gated(logp, logp.detach(), advantage) * mask).sum(1).mean()

    (gradient,) = torch.autograd.grad(expectation(WORLD, table, 2, loss), table)
    torch.testing.assert_close(-gradient, expected_reward_gradient(WORLD, table, REWARD), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("tau_positive", "tau_negative"), [(1.0, 1.05), (4.0, 0.5)])
def test_off_policy_each_token_weighs_by_its_ratio_and_the_gate_s_slope(tau_positive, tau_negative):
    """A loop over tokens, with the gate's derivative written by hand: ∂L/∂log π = −A ρ sech²(τ (ρ − 1) / 2)."""
    table, behavior = random_table(WORLD, seed=0), random_table(WORLD, seed=1)
    logp, old = logprobs(WORLD, table), logprobs(WORLD, behavior).detach()
    advantage = REWARD[:, None].expand_as(logp)
    loss = (soft_gated(logp, old, advantage, tau_positive, tau_negative) * WORLD.mask).sum(1)
    (gradient,) = torch.autograd.grad(probabilities(WORLD, behavior).detach() @ loss, logp)

    for i, chance in enumerate(probabilities(WORLD, behavior).tolist()):
        for t in range(WORLD.mask.shape[1]):
            a, ratio = advantage[i, t].item(), math.exp(logp[i, t].item() - old[i, t].item())
            tau = tau_positive if a > 0 else tau_negative
            slope = 1 / math.cosh(tau * (ratio - 1) / 2) ** 2
            expected = -chance * a * ratio * slope if WORLD.mask[i, t] else 0.0
            assert gradient[i, t].item() == pytest.approx(expected, rel=0, abs=1e-12)
