"""Preference losses: each against a loop from its formula, gradients, signs, and relations between losses."""

import inspect
import math

import pytest
import torch

from grape_rl.maths import preference
from grape_rl.maths.preference import (
    aot,
    cal_dpo,
    cdpo,
    chosen_nll,
    cpo,
    discopop,
    dpo,
    dpop,
    exo,
    f_dpo,
    ipo,
    ld_dpo,
    odpo,
    orpo,
    r_dpo,
    robust_dpo,
    rpo,
    sigmoid_norm,
    simpo,
    sppo,
)

EXACT = {"rtol": 1e-9, "atol": 1e-11}  # float64; the loops go by another road, so that some digits are lost
OF_LABELS = ("kto", "bco_unpaired", "apo_zero_unpaired")  # test_unpaired.py
OF_PAIRS = [name for name in preference.__all__ if name not in (*OF_LABELS, "policy_weight")]
OF_BATCHES = ("aot", "aot_unpaired", "beta_dpo")
WITH_CONSTANTS = ("wpo", "beta_dpo")  # they hold back a part of the gradient: test_distribution.py


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def D(x):
    return math.log(1 + math.exp(-x))


def coin(p, q):
    """KL between coins that show heads with chances p and q."""
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


# Each formula once more for one pair, in Python's words. s has its numbers: w and l, the gains on the reference; cw,
# cl, the log-probs; rw, rl, the reference's; nw, nl, lengths; gw, gl, rewards; …h, of the heads; and the options.
ONE_PAIR = {
    "dpo": lambda s: D(s.beta * (s.w - s.l)),
    "cdpo": lambda s: (1 - s.e) * D(s.beta * (s.w - s.l)) + s.e * D(s.beta * (s.l - s.w)),
    "robust_dpo": lambda s: ((1 - s.e) * D(s.beta * (s.w - s.l)) - s.e * D(s.beta * (s.l - s.w))) / (1 - 2 * s.e),
    "ipo": lambda s: (s.w / s.nw - s.l / s.nl - 0.5 / s.beta) ** 2,
    "sigmoid_norm": lambda s: D(s.beta * (s.w / s.nw - s.l / s.nl)),
    "hinge": lambda s: max(0.0, 1 - s.beta * (s.w - s.l)),
    "exo": lambda s: coin(sigmoid(s.beta * (s.w - s.l)), 1 - s.e),
    "dpop": lambda s: D(s.beta * (s.w - s.l - s.fall_weight * max(0.0, -s.w))),
    "r_dpo": lambda s: D(s.beta * (s.w - s.l) + s.length_weight * (s.nw - s.nl)),
    "ld_dpo": lambda s: D(
        s.beta
        * (
            (s.cwh - s.rwh + s.tail_weight * ((s.cw - s.cwh) - (s.rw - s.rwh)))
            - (s.clh - s.rlh + s.tail_weight * ((s.cl - s.clh) - (s.rl - s.rlh)))
        )
    ),
    "discopop": lambda s: (
        (1 - sigmoid(s.beta * (s.w - s.l) / s.modulation)) * D(s.beta * (s.w - s.l))
        + sigmoid(s.beta * (s.w - s.l) / s.modulation) * math.exp(-s.beta * (s.w - s.l))
    ),
    "f_dpo": lambda s: D(s.beta * (SLOPES[s.divergence](math.exp(s.w), s) - SLOPES[s.divergence](math.exp(s.l), s))),
    "nca": lambda s: D(s.beta * s.w) + D(-s.beta * s.w) / 2 + D(-s.beta * s.l) / 2,
    "bco": lambda s: D(s.beta * s.w) + D(-s.beta * s.l),
    "apo_zero": lambda s: 1 - sigmoid(s.beta * s.w) + sigmoid(s.beta * s.l),
    "apo_down": lambda s: sigmoid(s.beta * s.w) + 1 - sigmoid(s.beta * (s.w - s.l)),
    "sppo": lambda s: (s.w - 0.5 / s.beta) ** 2 + (s.l + 0.5 / s.beta) ** 2,
    "cal_dpo": lambda s: D(s.w - s.l) + ((s.w - 0.5 / s.beta) ** 2 + (s.l + 0.5 / s.beta) ** 2) / 2,
    "odpo": lambda s: D(s.beta * (s.w - s.l) - s.offset_weight * math.log(s.gw - s.gl)),
    "rpo": lambda s: {
        "backward": lambda a, b: coin(sigmoid(b), sigmoid(a)),
        "forward": lambda a, b: coin(sigmoid(a), sigmoid(b)),
        "squared": lambda a, b: (a - b) ** 2,
    }[s.distance](s.beta * (s.w - s.l), s.reward_scale * (s.gw - s.gl)),
    "slic": lambda s: max(0.0, s.delta - s.cw + s.cl),
    "chosen_nll": lambda s: -s.cw / s.nw,
    "orpo": lambda s: (
        -s.cw / s.nw + s.odds_weight * D(math.log(odds(math.exp(s.cw / s.nw)) / odds(math.exp(s.cl / s.nl))))
    ),
    "simpo": lambda s: D(s.beta * (s.cw / s.nw - s.cl / s.nl) - s.gamma),
    "cpo": lambda s: D(s.beta * (s.cw - s.cl)) - s.nll_weight * s.cw / s.nw,
    "tdpo1": lambda s: D(s.beta * ((s.w + s.kw) - (s.l + s.kl))),
    "tdpo2": lambda s: D(s.beta * (s.w - s.l) + s.beta * s.kl_weight * (s.kw - s.kl)),
    "wpo": lambda s: (
        min(s.weight_limit, math.exp((s.cw - s.ow) / s.nw) * math.exp((s.cl - s.ol) / s.nl)) * D(s.beta * (s.w - s.l))
    ),
}
SLOPES = {  # f'(u) of the ratio u, up to constants
    "reverse_kl": lambda u, s: math.log(u) + 1,
    "forward_kl": lambda u, s: -1 / u,
    "js": lambda u, s: math.log(2 * u / (1 + u)),
    "alpha": lambda u, s: (1 - u ** (s.alpha - 1)) / (1 - s.alpha),
}


