"""Claims of the derivations about origins and optima of losses, by enumeration and as identities.

A loss on pairs is "at rest" where its expected gradient is 0, over pairs that the reference draws and labels by Bradley
and Terry (``chances``).
"""

import math

import pytest
import torch
from estimators import EXACT

from grape_rl.maths.advantage import group_relative, leave_one_out
from grape_rl.maths.exact import (
    enumerated,
    expectation,
    expected_reward,
    logprobs,
    probabilities,
    random_table,
    response_kl,
    table_of,
)
from grape_rl.maths.preference import (
    aot,
    apo_down,
    bco,
    cal_dpo,
    cdpo,
    discopop,
    dpo,
    exo,
    f_dpo,
    ipo,
    nca,
    odpo,
    orpo,
    r_dpo,
    robust_dpo,
    rpo,
    simpo,
    sppo,
)
from grape_rl.maths.rejection import best_of_group
from grape_rl.maths.reweighting import red_weight
from grape_rl.maths.surrogate import policy_gradient

WORLD = enumerated(3, 2, end=2)
REWARD = (torch.arange(len(WORLD.tokens), dtype=torch.float64) * 1.7).cos()
LENGTH = WORLD.mask.sum(1).double()
REFERENCE = random_table(WORLD, 1).detach()
AT_REST = {"rtol": 0.0, "atol": 1e-13}


def chances(reward):
    """Of every two responses as a pair, the first of them chosen: how often it is drawn, and labeled so."""
    p = probabilities(WORLD, REFERENCE)
    return 2 * p[:, None] * p * (reward[:, None] - reward).sigmoid()


def winning(reward):
    """The chance that each response wins against one of the reference."""
    return (reward[:, None] - reward).sigmoid() @ probabilities(WORLD, REFERENCE)


def slope(loss, probability, reward=REWARD):
    """The expected gradient of a loss on pairs, at the policy that gives the responses these probabilities."""
    table = table_of(WORLD, probability / probability.sum()).requires_grad_()
    policy, frozen = logprobs(WORLD, table).sum(1), logprobs(WORLD, REFERENCE).sum(1)
    n = len(reward)
    w, l = torch.arange(n).repeat_interleave(n), torch.arange(n).repeat(n)  # noqa: E741
    values = loss(policy[w], policy[l], frozen[w], frozen[l], w, l)
    return torch.autograd.grad(chances(reward).flatten() @ values, table)[0]


def tilted(exponent):
    """π_ref e^exponent, over its sum."""
    weight = probabilities(WORLD, REFERENCE) * exponent.exp()
    return weight / weight.sum()


def rests(loss, probability):
    torch.testing.assert_close(slope(loss, probability), torch.zeros_like(REFERENCE), **AT_REST)
    away = slope(loss, tilted(2 * REWARD.flip(0)))
    assert away.abs().max() > 1e-3, "and elsewhere it does not"


# Where losses on pairs come to rest


@pytest.mark.parametrize("weight", [0.3, -0.2])
def test_r_dpo_has_the_optimum_of_the_reward_minus_a_length_penalty(weight):
    """max E[R − α|y|] − β KL: so the sign of the length's term is +."""
    beta = 0.4
    end = tilted((REWARD - weight * LENGTH) / beta)
    rests(lambda *four: r_dpo(*four[:4], LENGTH[four[4]], LENGTH[four[5]], beta, weight), end)
    table = table_of(WORLD, end).requires_grad_()
    goal = expected_reward(WORLD, table, REWARD - weight * LENGTH) - beta * response_kl(WORLD, table, REFERENCE)
    torch.testing.assert_close(torch.autograd.grad(goal, table)[0], torch.zeros_like(table), **AT_REST)
    other = slope(lambda *four: r_dpo(*four[:4], LENGTH[four[4]], LENGTH[four[5]], beta, -weight), end)
    assert other.abs().max() > 1e-3


def test_ipo_has_the_optimum_of_the_win_probability():
    """h = w/β + a number of the prompt, with sums in the place of means over tokens."""
    one = torch.ones(len(REWARD) ** 2, dtype=torch.float64)
    rests(lambda *four: ipo(*four[:4], one, one, 0.7), tilted(winning(REWARD) / 0.7))


