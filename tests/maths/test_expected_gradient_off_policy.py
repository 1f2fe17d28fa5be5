"""Off-policy responses: the losses whose expected gradient is exact, and the bias of all further losses."""

import pytest
import torch
from estimators import ADVANTAGES, EXACT, FIXED, ONE, TOKEN_LOSSES, VARIED, expected_gradient, rewards

from grape_rl.maths.exact import expected_reward, expected_reward_gradient, probabilities, random_table
from grape_rl.maths.surrogate import ratio


def apart(world):
    """A policy, and an old one far enough for ratios to pass every bound."""
    return random_table(world, 0), random_table(world, 9).detach()


def factor_of(name, size):
    """What the advantage's baseline makes of the true gradient."""
    return (size - 1) / size if name in ("group mean", "batch mean") else 1.0


UNSCALED = ["none", "leave one out", "group mean", "batch mean"]


@pytest.mark.parametrize("name", UNSCALED)
@pytest.mark.parametrize("size", [2, 3])
def test_off_policy_the_ratio_is_exact_for_one_token(size, name):
    (table, old), reward = apart(ONE), rewards(ONE)
    found = expected_gradient(ONE, table, old, reward, size, ADVANTAGES[name], TOKEN_LOSSES["ratio"])
    truth = expected_reward_gradient(ONE, table, reward) * factor_of(name, size)
    torch.testing.assert_close(found, -truth, **EXACT)


@pytest.mark.parametrize("name", UNSCALED)
@pytest.mark.parametrize("world", [FIXED, VARIED])
def test_off_policy_the_ratio_of_whole_responses_is_exact(world, name):
    def whole(logp, old, advantage, mask):
        return ratio(logp.sum(1, keepdim=True), old.sum(1, keepdim=True), advantage[:, :1])

    (table, old), reward = apart(world), rewards(world)
    found = expected_gradient(world, table, old, reward, 2, ADVANTAGES[name], whole, lambda field, mask: field[:, 0])
    truth = expected_reward_gradient(world, table, reward) * factor_of(name, 2)
    torch.testing.assert_close(found, -truth, **EXACT)


@pytest.mark.parametrize("world", [FIXED, VARIED])
def test_off_policy_the_ratio_of_tokens_is_exact_for_a_change_at_one_step(world):
    """Σ_t J(the policy at step t, the old one at all others) is what it climbs: TRPO's surrogate, and not J."""
    (table, old), reward = apart(world), rewards(world)
    found = expected_gradient(world, table, old, reward, 1, ADVANTAGES["none"], TOKEN_LOSSES["ratio"])
    each = []
    for t in range(world.mask.shape[1]):
        here = torch.zeros(world.prefixes, 1, dtype=torch.bool)
        here[world.prefix[world.mask[:, t], t]] = True
        each.append(expected_reward(world, torch.where(here, table, old), reward))
    torch.testing.assert_close(found, -torch.autograd.grad(torch.stack(each).sum(), table)[0], **EXACT)
    truth = -expected_reward_gradient(world, table, reward)
    assert (found - truth).norm() > 0.1 * truth.norm()


def test_off_policy_without_a_ratio_the_objective_of_the_old_policy_is_ascended():
    """The policy gradient loss takes the old policy's word for it: Σ p_old R ∇log π, here by the logits."""
    (table, old), reward = apart(ONE), rewards(ONE)
    found = expected_gradient(ONE, table, old, reward, 1, ADVANTAGES["none"], TOKEN_LOSSES["policy gradient"])
    pull = probabilities(ONE, old) * reward
    torch.testing.assert_close(found[0], -(pull - table.detach()[0].softmax(0) * pull.sum()), **EXACT)


def let_through(world, table, old, kept):
    """Σ p_old kept(rho, R) R ∇log π over the responses of one token, by the logits."""
    policy, was = probabilities(world, table).tolist(), probabilities(world, old).tolist()
    expected = torch.zeros(world.vocabulary, dtype=torch.float64)
    for y, (p, q, a) in enumerate(zip(policy, was, rewards(world).tolist(), strict=True)):
        towards = -torch.tensor(policy, dtype=torch.float64)
        towards[y] += 1
        expected += q * kept(p / q, a) * a * towards
    return expected[None]


def test_off_policy_clipping_drops_exactly_the_responses_past_their_bound():
    (table, old), reward = apart(ONE), rewards(ONE)
    found = expected_gradient(ONE, table, old, reward, 1, ADVANTAGES["none"], TOKEN_LOSSES["clipped"])

    def kept(rho, a):
        return 0 if (a > 0 and rho > 1.2) or (a < 0 and rho < 0.8) else rho

    torch.testing.assert_close(found, -let_through(ONE, table, old, kept), **EXACT)
    truth = -expected_reward_gradient(ONE, table, reward)
    assert (found - truth).norm() > 0.1 * truth.norm()


def test_off_policy_cispo_caps_weights_and_drops_no_response():
    (table, old), reward = apart(ONE), rewards(ONE)
    found = expected_gradient(ONE, table, old, reward, 1, ADVANTAGES["none"], TOKEN_LOSSES["cispo"])
    kept = let_through(ONE, table, old, lambda rho, a: min(rho, 1.28))
    torch.testing.assert_close(found, -kept, **EXACT)
    truth = -expected_reward_gradient(ONE, table, reward)
    assert (found - truth).norm() > 0.1 * truth.norm()