def odds(p):
    return p / (1 - p)


OPTIONS = {
    "cdpo": [{}, {"label_smoothing": 0.3, "beta": 0.7}],
    "robust_dpo": [{}, {"label_smoothing": 0.3, "beta": 0.7}],
    "exo": [{}, {"label_smoothing": 0.2, "beta": 0.7}],
    "f_dpo": [{"divergence": name, "beta": 0.3} for name in SLOPES] + [{"divergence": "alpha", "alpha": 1.7}, {}],
    "rpo": [{"distance": name, "reward_scale": 0.4} for name in ("backward", "forward", "squared")] + [{}],
    "tdpo2": [{}, {"kl_weight": 0.8, "beta": 0.6}],
    "wpo": [{}, {"weight_limit": 9.0, "beta": 0.8}],
    "ld_dpo": [{}, {"tail_weight": 0.0}, {"tail_weight": 1.0, "beta": 0.6}],
}
CASES = [(name, options) for name in ONE_PAIR for options in OPTIONS.get(name, [{}, {"beta": 0.8}])]
CASES = [(n, o) for n, o in CASES if o.keys() <= inspect.signature(getattr(preference, n)).parameters.keys()]


class Said:
    """One pair's numbers and the options, each by its name."""

    def __init__(self, **numbers):
        self.__dict__.update(numbers)
        self.__dict__.setdefault("e", numbers.get("label_smoothing"))


