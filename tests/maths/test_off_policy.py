"""Off-policy REINFORCE: each loss against a loop, its gradient, and its theory."""

import math

import pytest
import torch
from estimators import EXACT, FIXED, ONE, VARIED, rewards

from grape_rl.maths.advantage import group_relative
from grape_rl.maths.exact import expectation, expected_reward_gradient, logprobs, random_table
from grape_rl.maths.off_policy import (
    nll_regularizer,
    rec_one_side,
    rec_ring,
    rec_two_side,
    squared_log_ratio,
    topr,
    truncated_importance,
)
from grape_rl.maths.surrogate import cispo, clipped, policy_gradient, ratio


def fields(seed=0, rows=36, columns=5):
    """Log-ratios from −2 to 2, so inside, between and beyond all bounds; one advantage a row, of both signs or 0."""
    generator = torch.Generator().manual_seed(seed)
    logp = -3 * torch.rand(rows, columns, generator=generator, dtype=torch.float64)
    behavior_logp = logp + 4 * torch.rand(rows, columns, generator=generator, dtype=torch.float64) - 2
    advantage = torch.randn(rows, 1, generator=generator, dtype=torch.float64).repeat(1, columns)
    advantage[3] = 0
    mask = torch.rand(rows, columns, generator=generator) < 0.7
    mask[0], mask[1] = True, False
    return logp.requires_grad_(), behavior_logp, advantage, mask


def weights(loss):
    """What the policy gradient of each token is multiplied by: w in ∇loss = −w A ∇logp; NaN where A is 0."""
    logp, old, advantage, _ = fields()
    (slope,) = torch.autograd.grad(loss(logp, old, advantage).sum(), logp)
    return (-slope / advantage).flatten().tolist(), list(
        zip((logp - old).detach().exp().flatten().tolist(), advantage.flatten().tolist(), strict=True)
    )


def one_side(rho, a, low, high):
    return rho <= 1 + high if a > 0 else rho >= 1 - low


def two_side(rho, low, high):
    return 1 - low <= rho <= 1 + high


REC = {
    "one side": (rec_one_side, lambda rho, a: one_side(rho, a, 0.2, 0.2), "none"),
    "one side, wide": (
        lambda *f, **more: rec_one_side(*f, 0.6, 2.0, **more), lambda rho, a: one_side(rho, a, 0.6, 2.0), "none",
    ),
    "two side": (rec_two_side, lambda rho, a: two_side(rho, 0.2, 0.2), "token"),
    "two side, uneven": (
        lambda *f, **more: rec_two_side(*f, 0.1, 0.5, **more), lambda rho, a: two_side(rho, 0.1, 0.5), "token",
    ),
    "ring": (
        rec_ring,
        lambda rho, a: two_side(rho, 0.2, 0.2) or (rho <= 0.4 if a > 0 else rho >= 3.0), "none",
    ),
    "ring, narrow": (
        lambda *f, **more: rec_ring(*f, 0.1, 0.3, 0.2, 0.6, **more),
        lambda rho, a: two_side(rho, 0.1, 0.3) or (rho <= 0.8 if a > 0 else rho >= 1.6), "none",
    ),
}  # fmt: skip


@pytest.mark.parametrize("importance", [None, "none", "token"])
@pytest.mark.parametrize("name", REC)
def test_rec_masks_and_weights_tokens_by_their_ratio(name, importance):
    loss, inside, default = REC[name]
    given = {} if importance is None else {"importance": importance}
    found, cases = weights(lambda *f: loss(*f, **given))
    kinds = set()
    for weight, (rho, a) in zip(found, cases, strict=True):
        if a:
            expected = (rho if (importance or default) == "token" else 1.0) * inside(rho, a)
            assert math.isclose(weight, expected, rel_tol=1e-12, abs_tol=1e-12)
            kinds.add((a > 0, rho > 1, inside(rho, a)))
    assert len(kinds) >= 6


@pytest.mark.parametrize("name", REC)
def test_rec_equals_the_policy_gradient_inside_the_mask(name):
    logp, old, advantage, _ = fields()
    loss, inside, _ = REC[name]
    found = loss(logp, old, advantage, importance="none").flatten().tolist()
    for value, x, o, a in zip(found, *(f.flatten().tolist() for f in (logp, old, advantage)), strict=True):
        assert math.isclose(value, -a * x * inside(math.exp(x - o), a), rel_tol=1e-12, abs_tol=1e-12)


