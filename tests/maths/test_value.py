"""Value loss, whitening and explained variance against loops; gradients against differences."""

import itertools
import math
import random
import statistics

import pytest
import torch

from grape_rl.maths.advantage import gae
from grape_rl.maths.value import explained_variance, value_loss, whitened


def ragged(seed):
    generator = torch.Generator().manual_seed(seed)
    fields = [torch.randn(4, 6, generator=generator, dtype=torch.float64) for _ in range(3)]
    mask = torch.rand(4, 6, generator=generator) < 0.6
    mask[0, 0] = mask[0, 1] = True
    return *fields, mask


@pytest.mark.parametrize("clip", [0.0, 0.2, 1.0, 100.0])
def test_the_value_loss_is_half_the_larger_square(clip):
    value, old, target, _ = ragged(1)
    found = value_loss(value, old, target, clip)
    for i, t in itertools.product(range(4), range(6)):
        v, o, g = (field[i, t].item() for field in (value, old, target))
        near = o + max(-clip, min(clip, v - o))
        assert found[i, t].item() == pytest.approx(max((v - g) ** 2, (near - g) ** 2) / 2, rel=1e-12, abs=1e-15)


def test_the_gradient_of_the_value_loss_vanishes_past_the_clip():
    value, old, target, _ = ragged(2)
    value.requires_grad_()
    assert torch.autograd.gradcheck(lambda v: value_loss(v, old, target, 0.3), value)
    (slope,) = torch.autograd.grad(value_loss(value, old, target, 0.3).sum(), value)
    kinds = set()
    for i, t in itertools.product(range(4), range(6)):
        v, o, g = (field[i, t].item() for field in (value, old, target))
        # It has gone over the bound, and on the target's side of it: there is no going on, though not at the target.
        done = (v - o > 0.3 and g > v) or (o - v > 0.3 and g < v)
        past = abs(v - o) > 0.3 and min(abs(o + 0.3 - g), abs(o - 0.3 - g)) > abs(v - g) and not done
        kinds.add(done or past)
        if done:
            assert slope[i, t] == 0
        elif not past:
            assert slope[i, t].item() == pytest.approx(v - g, rel=1e-12)
    assert kinds == {True, False}


def test_a_wide_clip_is_the_plain_square():
    value, old, target, _ = ragged(3)
    torch.testing.assert_close(value_loss(value, old, target, 1e6), (value - target) ** 2 / 2, rtol=0, atol=0)


def test_whitened_over_all_tokens_of_the_batch():
    advantage, _, _, mask = ragged(4)
    found = whitened(advantage * 7 + 3, mask)
    known = [(7 * advantage[i, t] + 3).item() for i, t in mask.nonzero().tolist()]
    mean, spread = statistics.fmean(known), statistics.stdev(known)
    for i, t in itertools.product(range(4), range(6)):
        expected = ((7 * advantage[i, t].item() + 3) - mean) / (spread + 1e-6) if mask[i, t] else 0.0
        assert found[i, t].item() == pytest.approx(expected, rel=1e-10, abs=1e-12)
    assert torch.equal(whitened(advantage, mask, "none"), advantage)


def test_masked_out_tokens_do_not_matter_and_equal_advantages_become_zero():
    advantage, _, _, mask = ragged(5)
    torch.testing.assert_close(whitened(advantage.masked_fill(~mask, 1e9), mask), whitened(advantage, mask))
    equal = torch.full((3, 3), 0.1)
    assert not whitened(equal, torch.ones(3, 3, dtype=torch.bool)).any()
    assert not whitened(equal, torch.zeros(3, 3, dtype=torch.bool)).any()
    one = torch.eye(3, dtype=torch.bool) & (torch.arange(3) == 0)
    assert not whitened(equal, one).any(), "of one token there is no spread"


def test_explained_variance_by_hand_and_at_its_limits():
    value, target, _, mask = ragged(6)
    pairs = [(value[i, t].item(), target[i, t].item()) for i, t in mask.nonzero().tolist()]
    left = statistics.pvariance([g - v for v, g in pairs])
    expected = 1 - left / statistics.pvariance([g for _, g in pairs])
    assert explained_variance(value, target, mask) == pytest.approx(expected, rel=1e-10)
    assert explained_variance(target - 5, target, mask) == pytest.approx(1.0)
    assert explained_variance(torch.full_like(target, 2.0), target, mask) == pytest.approx(0.0)
    assert explained_variance(-target, target, mask) == pytest.approx(-3.0)
    for nothing in (torch.zeros_like(mask), mask & (mask.long().flatten().cumsum(0).reshape(4, 6) == 1)):
        assert math.isnan(explained_variance(value, target, nothing))


@pytest.mark.parametrize(("gamma", "lam", "told"), [(1.5, 0.9, "gamma is 1.5"), (1.0, -0.1, "lam is -0.1")])
def test_gae_raises_on_invalid_gamma_and_lam(gamma, lam, told):
    with pytest.raises(ValueError, match=told):
        gae(torch.zeros(1, 1), torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool), gamma, lam)


@pytest.mark.parametrize("lam", [1.0, 0.95, 0.0])
def test_a_missing_last_reward_makes_all_advantages_of_the_response_missing(lam):
    reward, value, _, _ = ragged(7)
    mask = torch.arange(6) < torch.tensor([6, 3, 1, 4])[:, None]
    reward[1, 2] = math.nan
    found = gae(reward, value, mask, 1.0, lam)
    assert found[1, :3].isnan().all() and not found[[0, 2, 3]].isnan().any()


def test_with_lam_1_the_value_target_is_the_discounted_return():
    reward, value, _, _ = ragged(8)
    mask = torch.arange(6) < torch.tensor([6, 3, 1, 4])[:, None]
    target = gae(reward, value, mask, 0.9, 1.0) + value
    random.seed(0)
    for i in range(4):
        own = int(mask[i].sum())
        for t in range(own):
            expected = math.fsum(0.9 ** (s - t) * reward[i, s].item() for s in range(t, own))
            assert target[i, t].item() == pytest.approx(expected, rel=1e-12, abs=1e-14)