def fields(seed=0, size=9):
    """Every field that a loss may read: log-probs near the reference, so that all branches and both signs occur."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda low, high: low + (high - low) * torch.rand(size, generator=generator, dtype=torch.float64)  # noqa: E731
    length = torch.randint(1, 9, (2, size), generator=generator).double()
    out = {"chosen_length": length[0], "rejected_length": length[1]}
    for which, n in zip(("chosen", "rejected"), length, strict=True):
        out[f"{which}_logp"] = n * draw(-2.5, -0.1)
        out[f"reference_{which}_logp"] = out[f"{which}_logp"] + draw(-3.0, 3.0)
        for whose in ("", "reference_"):
            out[f"{whose}{which}_head_logp"] = out[f"{whose}{which}_logp"] * draw(0.2, 1.0)
    out["chosen_reward"], out["rejected_reward"] = draw(1.0, 3.0), draw(-2.0, 0.9)
    for which, n in zip(("chosen", "rejected"), length, strict=True):
        out[f"{which}_kl"], out[f"{which}_collision"] = n * draw(0.0, 0.5), n * draw(-1.5, -0.1)
    return {name: value.requires_grad_() for name, value in out.items()}


def read_by(function, given):
    return {name: given[name] for name in inspect.signature(function).parameters if name in given}


@pytest.mark.parametrize(("name", "options"), CASES, ids=lambda value: str(value))
def test_against_a_loop(name, options):
    function, given = getattr(preference, name), fields()
    defaults = {key: p.default for key, p in inspect.signature(function).parameters.items() if p.default is not p.empty}
    expected = []
    for i in range(9):
        at = {key: float(value[i].detach()) for key, value in given.items()}
        short = {"cw": "chosen_logp", "cl": "rejected_logp", "rw": "reference_chosen_logp"}
        short |= {"rl": "reference_rejected_logp", "nw": "chosen_length", "nl": "rejected_length"}
        short |= {"cwh": "chosen_head_logp", "clh": "rejected_head_logp", "rwh": "reference_chosen_head_logp"}
        short |= {"rlh": "reference_rejected_head_logp", "gw": "chosen_reward", "gl": "rejected_reward"}
        short |= {"kw": "chosen_kl", "kl": "rejected_kl", "ow": "chosen_collision", "ol": "rejected_collision"}
        numbers = {key: at[field] for key, field in short.items()}
        gains = {"w": numbers["cw"] - numbers["rw"], "l": numbers["cl"] - numbers["rl"]}
        expected.append(ONE_PAIR[name](Said(**numbers, **gains, **(defaults | options))))
    found = function(**read_by(function, given), **options)
    torch.testing.assert_close(found.tolist(), expected, **EXACT)
    assert len({round(value, 6) for value in expected}) > 1


def test_every_loss_of_the_family_is_in_the_loop():
    assert {*ONE_PAIR, *OF_BATCHES} == set(OF_PAIRS)


@pytest.mark.parametrize("name", [name for name in OF_PAIRS if name not in WITH_CONSTANTS])
def test_gradients_against_differences(name):
    function = getattr(preference, name)
    read = read_by(function, fields(size=4))
    moved = [key for key in read if key.endswith("logp") and not key.startswith("reference")]

    def loss(*logps):
        return function(**(read | dict(zip(moved, logps, strict=True))))

    assert torch.autograd.gradcheck(loss, tuple(read[key] for key in moved))


def slopes_at_the_reference(function, **options):
    """∂L/∂h_w and ∂L/∂h_l at h_w = h_l = 0; every response has one token."""
    chosen, rejected = (torch.tensor([v], dtype=torch.float64, requires_grad=True) for v in (-1.0, -2.0))
    one = torch.ones(1, dtype=torch.float64)
    given = {"chosen_length": one, "rejected_length": one, "chosen_head_logp": chosen, "rejected_head_logp": rejected}
    given |= {"reference_chosen_logp": chosen.detach(), "reference_rejected_logp": rejected.detach()}
    given |= {"reference_chosen_head_logp": chosen.detach(), "reference_rejected_head_logp": rejected.detach()}
    given |= {"chosen_reward": 2 * one, "rejected_reward": one, "chosen_logp": chosen, "rejected_logp": rejected}
    given |= {"chosen_kl": 0 * one, "rejected_kl": 0 * one, "chosen_collision": -one, "rejected_collision": -one}
    loss = function(**read_by(function, given), **options)
    return tuple(float(g) for g in torch.autograd.grad(loss.sum(), (chosen, rejected)))


USUAL = ["dpo", "cdpo", "robust_dpo", "ipo", "hinge", "exo", "nca", "bco", "apo_zero", "sppo", "cal_dpo"]
USUAL += ["sigmoid_norm", "r_dpo", "ld_dpo", "dpop", "odpo", "aot", "rpo"]
USUAL += ["aot_unpaired", "beta_dpo", "tdpo1", "tdpo2", "wpo"]


@pytest.mark.parametrize("name", USUAL)
def test_at_the_reference_a_loss_raises_the_chosen_and_lowers_the_rejected(name):
    up, down = slopes_at_the_reference(getattr(preference, name))
    assert up < 0 < down


@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "js", "alpha"])
def test_dpo_under_any_divergence_does_so_too(divergence):
    up, down = slopes_at_the_reference(f_dpo, divergence=divergence)
    assert up < 0 < down


def test_two_losses_do_not_do_so():
    up, down = slopes_at_the_reference(preference.apo_down)
    assert up == pytest.approx(0, abs=1e-15) and down > 0
    up, down = slopes_at_the_reference(discopop)  # its bump: at first it pulls the wrong way
    assert up > 0 > down


def test_dpo_at_the_reference_is_log_2_with_slopes_of_half_beta():
    given = fields()
    chosen, rejected = given["chosen_logp"], given["rejected_logp"]
    loss = dpo(chosen, rejected, chosen.detach(), rejected.detach(), beta=0.3)
    torch.testing.assert_close(loss, torch.full_like(loss, math.log(2)), rtol=1e-12, atol=0)
    up, down = torch.autograd.grad(loss.sum(), (chosen, rejected))
    torch.testing.assert_close(up, torch.full_like(up, -0.15), rtol=1e-12, atol=0)
    torch.testing.assert_close(down, torch.full_like(down, 0.15), rtol=1e-12, atol=0)


def four(given):
    return [
        given[name] for name in ("chosen_logp", "rejected_logp", "reference_chosen_logp", "reference_rejected_logp")
    ]


def gradient_of(loss, given):
    return torch.stack(torch.autograd.grad(loss.sum(), (given["chosen_logp"], given["rejected_logp"])))


def test_relations_between_losses():
    given = fields(1)
    w, l, rw, rl = four(given)  # noqa: E741
    one, beta = torch.ones_like(w), 0.4
    plain = dpo(w, l, rw, rl, beta)
    same = lambda a, b: torch.testing.assert_close(a, b, **EXACT)  # noqa: E731
    same(cdpo(w, l, rw, rl, beta, 0.0), plain)
    same(robust_dpo(w, l, rw, rl, beta, 0.0), plain)
    same(cdpo(w, l, rw, rl, beta, 0.5), cdpo(l, w, rl, rw, beta, 0.5))  # blind to the label
    same(f_dpo(w, l, rw, rl, beta, "reverse_kl"), plain)
    same(f_dpo(w, l, rw, rl, beta, "alpha", 0.0), f_dpo(w, l, rw, rl, beta, "forward_kl"))
    same(r_dpo(w, l, rw, rl, one, 2 * one, beta, 0.0), plain)
    same(dpop(w, l, rw, rl, beta, 0.0), plain)
    same(ld_dpo(w, l, rw, rl, 0 * w, 0 * w, 0 * w, 0 * w, beta, 1.0), plain)
    same(odpo(w, l, rw, rl, 2 * one, one, beta), plain)  # a gap of 1 is no offset
    same(sigmoid_norm(w, l, rw, rl, one, one, beta), plain)
    same(cpo(w, l, one, beta, 0.0), dpo(w, l, 0 * w, 0 * w, beta))
    same(simpo(w, l, one, one, beta, 0.0), dpo(w, l, 0 * w, 0 * w, beta))
    same(orpo(w, l, one, one, 0.0), chosen_nll(w, one))
    same(cal_dpo(w, l, rw, rl, beta) - sppo(w, l, rw, rl, beta) / 2, dpo(w, l, rw, rl, 1.0))
    same(aot(w[:1], l[:1], rw[:1], rl[:1], beta), plain[:1])


def test_robust_dpo_is_unbiased_under_label_noise():
    """(1−e) L(pair) + e L(pair the wrong way round) is DPO's loss on the right label."""
    w, l, rw, rl = four(fields(2))  # noqa: E741
    mixed = 0.7 * robust_dpo(w, l, rw, rl, 0.4, 0.3) + 0.3 * robust_dpo(l, w, rl, rw, 0.4, 0.3)
    torch.testing.assert_close(mixed, dpo(w, l, rw, rl, 0.4), **EXACT)


