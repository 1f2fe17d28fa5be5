"""Preference losses with stop-gradients: the quantities that gradients flow through, and the values of the constants.

test_preference.py checks the values against a loop. All tests are in float64.
"""

import math

import pytest
import torch

from grape_rl.maths.preference import aot_unpaired, beta_dpo, dpo, policy_weight, tdpo1, tdpo2, wpo

EXACT = {"rtol": 1e-12, "atol": 1e-14}


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


W, L = numbers(-3.0, -1.5, -6.0), numbers(-2.0, -4.0, -1.0)
RW, RL = numbers(-2.5, -2.0, -3.0), numbers(-2.2, -3.0, -2.0)
KW, KL = numbers(0.3, 0.1, 0.9), numbers(0.2, 0.7, 0.4)
SIDES = (W, L, RW, RL)


def slopes(loss, *by):
    grads = torch.autograd.grad(loss.sum(), by, allow_unused=True)
    return [None if g is None else g.tolist() for g in grads]


def test_token_level_dpo_without_divergence_is_dpo():
    zero = torch.zeros_like(KW)
    torch.testing.assert_close(tdpo1(*SIDES, zero, zero, 0.4), dpo(*SIDES, 0.4), **EXACT)
    torch.testing.assert_close(tdpo2(*SIDES, KW, KL, 0.4, 0.0), dpo(*SIDES, 0.4), **EXACT)
    torch.testing.assert_close(tdpo2(*SIDES, KW, KL, 0.4, 1.0), tdpo1(*SIDES, KW, KL, 0.4), **EXACT)


def test_gradients_flow_through_both_kls_in_tdpo1_and_through_the_rejected_kl_in_tdpo2():
    assert torch.autograd.gradcheck(lambda *k: tdpo1(*SIDES, *k, 0.4), (KW, KL))
    up, down = slopes(tdpo1(*SIDES, KW, KL, 0.4), KW, KL)
    assert all(a == -b < 0 for a, b in zip(up, down, strict=True)), "the chosen's KL may grow, the rejected's may not"
    assert torch.autograd.gradcheck(lambda k: tdpo2(*SIDES, KW, k, 0.4, 0.8), (KL,))
    held, down = slopes(tdpo2(*SIDES, KW, KL, 0.4, 0.8), KW, KL)
    assert held is None and all(slope > 0 for slope in down)


def test_the_weight_of_a_pair_is_a_constant():
    length = torch.tensor([2.0, 3.0, 4.0], dtype=torch.float64)
    collisions = numbers(-3, -4, -9), numbers(-2.5, -5, -4)
    for limit in (1.0, 100.0):
        loss = wpo(*SIDES, *collisions, length, length, 0.4, limit)
        expected = []
        for i in range(3):
            logps = W[i].item() - collisions[0][i].item(), L[i].item() - collisions[1][i].item()
            expected.append(min(limit, math.exp(sum(logps) / length[i].item())))
        plain = dpo(*SIDES, 0.4)
        torch.testing.assert_close((loss / plain).tolist(), expected, **EXACT)
        found, unweighted = slopes(loss, W, L, *collisions), slopes(plain, W, L)
        for ours, theirs in zip(found, unweighted, strict=False):
            torch.testing.assert_close(ours, [w * g for w, g in zip(expected, theirs, strict=True)], **EXACT)
        assert found[2:] == [None, None]
        assert len({round(w, 9) for w in expected}) == (1 if limit == 1 else 3)


def test_a_uniform_policy_gives_every_response_the_weight_1():
    """log Σ_v (1/V)² = −log V, which is each token's own log-probability."""
    length = torch.tensor([1.0, 7.0], dtype=torch.float64)
    logp = -length * math.log(50)
    assert policy_weight(logp, logp, length).tolist() == [1.0, 1.0]
    likely, rare = policy_weight(torch.tensor([-0.1, -9.0]), torch.tensor([-0.5, -0.5]), torch.ones(2)).tolist()
    assert rare < 0.001 < 1 < likely


def test_beta_rises_with_the_implied_reward_relative_to_the_batch_mean():
    margins = [((W - RW)[i] - (L - RL)[i]).item() for i in range(3)]
    mean = sum(margins) / 3
    betas = [0.4 * max(0.0, 1 + 0.9 * 0.4 * (m - mean)) for m in margins]
    assert betas.count(0.0) == 1, "one pair's beta would be below 0"
    loss = beta_dpo(*SIDES, 0.4, 0.9)
    torch.testing.assert_close(
        loss.tolist(), [math.log1p(math.exp(-b * m)) for b, m in zip(betas, margins, strict=True)]
    )
    (found,) = slopes(loss, W)
    expected = [-b / (1 + math.exp(b * m)) for b, m in zip(betas, margins, strict=True)]
    torch.testing.assert_close(found, expected, **EXACT)
    torch.testing.assert_close(beta_dpo(*SIDES, 0.4, 0.0), dpo(*SIDES, 0.4), **EXACT)
    torch.testing.assert_close(beta_dpo(*(x[:1] for x in SIDES), 0.4), dpo(*(x[:1] for x in SIDES), 0.4), **EXACT)


def test_aot_unpaired_sorts_each_side_independently():
    good, bad = sorted((W - RW).tolist()), sorted((L - RL).tolist())
    expected = [math.log1p(math.exp(-0.4 * (g - b))) for g, b in zip(good, bad, strict=True)]
    found = aot_unpaired(*SIDES, 0.4)
    torch.testing.assert_close(found.tolist(), expected, **EXACT)
    other = torch.tensor([2, 0, 1])  # which rejected response stood beside which chosen one does not matter
    torch.testing.assert_close(aot_unpaired(W, L[other], RW, RL[other], 0.4), found, rtol=0, atol=0)
    assert found.sum().item() != pytest.approx(dpo(*SIDES, 0.4).sum().item(), rel=1e-3)