def test_nca_has_its_optimum_at_the_distribution_of_the_chosen_responses():
    """At β = 1; those are π_ref times twice the chance to win."""
    winners = 2 * winning(REWARD) * probabilities(WORLD, REFERENCE)
    torch.testing.assert_close(winners.sum(), torch.tensor(1.0, dtype=torch.float64), **EXACT)
    torch.testing.assert_close(winners, chances(REWARD).sum(1), **EXACT)
    rests(lambda *four: nca(*four[:4], 1.0), winners)


def points(loss, gain, beta):
    """∂/∂h of the expected loss of each response, every h(y) a number of its own."""
    h = gain.clone().requires_grad_()
    n, zero = len(h), torch.zeros(len(h) ** 2, dtype=torch.float64)
    values = loss(h.repeat_interleave(n), h.repeat(n), zero, zero, beta)
    return torch.autograd.grad(chances(REWARD).flatten() @ values, h)[0]


@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_pointwise_losses_have_a_target_for_each_response(beta):
    """With every h free: NCA's is log(2w)/β, BCO's the log-odds of w over β, SPPO's (w − ½)/β."""
    w = winning(REWARD)
    places = {nca: (2 * w).log() / beta, bco: (w / (1 - w)).log() / beta, sppo: (w - 0.5) / beta}
    for loss, place in places.items():
        torch.testing.assert_close(points(loss, place, beta), torch.zeros_like(w), **AT_REST)
        assert points(loss, place + 0.3, beta).min() > 1e-4, "a minimum"


DIVERGENCES = {
    "reverse_kl": (lambda u: u * u.log(), lambda u: u.log() + 1),
    "forward_kl": (lambda u: -u.log(), lambda u: -1 / u),
    "js": (lambda u: u * u.log() - (u + 1) * ((u + 1) / 2).log(), lambda u: (2 * u / (1 + u)).log()),
    "alpha": (lambda u: (u**0.5 - 0.5 * u - 0.5) / -0.25, lambda u: 2 - 2 * u**-0.5),
}
"""f and its derivative; for alpha = ½, f is ∫ (1 − u^(α−1))/(1 − α)."""


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_f_dpo_has_the_optimum_under_its_divergence(divergence):
    """Where R = β f'(π/π_ref) + a number, E[R] − β E_ref[f(π/π_ref)] has no gradient, nor has the loss."""
    f, derivative = DIVERGENCES[divergence]
    u = torch.linspace(0.3, 3.0, 9, dtype=torch.float64).requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(f(u).sum(), u)[0], derivative(u), **EXACT)

    beta, end = 0.6, probabilities(WORLD, random_table(WORLD, 4)).detach()
    reference = probabilities(WORLD, REFERENCE)
    reward = beta * derivative(end / reference)
    table = table_of(WORLD, end).requires_grad_()
    apart = (reference * f(probabilities(WORLD, table) / reference)).sum()
    goal = expected_reward(WORLD, table, reward) - beta * apart
    torch.testing.assert_close(torch.autograd.grad(goal, table)[0], torch.zeros_like(table), **AT_REST)
    found = slope(lambda *four: f_dpo(*four[:4], beta, divergence, 0.5), end, reward)
    torch.testing.assert_close(found, torch.zeros_like(table), **AT_REST)


# What the losses are, margin by margin


def margins():
    return torch.linspace(-8, 9, 35, dtype=torch.float64).requires_grad_()


def by_margin(loss, *options):
    """The slope of a loss by z = β Δ."""
    z = margins()
    zero = torch.zeros_like(z)
    return torch.autograd.grad(loss(z, zero, zero, zero, 1.0, *options).sum(), z)[0]


def test_slopes_by_the_margin():
    z = margins().detach()
    q, e = z.sigmoid(), 0.2
    same = lambda a, b: torch.testing.assert_close(a, b, **EXACT)  # noqa: E731
    same(by_margin(dpo), q - 1)
    same(by_margin(cdpo, e), q - (1 - e))
    same(by_margin(exo, e), q * (1 - q) * (z - math.log((1 - e) / e)))
    found = by_margin(robust_dpo, e)  # between two numbers below 0: it never ends
    assert -(1 - e) / (1 - 2 * e) < found.min() < found.max() < -e / (1 - 2 * e)
    assert robust_dpo(z[-1:], 0 * z[-1:], 0 * z[-1:], 0 * z[-1:], 1.0, e).item() < 0