def test_rpo_backward_has_the_gradient_of_cdpo_and_of_dpo_for_a_large_gap():
    given = fields(3)
    w, l, rw, rl = four(given)  # noqa: E741
    zero = torch.zeros_like(w)
    b = math.log(0.8 / 0.2)
    found = gradient_of(rpo(w, l, rw, rl, zero + b, zero, 0.4), given)
    torch.testing.assert_close(found, gradient_of(cdpo(w, l, rw, rl, 0.4, 0.2), given), **EXACT)
    far = gradient_of(rpo(w, l, rw, rl, zero + 40, zero, 0.4), given)
    torch.testing.assert_close(far, gradient_of(dpo(w, l, rw, rl, 0.4), given), **EXACT)


def test_rpo_squared_is_ipo_and_reinforce():
    given = fields(4)
    w, l, rw, rl = four(given)  # noqa: E741
    one, beta = torch.ones_like(w), 0.4
    torch.testing.assert_close(
        rpo(w, l, rw, rl, one / 2, 0 * one, beta, 1.0, "squared"), beta**2 * ipo(w, l, rw, rl, one, one, beta), **EXACT
    )
    # ½ its gradient is −2 beta times that of leave-one-out REINFORCE on the pair, with the reward eta r − beta h
    eta, gw, gl = 0.6, given["chosen_reward"].detach(), given["rejected_reward"].detach()
    half = gradient_of(rpo(w, l, rw, rl, gw, gl, beta, eta, "squared") / 2, given)
    reward = torch.stack([eta * gw - beta * (w - rw), eta * gl - beta * (l - rl)]).detach()
    ascent = (reward - reward.flip(0)) / 2  # A ∇log π, meaned over the two
    torch.testing.assert_close(half, -2 * beta * ascent, **EXACT)


