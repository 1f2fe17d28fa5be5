"""PPO by enumeration: its expected gradient is exact, and three methods have the optimum π_ref e^{R/β}/Z."""

import pytest
import torch
from estimators import EXACT, ONE, VARIED, rewards
from test_preference_exact import expected_loss, trained

from grape_rl.maths.advantage import gae
from grape_rl.maths.exact import (
    expected_reward,
    expected_reward_gradient,
    logprobs,
    probabilities,
    random_table,
    response_kl,
)
from grape_rl.maths.penalty import reference_kl
from grape_rl.maths.preference import dpo
from grape_rl.maths.reward import kl_penalized
from grape_rl.maths.surrogate import clipped, policy_gradient
from grape_rl.maths.value import value_loss


def exact_value(world, table, token_reward):
    """V before each token: the mean reward still to come, over all responses that begin alike."""
    p, own = probabilities(world, table).detach(), world.mask
    to_come = token_reward.masked_fill(~own, 0).flip(1).cumsum(1).flip(1)
    alike = (own[:, None] & own & (world.prefix[:, None] == world.prefix)).double()  # i, j, t
    return torch.einsum("ijt,j,jt->it", alike, p, to_come) / torch.einsum("ijt,j->it", alike, p).masked_fill(~own, 1)


def any_value(world, seed):
    """A value that knows nothing, but that it may read only what comes before the token."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(world.prefixes, generator=generator, dtype=torch.float64)[world.prefix]


def ppo_gradient(world, table, advantage):
    """∇ of PPO's loss at ρ = 1, summed over tokens, on average over the policy's own responses."""
    logp = logprobs(world, table)
    per_response = clipped(logp, logp.detach(), advantage).masked_fill(~world.mask, 0).sum(1)
    return torch.autograd.grad(probabilities(world, table).detach() @ per_response, table)[0]


@pytest.mark.parametrize("beta", [0.0, 0.4])
@pytest.mark.parametrize(
    ("whose", "lam", "unbiased"),
    [("exact", 1.0, True), ("exact", 0.5, True), ("exact", 0.0, True), ("any", 1.0, True), ("any", 0.5, False)],
)
def test_the_expected_gradient_of_ppo_is_that_of_the_reward_minus_the_kl(beta, whose, lam, unbiased):
    """At λ = 1 whatever the value says; at another λ only if the value is right. With β, of E[R] − β KL(π‖π_ref)."""
    table, reference, reward = random_table(VARIED, 0), random_table(VARIED, 1).detach(), rewards(VARIED)
    logp = logprobs(VARIED, table).detach()
    token_reward = kl_penalized(reward, logp, logprobs(VARIED, reference), VARIED.mask, beta)
    value = exact_value(VARIED, table, token_reward) if whose == "exact" else any_value(VARIED, 3)
    found = ppo_gradient(VARIED, table, gae(token_reward, value, VARIED.mask, 1.0, lam))
    goal = expected_reward(VARIED, table, reward) - beta * response_kl(VARIED, table, reference)
    truth = -torch.autograd.grad(goal, table)[0]
    assert truth.abs().max() > 0.01
    if unbiased:
        torch.testing.assert_close(found, truth, **EXACT)
    else:
        assert (found - truth).norm() > 0.02 * truth.norm()


def test_a_value_does_not_bias_the_gradient_and_the_true_value_removes_its_noise():
    table, reward = random_table(VARIED, 5), rewards(VARIED)
    token_reward = kl_penalized(reward, *2 * [logprobs(VARIED, table).detach()], VARIED.mask)
    p, logp = probabilities(VARIED, table).detach(), logprobs(VARIED, table)
    truth, noise = expected_reward_gradient(VARIED, table, reward), {}
    for name, value in {
        "none": torch.zeros_like(token_reward),
        "any": any_value(VARIED, 4),
        "exact": exact_value(VARIED, table, token_reward),
    }.items():
        advantage = gae(token_reward, value, VARIED.mask, lam=1.0)
        mean, noise[name] = torch.zeros_like(truth), 0.0
        for i in range(len(p)):
            score = (advantage[i] * logp[i]).masked_fill(~VARIED.mask[i], 0).sum()
            (estimate,) = torch.autograd.grad(score, table, retain_graph=True)
            mean += p[i] * estimate
            noise[name] += float(p[i] * (estimate - truth).square().sum())
        torch.testing.assert_close(mean, truth, **EXACT)
    assert noise["exact"] < 0.8 * min(noise["none"], noise["any"])


@pytest.mark.parametrize("lam", [1.0, 0.5, 0.0])
def test_the_optimum_of_the_value_loss_is_the_true_value(lam):
    table, reward = random_table(VARIED, 2), rewards(VARIED)
    token_reward = kl_penalized(reward, *2 * [logprobs(VARIED, table).detach()], VARIED.mask)
    right = exact_value(VARIED, table, token_reward)
    p, slope = probabilities(VARIED, table).detach(), {}
    for off in (0.0, 0.3):
        by_prefix = torch.zeros(VARIED.prefixes, dtype=torch.float64)
        by_prefix[VARIED.prefix[VARIED.mask]] = right[VARIED.mask] + off
        by_prefix.requires_grad_()
        value = by_prefix[VARIED.prefix]
        target = (gae(token_reward, value, VARIED.mask, 1.0, lam) + value).detach()
        lost = value_loss(value, value.detach(), target).masked_fill(~VARIED.mask, 0).sum(1)
        slope[off] = torch.autograd.grad(p @ lost, by_prefix)[0]
    torch.testing.assert_close(slope[0.0], torch.zeros_like(slope[0.0]), rtol=0, atol=1e-12)
    assert slope[0.3].max() > 0.01


# Three roads, one optimum


def tilted(world, reference, reward, beta):
    """π_ref e^{R/β}/Z."""
    weight = probabilities(world, reference) * (reward / beta).exp()
    return weight / weight.sum()


def distance(world, table, other):
    """In total variation."""
    return float((probabilities(world, table).detach() - other).abs().sum() / 2)


def descended(world, reference, loss, rounds=120):
    """The table that descent comes to: each round the responses are those of the policy as it is, used twice.

    ``loss`` gives, for each response, the loss under the table, when another (fixed) table drew it. The gradient of a
    choice is over how often it is made, which is its natural gradient, so that rare ones come along too.
    """
    table = reference.clone()
    choice = (world.prefix * world.vocabulary + world.tokens)[world.mask]
    for _ in range(rounds):
        old = table.clone()
        p = probabilities(world, old)
        often = torch.zeros(old.numel(), dtype=old.dtype).index_add(
            0, choice, p[:, None].expand(world.mask.shape)[world.mask]
        )
        for _ in range(2):
            at = table.clone().requires_grad_()
            table = table - 0.2 * torch.autograd.grad(p @ loss(at, old), at)[0] / often.reshape(old.shape)
    return table


def roads(world, reference, reward, beta):
    """The losses, from the library's own parts: of each response, under a table, when ``old`` drew it."""
    against = logprobs(world, reference)

    def summed(field):
        return field.masked_fill(~world.mask, 0).sum(1)

    def reinforce(table, old):
        behavior = logprobs(world, old)
        total = kl_penalized(reward, behavior, against, world.mask, beta).sum(1)
        advantage = total - probabilities(world, old) @ total
        return summed(policy_gradient(logprobs(world, table), advantage[:, None].expand_as(behavior)))

    def ppo_in_reward(table, old):
        behavior = logprobs(world, old)
        token_reward = kl_penalized(reward, behavior, against, world.mask, beta)
        value = exact_value(world, old, token_reward)
        return summed(clipped(logprobs(world, table), behavior, gae(token_reward, value, world.mask)))

    def ppo_in_loss(table, old, estimator="k3"):
        logp, behavior, frozen = (logprobs(world, each).sum(1, keepdim=True) for each in (table, old, reference))
        advantage = (reward - probabilities(world, old) @ reward)[:, None]
        held = beta * reference_kl(logp, behavior, frozen, estimator)
        return (clipped(logp, behavior, advantage) + held).squeeze(1)

    def ppo_in_loss_per_token(table, old):
        logp, behavior = logprobs(world, table), logprobs(world, old)
        token_reward = kl_penalized(reward, behavior, against, world.mask)
        advantage = gae(token_reward, exact_value(world, old, token_reward), world.mask)
        return summed(clipped(logp, behavior, advantage) + beta * reference_kl(logp, behavior, against))

    return {
        "REINFORCE, KL in the reward": reinforce,
        "PPO, KL in the reward": ppo_in_reward,
        "PPO, KL of responses in the loss (k3)": ppo_in_loss,
        "PPO, KL of responses in the loss (k1)": lambda table, old: ppo_in_loss(table, old, "k1"),
        "per token": ppo_in_loss_per_token,
    }