def test_discopop_is_not_monotone_where_the_derivation_claims():
    z = torch.tensor([-0.13, -0.119, -0.11, 0.06, 0.072, 0.08], dtype=torch.float64)
    low, bottom, on, up, top, down = discopop(z, 0 * z, 0 * z, 0 * z, 1.0, 0.05).tolist()
    assert low > bottom < on < up < top > down


def test_bco_bounds_dpo_from_above():
    draw = 5 * torch.randn(4, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert (bco(*draw, 0.7) > dpo(*draw, 0.7)).all()


def test_cal_dpo_has_its_optimum_just_past_its_targets():
    zero, beta = torch.zeros(1, dtype=torch.float64), 0.5
    h = 1.0
    for _ in range(100):  # h_w = 1/(2β) + σ(−2 h_w)
        h = 1 / (2 * beta) + 1 / (1 + math.exp(2 * h))
    w, l = (torch.tensor([v], dtype=torch.float64, requires_grad=True) for v in (h, -h))  # noqa: E741
    both = torch.autograd.grad(cal_dpo(w, l, zero, zero, beta).sum(), (w, l))
    torch.testing.assert_close(torch.stack(both), torch.zeros(2, 1, dtype=torch.float64), **AT_REST)


def test_apo_down_lowers_the_rejected_response_first_and_then_the_chosen_one():
    zero = torch.zeros(1, dtype=torch.float64)
    for rejected, moved in ((0.0, False), (-3.0, True)):
        w, l = (torch.tensor([v], dtype=torch.float64, requires_grad=True) for v in (0.0, rejected))  # noqa: E741
        up, down = torch.autograd.grad(apo_down(w, l, zero, zero, 0.5).sum(), (w, l))
        assert (up.item() > 1e-3) == moved and down.item() > 0


def test_the_odds_are_steeper_than_the_likelihood():
    mean = torch.tensor([-0.1, -1.0, -4.0], dtype=torch.float64, requires_grad=True)
    other, one = torch.full_like(mean, -1.5).detach(), torch.ones_like(mean)
    (found,) = torch.autograd.grad(orpo(mean, other, one, one, 1.0).sum(), mean)
    gap = torch.special.logit(mean.exp()) - torch.special.logit(other.exp())
    torch.testing.assert_close(found, -1 - (-gap).sigmoid() / (1 - mean.exp()), **EXACT)


def test_odpo_is_the_probability_that_a_noisy_difference_exceeds_its_offset():
    """With Gumbel noise on each of the two, in an integral over one of them."""
    chosen, gap, alpha = 0.9, 1.7, 0.8
    x = torch.linspace(-6, 40, 200_001, dtype=torch.float64)  # beyond, the density is under 1e-17
    density = (-x - (-x).exp()).exp()
    below = (-(-(x + chosen - alpha * math.log(gap))).exp()).exp()  # the rejected one's noise is this low
    one = torch.ones(1, dtype=torch.float64)
    found = odpo(chosen * one, 0 * one, 0 * one, 0 * one, gap * one, 0 * one, 1.0, alpha)
    assert (-found).exp().item() == pytest.approx(float(torch.trapezoid(density * below, x)), abs=1e-9)


def test_aot_is_dpo_where_the_orders_agree():
    draw = torch.randn(3, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ratio = draw[0].sort().values
    policy, reference = ratio + draw[1], 0.3 * ratio + draw[2]
    torch.testing.assert_close(
        aot(policy, draw[1], reference, draw[2], 0.4), dpo(policy, draw[1], reference, draw[2], 0.4), **EXACT
    )


def test_simpo_is_rpo_in_the_limit_of_an_infinite_gap():
    draw = torch.randn(2, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    length, zero, beta, gamma = torch.arange(1.0, 10.0).double(), torch.zeros(9).double(), 1.3, 0.6
    found = rpo(draw[0] / length - gamma / beta, draw[1] / length, zero, zero, zero + 40, zero, beta)
    torch.testing.assert_close(found, simpo(*draw, length, length, beta, gamma), **EXACT)


# Responses


@pytest.mark.parametrize("size", [2, 3, 5])
def test_rpo_s_squares_of_many_responses_are_leave_one_out_reinforce(size):
    """∇ ½ Σ_k [β h_k − η r_k − mean of the others]² = −β K/(K−1) Σ_k A_k ∇log π, A leave-one-out of η r − β h."""
    beta, eta = 0.4, 0.7
    index = torch.arange(size)
    table = random_table(WORLD, 0)
    logp, frozen = logprobs(WORLD, table).sum(1)[index], logprobs(WORLD, REFERENCE).sum(1)[index]
    h = logp - frozen
    x, group = beta * h - eta * REWARD[index], torch.zeros(size, dtype=torch.int64)
    centered = x - (x.sum() - x) / (size - 1)
    advantage = leave_one_out(-x.detach(), group)
    policy_loss = policy_gradient(logp[:, None], advantage[:, None]).sum()
    found, expected = (
        torch.autograd.grad(loss, table, retain_graph=True)[0]
        for loss in (centered.square().sum() / 2, beta * size / (size - 1) * policy_loss)
    )
    torch.testing.assert_close(found, expected, **EXACT)
    if size == 2:
        sides = (*logp[:, None], *frozen[:, None])
        pair = rpo(*sides, REWARD[:1], REWARD[1:2], beta, eta, "squared").sum()
        torch.testing.assert_close(torch.autograd.grad(pair, table)[0], found, **EXACT)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("reward", [REWARD, (REWARD > 0).double()], ids=["distinct", "tied"])
def test_the_kl_of_best_of_n_is_within_its_bound(reward, size):
    """KL(p_best‖p) ≤ log N − (N−1)/N, whatever the reward."""
    table = random_table(WORLD, 0).detach()

    def counts(index):
        kept = index[~best_of_group(reward[index], torch.zeros_like(index)).isnan()]
        return torch.zeros(len(reward), dtype=torch.float64).index_add(0, kept, torch.ones(1).double())

    best = expectation(WORLD, table, size, counts)
    kl = response_kl(WORLD, table_of(WORLD, best), table).item()
    assert 0.05 < kl < math.log(size) - (size - 1) / size


def test_off_policy_imitation_pulls_to_the_behavior_policy():
    """E_old[−log π] is KL(π_old‖π) plus what does not depend on π: AsymRE's β is the weight of that KL."""
    table, old = random_table(WORLD, 0), random_table(WORLD, 9).detach()
    found = expectation(WORLD, old, 1, lambda index: -logprobs(WORLD, table)[index].sum())
    one, other = (torch.autograd.grad(f, table)[0] for f in (found, response_kl(WORLD, old, table)))
    torch.testing.assert_close(one, other, **EXACT)


@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_red_weight_imitates_on_average_and_bounds_negative_weights(temperature):
    reward = 2 * torch.randn(60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    group = torch.arange(60) % 10
    advantage = red_weight(reward, group, temperature)
    assert all(advantage[group == g].sum() > 0 for g in range(10))
    assert -temperature / math.e <= advantage.min() < 0
    equal = red_weight(torch.full_like(reward, 0.1), group, temperature)
    assert not equal.any()


def test_grpos_scaling_makes_the_objective_the_arcsine_of_the_success_probability():
    """For rewards of 0 and 1 and a large group, A tends to (R − p)/√(p(1−p)), and the gradient to ∇ 2 arcsin √p."""
    for p in (0.1, 0.5, 0.8):
        ones = round(2000 * p)
        reward = torch.tensor([1.0] * ones + [0.0] * (2000 - ones), dtype=torch.float64)
        advantage = group_relative(reward, torch.zeros(2000, dtype=torch.int64))
        at = torch.tensor(p, dtype=torch.float64, requires_grad=True)
        (arc,) = torch.autograd.grad(2 * at.sqrt().arcsin(), at)
        gain = (advantage[0] - advantage[-1]).item()  # of a 1 over a 0
        assert gain == pytest.approx(arc.item(), rel=1e-3)  # Bessel's correction: 1/(2 · 2000)