def test_a_longer_chosen_response_has_the_smaller_gradient_in_r_dpo():
    given = fields(5)
    w, l, rw, rl = four(given)  # noqa: E741
    one = torch.ones_like(w)
    long = gradient_of(r_dpo(w, l, rw, rl, 9 * one, one), given).abs()
    assert (long < gradient_of(r_dpo(w, l, rw, rl, one, one), given).abs()).all()


def test_aot_compares_quantiles_against_a_loop():
    w, l, rw, rl = four(fields(6))  # noqa: E741
    policy = sorted(a - b for a, b in zip(w.tolist(), l.tolist(), strict=True))
    reference = sorted(a - b for a, b in zip(rw.tolist(), rl.tolist(), strict=True))
    expected = [D(0.4 * (a - b)) for a, b in zip(policy, reference, strict=True)]
    found = aot(w, l, rw, rl, 0.4)
    torch.testing.assert_close(found.tolist(), expected, **EXACT)
    assert found.sum().item() != pytest.approx(dpo(w, l, rw, rl, 0.4).sum().item(), rel=1e-3)
    other = torch.tensor([3, 1, 0, 2, 5, 4, 8, 7, 6])  # whose reference it is does not matter
    torch.testing.assert_close(aot(w, l, rw[other], rl[other], 0.4), found, rtol=0, atol=0)