BETA = 0.4
ROADS = [
    "REINFORCE, KL in the reward",
    "PPO, KL in the reward",
    "PPO, KL of responses in the loss (k3)",
    "PPO, KL of responses in the loss (k1)",
]


@pytest.fixture(scope="module")
def start():
    reference, reward = random_table(VARIED, 1).detach(), rewards(VARIED)
    return reference, reward, tilted(VARIED, reference, reward, BETA)


@pytest.mark.parametrize("road", ROADS)
def test_reinforce_and_ppo_have_the_optimum_of_the_reward_tilted_reference(road, start):
    reference, reward, optimum = start
    assert distance(VARIED, reference, optimum) > 0.1, "it is some way to go"
    end = descended(VARIED, reference, roads(VARIED, reference, reward, BETA)[road])
    assert distance(VARIED, end, optimum) < 1e-4


def test_dpo_on_preferences_of_the_same_reward_has_the_same_optimum(start):
    reference, reward, optimum = start
    end = trained(VARIED, reference, lambda table: expected_loss(VARIED, table, reference, reward, BETA, dpo))
    assert distance(VARIED, end, optimum) < 1e-4


def test_a_per_token_kl_in_the_loss_has_another_optimum():
    """Its gradient holds the prefixes fixed: no token answers for the KL of those that it leads to.

    So it comes to π(a|s) ∝ π_ref(a|s) e^{Q(s,a)/β} with Q the reward to come *without* the KL. For responses of one
    token that is the same.
    """
    reference, reward = random_table(ONE, 1).detach(), rewards(ONE)
    end = descended(ONE, reference, roads(ONE, reference, reward, BETA)["per token"])
    assert distance(ONE, end, tilted(ONE, reference, reward, BETA)) < 1e-4

    reference, reward = random_table(VARIED, 1).detach(), rewards(VARIED)
    end = descended(VARIED, reference, roads(VARIED, reference, reward, BETA)["per token"])
    p_ref, expected = reference.softmax(-1), torch.zeros(len(reward), dtype=torch.float64)
    after = {}  # by the last step: first the second tokens, then the first
    for first in range(3):
        rows = [i for i in range(len(reward)) if VARIED.tokens[i, 0] == first]
        mine = p_ref[VARIED.prefix[rows[0], 1]] if len(rows) > 1 else torch.ones(1, dtype=torch.float64)
        weight = mine * (reward[rows] / BETA).exp()
        after[first] = (rows, weight / weight.sum())
    q = torch.tensor([float(share @ reward[rows]) for rows, share in after.values()], dtype=torch.float64)
    weight = p_ref[0] * (q / BETA).exp()
    for first, (rows, share) in after.items():
        expected[rows] = weight[first] / weight.sum() * share
    assert distance(VARIED, end, expected) < 1e-4
    assert distance(VARIED, end, tilted(VARIED, reference, reward, BETA)) > 0.1
