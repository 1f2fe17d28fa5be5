"""Unpaired preference losses: each against a loop from its formula, gradients, signs, and known values."""

import math

import pytest
import torch

from grape_rl.maths import preference
from grape_rl.maths.preference import apo_zero, apo_zero_unpaired, bco, bco_unpaired, kto

EXACT = {"rtol": 1e-12, "atol": 1e-14}  # float64
NAMES = ("kto", "bco_unpaired", "apo_zero_unpaired")
DESIRABLE = torch.tensor([True, False, True, False, True])


def given(shift=0.7):
    logp = torch.tensor([-3.0, -1.0, -9.0, -4.0, -0.5], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([-2.0, -6.0, -4.0, -4.0, -7.0], dtype=torch.float64)
    return logp, reference, torch.tensor(shift, dtype=torch.float64, requires_grad=True)


def loss_of(name, shift=0.7, logp=None, **options):
    own, reference, shifted = given(shift)
    logp = own if logp is None else logp
    between = () if name == "apo_zero_unpaired" else (shifted,)
    return getattr(preference, name)(logp, reference, *between, DESIRABLE, **options), logp, shifted


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


ONE = {  # of one response with the gain h
    "kto": lambda h, good, shift, beta: 1 - sigmoid(beta * ((h - max(0, shift)) if good else (max(0, shift) - h))),
    "bco_unpaired": lambda h, good, shift, beta: math.log(1 + math.exp(-beta * ((h - shift) if good else (shift - h)))),
    "apo_zero_unpaired": lambda h, good, shift, beta: 1 - sigmoid(beta * h) if good else sigmoid(beta * h),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shift", [0.7, -0.7])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.5, 0.25)])
def test_against_a_loop(name, shift, weights):
    logp, reference, _ = (each.detach() for each in given())
    expected = [
        weights[0 if good else 1] * ONE[name](float(p) - float(q), good, shift, 0.3)
        for p, q, good in zip(logp, reference, DESIRABLE.tolist(), strict=True)
    ]
    options = {"beta": 0.3, "desirable_weight": weights[0], "undesirable_weight": weights[1]}
    torch.testing.assert_close(loss_of(name, shift, **options)[0].tolist(), expected, **EXACT)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_against_differences_and_none_through_the_shift(name):
    assert torch.autograd.gradcheck(lambda logp: loss_of(name, logp=logp)[0], (given()[0],))
    loss, logp, shift = loss_of(name)
    up, none = torch.autograd.grad(loss.sum(), (logp, shift), allow_unused=True)
    assert none is None
    assert ((up < 0) == DESIRABLE).all(), "a desirable response is pulled up, another down"


def test_known_values_of_one_response():
    """At z = 0 and a gain of log 3 with beta 1: σ = ¾."""
    logp = torch.tensor([math.log(3), math.log(3)], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(2, dtype=torch.float64)
    labels = torch.tensor([True, False])
    loss = kto(logp, zero, torch.tensor(-5.0, dtype=torch.float64), labels, 1.0)
    torch.testing.assert_close(loss.tolist(), [0.25, 0.75], **EXACT)
    torch.testing.assert_close(torch.autograd.grad(loss.sum(), logp)[0].tolist(), [-3 / 16, 3 / 16], **EXACT)
    at = kto(zero, zero, torch.tensor(0.0), labels, desirable_weight=1.2)
    assert at.tolist() == [0.6, 0.5], "at the reference half of its weight"


def test_gains_below_the_reference_point_are_losses():
    """z is what people are used to: far below it, the loss is flat, and near it steep."""
    zero = torch.zeros(1, dtype=torch.float64)
    yes = torch.tensor([True])
    steep = lambda z: float(  # noqa: E731
        torch.autograd.grad(
            kto(x := zero.clone().requires_grad_(), zero, z * torch.ones((), dtype=torch.float64), yes, 1.0), x
        )[0]
    )
    assert pytest.approx(steep(0.0)) == -0.25 and abs(steep(6.0)) < 0.01
    assert steep(-6.0) == steep(0.0), "z is never below 0"


def test_unpaired_losses_of_split_pairs_sum_to_the_pair_losses():
    logp, reference, _ = given()
    sides = (logp[:2], logp[2:4], reference[:2], reference[2:4])
    labels = torch.tensor([True, True, False, False])
    apart = apo_zero_unpaired(logp[:4], reference[:4], labels, 0.3)
    torch.testing.assert_close(apart[:2] + apart[2:], apo_zero(*sides, 0.3), **EXACT)
    none = torch.zeros((), dtype=torch.float64)
    apart = bco_unpaired(logp[:4], reference[:4], none, labels, 0.3)
    torch.testing.assert_close(apart[:2] + apart[2:], bco(*sides, 0.3), **EXACT)
    same = kto(logp[:4], reference[:4], none, labels, 0.3)
    torch.testing.assert_close(same, apo_zero_unpaired(logp[:4], reference[:4], labels, 0.3), **EXACT)


@pytest.mark.parametrize("name", NAMES)
def test_far_from_the_reference_values_and_gradients_are_finite(name):
    for far in (1e4, -1e4):
        logp = (given()[0].detach() + far).float().requires_grad_()
        reference = given()[1].float()
        between = () if name == "apo_zero_unpaired" else (torch.tensor(1.0),)
        loss = getattr(preference, name)(logp, reference, *between, DESIRABLE, 1.0)
        assert loss.isfinite().all() and torch.autograd.grad(loss.sum(), logp)[0].isfinite().all()
