"""KL-penalized rewards, the moving average of rewards, and the adaptive KL coefficient: against loops."""

import math

import pytest
import torch

from grape_rl.maths.advantage import baseline_advantage
from grape_rl.maths.penalty import kl_scale
from grape_rl.maths.reward import kl_penalized, moving_average

NAN = math.nan


def test_the_kl_is_subtracted_at_each_token_and_the_reward_added_at_the_last():
    generator = torch.Generator().manual_seed(0)
    behavior, reference = (-torch.rand(4, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    mask = torch.arange(5) < torch.tensor([5, 2, 1, 4])[:, None]
    mask[0, 2] = mask[3, 0] = False  # a tool's answer
    reward = torch.tensor([1.0, -2.0, 0.5, NAN], dtype=torch.float64)
    found = kl_penalized(reward, behavior, reference, mask, 0.3)
    for i in range(4):
        own = mask[i].nonzero().flatten().tolist()
        for t in range(5):
            expected = -0.3 * (behavior[i, t] - reference[i, t]).item() if t in own else 0.0
            expected += reward[i].item() if t == own[-1] else 0.0
            assert found[i, t].item() == pytest.approx(expected, rel=1e-12, nan_ok=True)
    hidden = kl_penalized(reward, behavior.masked_fill(~mask, NAN), reference.masked_fill(~mask, NAN), mask, 0.3)
    torch.testing.assert_close(hidden, found, equal_nan=True, rtol=0, atol=0)


def test_without_a_coefficient_the_last_token_has_the_whole_reward():
    reward, logp = torch.tensor([1.0, 0.25]), -torch.ones(2, 3)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    expected = [[0.0, 0.0, 1.0], [0.25, 0.0, 0.0]]
    assert kl_penalized(reward, logp, 2 * logp, mask).tolist() == expected


def test_moving_average_against_a_loop():
    steps = [[1.0, 3.0], [NAN, 5.0], [NAN, NAN], [0.0, 0.0]]
    found, expected = NAN, NAN
    for rewards, mean in zip(steps, [2.0, 5.0, None, 0.0], strict=True):
        found = moving_average(found, torch.tensor(rewards, dtype=torch.float64), decay=0.8)
        if mean is not None:
            expected = mean if math.isnan(expected) else 0.8 * expected + 0.2 * mean
        assert found == pytest.approx(expected, rel=1e-12)
    assert math.isnan(moving_average(NAN, torch.tensor([NAN])))
    assert moving_average(7.0, torch.tensor([1.0, 2.0]), decay=0.0) == 1.5
    for bad in (1.0, -0.1, NAN):
        with pytest.raises(ValueError, match=r"decay is .*; it must be at least 0 and under 1"):
            moving_average(0.0, torch.zeros(1), bad)


def test_the_moving_average_baseline_is_the_batch_mean_at_the_first_step():
    reward, group = torch.tensor([1.0, 3.0, NAN]), torch.tensor([0, 0, 1])
    found = baseline_advantage(reward, group, "moving_average", 0.5)
    assert found[:2].tolist() == [0.5, 2.5] and found[2].isnan()
    first = baseline_advantage(reward, group, "moving_average")
    assert first[:2].tolist() == [-1.0, 1.0] and first[2].isnan()


@pytest.mark.parametrize(
    ("kl", "expected"),
    [(6.0, 3.0), (6.6, 3 * (1 + 0.1 * 0.05)), (60.0, 3 * 1.01), (5.4, 3 * (1 - 0.1 * 0.05)), (-2.0, 3 * 0.99)],
)
def test_the_kl_coefficient_rises_above_the_target_and_falls_below_within_its_clip(kl, expected):
    assert kl_scale(3.0, kl, 500, kl_target=6.0, kl_horizon=10_000.0) == pytest.approx(expected, rel=1e-12)


def test_without_a_target_or_a_kl_the_coefficient_is_constant():
    assert kl_scale(3.0, 100.0, 500) == kl_scale(3.0, NAN, 500, kl_target=6.0) == 3.0
    with pytest.raises(ValueError, match=r"kl_target is -1.0"):
        kl_scale(1.0, 1.0, 4, kl_target=-1.0)
    with pytest.raises(ValueError, match=r"kl_horizon is 100.0; with 500 responses it must be over 100"):
        kl_scale(1.0, 1.0, 500, kl_target=6.0, kl_horizon=100.0)