@pytest.mark.parametrize("name", [n for n in OF_PAIRS if n not in ("f_dpo", "orpo")])
@pytest.mark.parametrize("far", [300.0, -300.0])
def test_far_from_the_reference_values_and_gradients_are_finite(name, far):
    function = getattr(preference, name)
    chosen, rejected = torch.tensor([-400.0 + far], requires_grad=True), torch.tensor([-400.0], requires_grad=True)
    base, one = torch.tensor([-400.0]), torch.ones(1)
    given = {"chosen_logp": chosen, "rejected_logp": rejected, "chosen_length": 50 * one, "rejected_length": 50 * one}
    given |= {"reference_chosen_logp": base, "reference_rejected_logp": base, "chosen_reward": one * 2}
    given |= {"chosen_head_logp": chosen / 2, "rejected_head_logp": rejected / 2, "rejected_reward": one}
    given |= {"chosen_kl": 300 * one, "rejected_kl": one, "chosen_collision": -one, "rejected_collision": -300 * one}
    given |= {"reference_chosen_head_logp": base / 2, "reference_rejected_head_logp": base / 2}
    options = {} if name == "discopop" and far < 0 else {"beta": 1.0}
    loss = function(
        **read_by(function, given), **{k: v for k, v in options.items() if k in inspect.signature(function).parameters}
    )
    assert loss.isfinite().all()
    grads = torch.autograd.grad(loss.sum(), (chosen, rejected), allow_unused=True, materialize_grads=True)
    assert all(g.isfinite().all() for g in grads)


def test_far_from_the_reference_dpo_is_its_margin():
    far = torch.tensor([2000.0, -2000.0], requires_grad=True)
    zero = torch.zeros(2)
    loss = dpo(far, zero, zero, zero, beta=1.0)
    assert loss.tolist() == [0.0, 2000.0]
    assert torch.autograd.grad(loss.sum(), far)[0].tolist() == [0.0, -1.0]


def test_log_odds_are_finite_for_probabilities_near_0_and_1():
    logp = torch.tensor([0.0, -1e4], requires_grad=True)
    one = torch.ones(2)
    loss = orpo(logp, logp.flip(0).detach(), one, one)
    assert loss.isfinite().all() and torch.autograd.grad(loss.sum(), logp)[0].isfinite().all()


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (robust_dpo, {"label_smoothing": 0.5}, r"label_smoothing is 0.5; robust_dpo needs"),
        (robust_dpo, {"label_smoothing": -0.1}, r"in \[0, 0.5\)"),
        (exo, {"label_smoothing": 0.0}, r"label_smoothing is 0.0; exo needs a smoothed label"),
        (f_dpo, {"divergence": "alpha", "alpha": 1.0}, "alpha is 1: the limit is the divergence reverse_kl"),
    ],
)
def test_invalid_options_raise(function, options, message):
    with pytest.raises(ValueError, match=message):
        function(*four(fields()), **options)


def test_invalid_rewards_raise():
    base, nan = four(fields(size=2)), math.nan
    reward = lambda *values: torch.tensor(values, dtype=torch.float64)  # noqa: E731
    with pytest.raises(ValueError, match="pair 1: chosen_reward 1 must be above rejected_reward 1"):
        odpo(*base, reward(2, 1), reward(1, 1))
    for function in (odpo, rpo):
        with pytest.raises(ValueError, match="pair 1 lacks chosen_reward or rejected_reward"):
            function(*base, reward(2, 2), reward(1, nan))
    assert rpo(*base, reward(1, 1), reward(1, 2)).isfinite().all(), "rpo accepts negative gaps"