def test_a_masked_infinite_ratio_gives_no_nan():
    logp = torch.tensor([[0.0]], dtype=torch.float64, requires_grad=True)
    old, advantage = torch.tensor([[-1e4]], dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    for loss in (rec_one_side, rec_two_side, rec_ring):
        value = loss(logp, old, advantage, importance="token")
        (slope,) = torch.autograd.grad(value.sum(), logp)
        assert value.item() == 0 and slope.item() == 0


def test_one_side_with_weights_has_the_gradient_of_ppo_and_scaled_that_of_grpo():
    logp, old, _, _ = fields()
    reward, group = torch.randn(36, generator=torch.Generator().manual_seed(4)).double(), torch.arange(36) % 3
    for scale in ("none", "group"):
        advantage = group_relative(reward, group, scale)[:, None].expand_as(old)
        for bounds in ((0.2, 0.2), (0.1, 0.5)):
            rec = rec_one_side(logp, old, advantage, *bounds, importance="token").sum()
            grpo = clipped(logp, old, advantage, *bounds).sum()
            torch.testing.assert_close(torch.autograd.grad(rec, logp), torch.autograd.grad(grpo, logp), **EXACT)


@pytest.mark.parametrize("a", [1.0, -1.0])
def test_a_token_on_the_bound_is_not_masked(a):
    """Ratios of ½ and 2, exact in binary as the bounds are; at bounds of 0, what has not moved is."""
    logp = torch.full((1, 3), -1.5, dtype=torch.float64, requires_grad=True)
    rho = torch.tensor([[0.5, 1.0, 2.0]], dtype=torch.float64)
    old, advantage = logp.detach() - rho.log(), torch.full_like(rho, a)
    assert torch.equal((logp - old).exp(), rho)

    def kept(loss, *bounds):
        (slope,) = torch.autograd.grad(loss(logp, old, advantage, *bounds, importance="none").sum(), logp)
        return (slope != 0).long().tolist()[0]

    for loss in (rec_one_side, rec_two_side, rec_ring):
        assert kept(loss, 0.5, 1.0) == [1, 1, 1]
    for loss in (rec_one_side, rec_two_side):
        assert kept(loss, 0.0, 0.0)[1] == 1
    assert kept(rec_two_side, 0.0, 0.0) == [0, 1, 0]
    assert kept(rec_ring, 0.0, 0.0, 0.5, 1.0) == ([1, 1, 0] if a > 0 else [0, 1, 1])


def test_with_infinite_bounds_rec_is_reinforce():
    logp, old, advantage, _ = fields()
    far = (1e9, 1e9)
    for found in (
        rec_one_side(logp, old, advantage, *far),
        rec_two_side(logp, old, advantage, *far, importance="none"),
        rec_ring(logp, old, advantage, *far),
        rec_ring(logp, old, advantage, 0.2, 0.2, -9.0, -9.0),  # the ring is everywhere
    ):
        torch.testing.assert_close(found, policy_gradient(logp, advantage), **EXACT)


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("cap", [0.5, 2.0, math.inf])
def test_truncated_importance_and_topr_against_a_loop(level, cap):
    logp, old, advantage, mask = fields()
    capped = truncated_importance(logp, old, advantage, mask, cap, level)
    tapered = topr(logp, old, advantage, mask, level)
    slopes = [torch.autograd.grad(loss.sum(), logp)[0] for loss in (capped, tapered)]
    seen = set()
    for i in range(len(mask)):
        own = [t for t in range(mask.shape[1]) if mask[i, t]]
        whole = math.exp(math.fsum((logp[i, t] - old[i, t]).item() for t in own))
        for t in range(mask.shape[1]):
            rho = whole if level == "sequence" else math.exp((logp[i, t] - old[i, t]).item())
            a, x = advantage[i, t].item(), logp[i, t].item()
            taper = 1.0 if a > 0 else min(rho, 1.0)
            for loss, slope, weight in ((capped, slopes[0], min(rho, cap)), (tapered, slopes[1], taper)):
                assert math.isclose(loss[i, t].item(), -weight * a * x, rel_tol=1e-12, abs_tol=1e-15)
                assert math.isclose(slope[i, t].item(), -weight * a, rel_tol=1e-12, abs_tol=1e-15)
            seen.add((a > 0, rho > 1))
    assert len(seen) == 4


def test_the_ratio_of_a_response_reads_only_the_mask():
    logp, old, advantage, mask = fields()
    for loss in (topr, truncated_importance):
        expected = loss(logp, old, advantage, mask, level="sequence")[mask]
        spoiled = old.masked_fill(~mask, torch.nan)
        assert torch.equal(loss(logp, spoiled, advantage, mask, level="sequence")[mask], expected)


def test_truncated_importance_per_token_is_cispo_with_its_bound():
    logp, old, advantage, mask = fields()
    expected = cispo(logp, old, advantage, clip_low=1.0, clip_high=0.7)
    torch.testing.assert_close(truncated_importance(logp, old, advantage, mask, cap=1.7), expected, **EXACT)
    losses = (expected, truncated_importance(logp, old, advantage, mask, cap=1.7))
    both = [torch.autograd.grad(loss.sum(), logp)[0] for loss in losses]
    torch.testing.assert_close(*both, **EXACT)


def test_the_defaults_are_the_documented_ones():
    logp, old, advantage, mask = fields()
    assert torch.equal(topr(logp, old, advantage, mask), topr(logp, old, advantage, mask, "sequence"))
    default = truncated_importance(logp, old, advantage, mask)
    assert torch.equal(default, truncated_importance(logp, old, advantage, mask, 2.0, "token"))


def test_gradients_against_differences():
    """Of the regularizers; the others' are held against their weights above, which are constants by decree."""
    logp, old, _, _ = fields(rows=4)
    assert torch.autograd.gradcheck(squared_log_ratio, (logp, old.requires_grad_()))
    assert torch.autograd.gradcheck(nll_regularizer, (logp,))


# What the theory says. On log-probs summed over the response, one column each.


def summed(world, table):
    return logprobs(world, table).sum(1, keepdim=True)


@pytest.mark.parametrize("beta", [0.1, -0.4])
def test_asymre_is_reinforce_with_a_lower_baseline(beta):
    """In value and gradient, token by token: −(r − (mean − beta)) logp."""
    logp, _, _, _ = fields()
    reward, group = torch.randn(36, generator=torch.Generator().manual_seed(1)).double(), torch.arange(36) % 4
    centered = group_relative(reward, group, "none")[:, None]
    found = policy_gradient(logp, centered.expand_as(logp)) + beta * nll_regularizer(logp)
    lowered = []
    for i, r in enumerate(reward.tolist()):
        mine = [s for s, g in zip(reward.tolist(), group.tolist(), strict=True) if g == group[i]]
        lowered.append(r - (sum(mine) / len(mine) - beta))
    expected = -torch.tensor(lowered, dtype=torch.float64)[:, None] * logp
    torch.testing.assert_close(found, expected, **EXACT)
    both = [torch.autograd.grad(f.sum(), logp, retain_graph=True)[0] for f in (found, expected)]
    torch.testing.assert_close(*both, **EXACT)


@pytest.mark.parametrize("tau", [0.2, 1.5])
@pytest.mark.parametrize("world", [FIXED, VARIED])
def test_opmds_squared_residual_is_reinforce_with_the_regularizer_at_half_tau(world, tau):
    """∇ (1/2τK) Σ_i (r_i − mean − τ log π/π_old)² for a group of all the world's responses, however far π has gone."""
    table, old = random_table(world, 0), random_table(world, 5).detach()
    logp, behavior_logp, reward = summed(world, table), summed(world, old), rewards(world)
    residual = reward - reward.mean() - tau * (logp - behavior_logp)[:, 0]
    squared = residual.square().sum() / (2 * tau * len(reward))
    centered = group_relative(reward, torch.zeros(len(reward), dtype=torch.int64), "none")[:, None]
    opmd = (policy_gradient(logp, centered) + tau / 2 * squared_log_ratio(logp, behavior_logp)).mean()
    found, expected = (torch.autograd.grad(f, table, retain_graph=True)[0] for f in (opmd, squared))
    torch.testing.assert_close(found, expected, **EXACT)


@pytest.mark.parametrize("tau", [0.3, 2.0])
def test_the_pairwise_consistency_loss_starts_as_reinforce(tau):
    """Of K⁻² Σ_{i<j} (a_i − a_j)², a_i = r_i − τ log π/π_old, the gradient over 2τ at π_old is REINFORCE's."""
    table = random_table(VARIED, 0)
    logp, reward = summed(VARIED, table), rewards(VARIED)
    a = reward - tau * (logp - logp.detach())[:, 0]
    pairs = [(a[i] - a[j]).square() for i in range(len(a)) for j in range(i)]
    surrogate = torch.stack(pairs).sum() / len(a) ** 2 / (2 * tau)
    centered = group_relative(reward, torch.zeros(len(reward), dtype=torch.int64), "none")[:, None]
    found, expected = (
        torch.autograd.grad(f, table, retain_graph=True)[0] for f in (policy_gradient(logp, centered).mean(), surrogate)
    )
    torch.testing.assert_close(found, expected, **EXACT)


def test_pairwise_consistency_holds_for_the_tilted_policy():
    """The residuals of OPMD and the pairs' surrogate are 0 at π ∝ π_old exp(r/τ), and only there."""
    tau, old, reward = 0.7, random_table(ONE, 3).detach(), rewards(ONE)
    table = (old + reward[None] / tau).requires_grad_()  # one token: logits plus r/τ
    a = reward - tau * (logprobs(ONE, table) - logprobs(ONE, old))[:, 0]
    torch.testing.assert_close(a, a[0].expand_as(a), **EXACT)
    away = reward - tau * (logprobs(ONE, random_table(ONE, 8)) - logprobs(ONE, old))[:, 0]
    assert away.std() > 0.1


LOSSES = {
    "one side": lambda logp, old, a, mask: rec_one_side(logp, old, a),
    "two side": lambda logp, old, a, mask: rec_two_side(logp, old, a),
    "ring": lambda logp, old, a, mask: rec_ring(logp, old, a),
    "topr": topr,
    "truncated": truncated_importance,
    "truncated sequence": lambda logp, old, a, mask: truncated_importance(logp, old, a, mask, level="sequence"),
    "opmd": lambda logp, old, a, mask: policy_gradient(logp, a) + 0.3 * squared_log_ratio(logp, old),
}


def expected_slope(world, table, old, loss):
    """The expected gradient of the summed loss, over single responses that ``old`` samples."""
    logp, behavior_logp, reward = logprobs(world, table), logprobs(world, old).detach(), rewards(world)

    def estimator(index):
        a = reward[index][:, None].expand_as(world.mask[index])
        return (loss(logp[index], behavior_logp[index], a, world.mask[index]) * world.mask[index]).sum()

    return torch.autograd.grad(expectation(world, old, 1, estimator), table)[0]


@pytest.mark.parametrize("world", [ONE, FIXED, VARIED])
@pytest.mark.parametrize("name", LOSSES)
def test_at_the_behavior_policy_each_loss_has_the_exact_gradient(name, world):
    table = random_table(world, 0)
    found = expected_slope(world, table, table.detach(), LOSSES[name])
    torch.testing.assert_close(found, -expected_reward_gradient(world, table, rewards(world)), **EXACT)


@pytest.mark.parametrize("world", [ONE, FIXED, VARIED])
def test_off_policy_the_weight_of_a_response_is_exact_below_the_cap(world):
    table, old = random_table(world, 0), random_table(world, 9).detach()
    truth = -expected_reward_gradient(world, table, rewards(world))
    free = expected_slope(world, table, old, lambda *f: truncated_importance(*f, cap=math.inf, level="sequence"))
    torch.testing.assert_close(free, truth, **EXACT)
    cut = expected_slope(world, table, old, lambda *f: truncated_importance(*f, cap=1.0, level="sequence"))
    assert (cut - truth).norm() > 0.1 * truth.norm()


@pytest.mark.parametrize("world", [ONE, FIXED, VARIED])
def test_off_policy_topr_is_exact_on_bad_responses_that_became_less_likely(world):
    """All rewards negative, and a policy that has made every response but one less likely: those carry their ratio."""
    table, old = random_table(world, 0), random_table(world, 9).detach()
    logp, behavior_logp = summed(world, table), summed(world, old)
    rho, p_old = (logp - behavior_logp).exp()[:, 0].detach(), behavior_logp.exp()[:, 0]
    reward = -torch.where(rho <= 1, 1 + rewards(world).abs(), 0)
    found = 0
    for y in range(len(reward)):
        a = reward[y].expand(1, world.mask.shape[1])
        own = world.mask[y : y + 1]
        lp, old_lp = logprobs(world, table)[y : y + 1], logprobs(world, old)[y : y + 1]
        found = found + p_old[y] * (topr(lp, old_lp, a, own) * own).sum()
    (slope,) = torch.autograd.grad(found, table)
    torch.testing.assert_close(slope, -expected_reward_gradient(world, table, reward), **EXACT)
    assert 0 < (reward < 0).sum() < len(reward)
    plain = ratio(logp, behavior_logp, reward[:, None])[:, 0] @ p_old
    torch.testing.assert_close(slope, torch.autograd.grad(plain, table)[0], **EXACT)


def test_opmds_regularizer_vanishes_at_the_behavior_policy_and_points_to_it():
    table = random_table(VARIED, 0)
    logp = logprobs(VARIED, table)
    assert not torch.autograd.grad(squared_log_ratio(logp, logp.detach()).sum(), table)[0].any()
    logp, old, _, _ = fields()
    (slope,) = torch.autograd.grad(squared_log_ratio(logp, old).sum(), logp)
    assert torch.equal((-slope).sign(), (old - logp).sign())


def test_asymres_beta_changes_nothing_on_policy():
    """On policy the pull of nll_regularizer has mean zero, so any β has the exact gradient; off policy it has not."""
    table = random_table(VARIED, 0)
    base = expected_slope(VARIED, table, table.detach(), lambda logp, old, a, mask: policy_gradient(logp, a))

    def both(logp, old, a, mask):
        return policy_gradient(logp, a) + 0.7 * nll_regularizer(logp)

    torch.testing.assert_close(expected_slope(VARIED, table, table.detach(), both), base, **EXACT)
    old = random_table(VARIED, 9).detach()
    plain = expected_slope(VARIED, table, old, lambda logp, old, a, mask: policy_gradient(logp, a))
    assert (expected_slope(VARIED, table, old, both) - plain).norm() > 0.1
