"""Clip fractions against values computed by hand, and against the gradients of the losses."""

import math

import pytest
import torch

from grape_rl.maths.clip_fraction import (
    ratio_clipped,
    ring_clipped,
    sequence_ratio_clipped,
    value_clipped,
    weight_clipped,
)
from grape_rl.maths.off_policy import rec_one_side, rec_ring, rec_two_side
from grape_rl.maths.surrogate import clipped, sequence_clipped
from grape_rl.maths.value import value_loss

RATIOS = [0.3, 0.79, 0.81, 1.0, 1.29, 1.31, 3.5]


def inputs(advantages, ratios=RATIOS):
    logp = torch.tensor([[math.log(r) for r in ratios]], dtype=torch.float64).requires_grad_()
    return logp, torch.zeros_like(logp), torch.tensor([advantages], dtype=torch.float64)


@pytest.mark.parametrize(
    ("sign", "expected"),
    [
        (1.0, [False, False, False, False, False, True, True]),
        (-1.0, [True, True, False, False, False, False, False]),
        (0.0, [False] * 7),
    ],
)
def test_the_ratio_is_clipped_on_the_side_of_the_advantage(sign, expected):
    assert ratio_clipped(*inputs([sign] * 7), 0.2, 0.3).tolist() == [expected]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_weight_is_clipped_on_both_sides(sign):
    expected = [True, True, False, False, False, True, True]
    assert weight_clipped(*inputs([sign] * 7), 0.2, 0.3).tolist() == [expected]
    assert not weight_clipped(*inputs([0.0] * 7), 0.2, 0.3).any()


def test_the_ring_keeps_tokens_that_moved_far_the_wrong_way():
    up = ring_clipped(*inputs([1.0] * 7), 0.2, 0.3, 0.6, 2.0).tolist()
    down = ring_clipped(*inputs([-1.0] * 7), 0.2, 0.3, 0.6, 2.0).tolist()
    assert up == [[False, True, False, False, False, True, True]]
    assert down == [[True, True, False, False, False, True, False]]


def test_the_ratio_of_a_sequence_is_the_geometric_mean_over_its_mask():
    logp = torch.tensor([[math.log(4.0), 0.0, 9.0], [math.log(1.1), math.log(1.1), 0.0]])
    mask = torch.tensor([[True, True, False], [True, True, False]])  # ratios 2 and 1.1
    for advantage, expected in ((1.0, [True, False]), (-1.0, [False, False])):
        tokens = sequence_ratio_clipped(logp, torch.zeros(2, 3), torch.full((2, 3), advantage), mask, 0.2, 0.2)
        assert tokens[:, 0].tolist() == expected and tokens.shape == (2, 3)


def test_a_value_is_clipped_once_it_moved_far_enough_towards_its_target():
    value = torch.tensor([[0.1, 0.3, 0.3, -0.3, -0.3, 2.0]])
    target = torch.tensor([[1.0, 1.0, -1.0, -1.0, 1.0, 1.0]])
    # The last one moved past its target, so that 0.2, the clipped value, is nearer than 2.
    expected = [[False, True, False, True, False, False]]
    assert value_clipped(value, torch.zeros(1, 6), target, 0.2).tolist() == expected


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize(
    ("loss", "function", "options"),
    [
        (clipped, ratio_clipped, {"clip_low": 0.2, "clip_high": 0.3}),
        (rec_one_side, ratio_clipped, {"clip_low": 0.2, "clip_high": 0.3}),
        (rec_two_side, weight_clipped, {"clip_low": 0.2, "clip_high": 0.3}),
        (rec_ring, ring_clipped, {"clip_low": 0.2, "clip_high": 0.3, "ring_low": 0.6, "ring_high": 2.0}),
    ],
)
def test_clipped_tokens_are_those_without_a_gradient(loss, function, options, sign):
    logp, behavior_logp, advantage = inputs([sign] * 7)
    (gradient,) = torch.autograd.grad(loss(logp, behavior_logp, advantage, **options).sum(), logp)
    tokens = function(logp, behavior_logp, advantage, **options)
    assert 0 < int(tokens.sum()) < 7 and torch.equal(tokens, gradient == 0)


def test_clipped_sequences_and_values_are_those_without_a_gradient():
    generator = torch.Generator().manual_seed(0)
    logp = torch.randn(6, 4, generator=generator, dtype=torch.float64).requires_grad_()
    advantage = torch.randn(6, 1, generator=generator, dtype=torch.float64).expand(6, 4)
    mask = torch.ones(6, 4, dtype=torch.bool)
    bounds = {"clip_low": 0.2, "clip_high": 0.2}
    loss = sequence_clipped(logp, torch.zeros_like(logp), advantage, mask, **bounds).sum()
    tokens = sequence_ratio_clipped(logp, torch.zeros_like(logp), advantage, mask, **bounds)
    assert tokens.any() and not tokens.all()
    assert torch.equal(tokens, torch.autograd.grad(loss, logp)[0] == 0)

    target = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    loss = value_loss(logp, torch.zeros_like(logp), target, 0.2).sum()
    tokens = value_clipped(logp, torch.zeros_like(logp), target, 0.2)
    assert tokens.any() and not tokens.all()
    assert torch.equal(tokens, torch.autograd.grad(loss, logp)[0] == 0)
