"""KL estimators as values and as losses, by enumeration, and the exact forms at the edges of their domain."""

import math

import pytest
import torch

from grape_rl.maths.divergence import entropy, exact_kl, k1, k2, k3
from grape_rl.maths.exact import (
    enumerated,
    expectation,
    logprobs,
    probabilities,
    random_table,
    response_kl,
)

INF = math.inf
ONE = enumerated(4, 1)
MANY = enumerated(3, 3, end=1)
WORLDS = [pytest.param(ONE, id="one token"), pytest.param(MANY, id="one to three tokens")]
ESTIMATORS = [k1, k2, k3]
EXACT = {"rtol": 1e-11, "atol": 1e-12}  # sums of up to a few hundred float64 products


def per_token(world, table, other):
    return lambda index: (logprobs(world, table)[index], logprobs(world, other)[index])


def per_response(world, table, other):
    return lambda index: tuple(logprobs(world, each)[index].sum(1, keepdim=True) for each in (table, other))


def gradient(value, table):
    return torch.autograd.grad(value, table)[0]


def choice_kl(world, table, p, q):
    """Σ over prefixes of (probability that ``table`` gets there, held fixed) × KL of the choices of ``p`` and ``q``."""
    weight = probabilities(world, table).detach()
    arrival = torch.stack([weight[((world.prefix == s) & world.mask).any(1)].sum() for s in range(world.prefixes)])
    return (arrival * exact_kl(p, q)).sum()


# Values


@pytest.mark.parametrize("read", [per_token, per_response])
@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("estimator", [k1, k3])
def test_k1_and_k3_are_unbiased_values(estimator, world, read):
    table, other = random_table(world, 1).detach(), random_table(world, 2).detach()
    found = expectation(world, table, 1, lambda index: estimator(*read(world, table, other)(index)).sum())
    torch.testing.assert_close(found, response_kl(world, table, other), **EXACT)


def test_the_bias_of_k2_is_of_third_order():
    """KL = E[d²]/2 − E[d³]/6 + …, so what k2 is off by shrinks 8-fold as the distance halves, and KL 4-fold."""
    table, direction = random_table(ONE, 1).detach(), random_table(ONE, 2).detach()
    off, relative = [], []
    for scale in (1.0, 1e-2, 5e-3):
        other = table + scale * direction
        kl = response_kl(ONE, table, other)
        found = expectation(ONE, table, 1, lambda index, at=other: k2(*per_token(ONE, table, at)(index)).sum())
        off.append(float(found - kl))
        relative.append(abs(float(found / kl) - 1))
    assert relative[0] > 0.1
    assert relative[1] < 0.02
    assert math.isclose(off[1] / off[2], 8, rel_tol=0.02)


def test_k3_is_never_negative_and_zero_only_at_zero():
    d = torch.arange(-500, 501, dtype=torch.float64)[None] / 100
    value = k3(d, torch.zeros_like(d))
    assert (value >= 0).all()
    assert ((value == 0) == (d == 0)).all()


def test_k3_is_accurate_near_zero():
    """In float32 exp(−d) − 1 + d would be wrong by 100 % here; the series d²/2 − d³/6 is the truth."""
    d = torch.tensor([[1e-4]], dtype=torch.float32)
    truth = 1e-8 / 2 - 1e-12 / 6
    assert math.isclose(float(k3(d, torch.zeros_like(d))), truth, rel_tol=1e-2)


# Gradients as losses, on the sampler's own tokens


@pytest.mark.parametrize("read", [per_token, per_response])
@pytest.mark.parametrize("world", WORLDS)
def test_k1_as_a_loss_has_no_expected_gradient(world, read):
    table, other = random_table(world, 1), random_table(world, 2).detach()
    found = gradient(expectation(world, table, 1, lambda index: k1(*read(world, table, other)(index)).sum()), table)
    torch.testing.assert_close(found, torch.zeros_like(found), **EXACT)


@pytest.mark.parametrize("world", WORLDS)
def test_k2_on_whole_responses_descends_the_kl_to_the_reference(world):
    table, other = random_table(world, 1), random_table(world, 2).detach()
    loss = expectation(world, table, 1, lambda index: k2(*per_response(world, table, other)(index)).sum())
    torch.testing.assert_close(gradient(loss, table), gradient(response_kl(world, table, other), table), **EXACT)


@pytest.mark.parametrize("world", WORLDS)
def test_k3_on_whole_responses_descends_the_kl_from_the_reference(world):
    table, other = random_table(world, 1), random_table(world, 2).detach()
    loss = expectation(world, table, 1, lambda index: k3(*per_response(world, table, other)(index)).sum())
    torch.testing.assert_close(gradient(loss, table), gradient(response_kl(world, other, table), table), **EXACT)


@pytest.mark.parametrize("world", WORLDS)
def test_per_token_losses_descend_the_kl_at_the_sampled_prefixes(world):
    table, other = random_table(world, 1), random_table(world, 2).detach()

    def of(estimator):
        loss = expectation(world, table, 1, lambda index: estimator(*per_token(world, table, other)(index)).sum())
        return gradient(loss, table)

    torch.testing.assert_close(of(k2), gradient(choice_kl(world, table, table, other), table), **EXACT)
    torch.testing.assert_close(of(k3), gradient(choice_kl(world, table, other, table), table), **EXACT)


# Gradients as losses, on tokens of an older policy


def off_policy(estimator, weight):
    """The expected gradient, over an old policy's samples, of the estimator with a weight made of rho."""
    table, old, other = random_table(ONE, 1), random_table(ONE, 3).detach(), random_table(ONE, 2).detach()

    def loss(index):
        logp, other_logp = per_token(ONE, table, other)(index)
        rho = (logp - logprobs(ONE, old)[index]).exp()
        return (weight(rho) * estimator(logp, other_logp)).sum()

    return gradient(expectation(ONE, old, 1, loss), table)


def kl_gradients():
    table, other = random_table(ONE, 1), random_table(ONE, 2).detach()
    to = gradient(response_kl(ONE, table, other), table)
    back = gradient(response_kl(ONE, other, table), table)
    return {"zero": torch.zeros_like(to), "to": to, "back": back}


@pytest.mark.parametrize(("estimator", "expected"), [(k1, "zero"), (k2, "to"), (k3, "back")])
def test_off_policy_the_detached_ratio_gives_each_loss_its_on_policy_gradient(estimator, expected):
    found = off_policy(estimator, lambda rho: rho.detach())
    torch.testing.assert_close(found, kl_gradients()[expected], **EXACT)


@pytest.mark.parametrize("estimator", [k1, k3])
def test_off_policy_a_ratio_with_gradient_makes_an_unbiased_value_an_unbiased_loss(estimator):
    torch.testing.assert_close(off_policy(estimator, lambda rho: rho), kl_gradients()["to"], **EXACT)


@pytest.mark.parametrize(
    ("estimator", "slope", "truth"),
    [(k1, torch.ones_like, "zero"), (k2, lambda d: d, "to"), (k3, lambda d: 1 - (-d).exp(), "back")],
)
def test_off_policy_without_a_ratio_the_gradient_is_biased(estimator, slope, truth):
    """It is Σ p_old(y) k'(d) (1[y] − π) by the logits: even k1 moves the policy, towards the old one's samples."""
    table, old, other = (random_table(ONE, seed).detach()[0] for seed in (1, 3, 2))
    policy = table.softmax(0)
    pull = old.softmax(0) * slope(policy.log() - other.log_softmax(0))
    found = off_policy(estimator, torch.ones_like)
    torch.testing.assert_close(found[0], pull - policy * pull.sum(), **EXACT)
    truths = kl_gradients()
    assert (found - truths[truth]).norm() > 0.2 * truths["to"].norm()


# Exact forms


def test_exact_kl_against_a_loop():
    logits, other = random_table(MANY, 1).detach(), random_table(MANY, 2).detach()
    for row, other_row, found in zip(logits, other, exact_kl(logits, other).tolist(), strict=True):
        a, b = [math.exp(x) for x in row.tolist()], [math.exp(x) for x in other_row.tolist()]
        p, q = [x / sum(a) for x in a], [x / sum(b) for x in b]
        assert math.isclose(found, math.fsum(x * math.log(x / y) for x, y in zip(p, q, strict=True)), rel_tol=1e-12)


@pytest.mark.parametrize(
    ("logits", "other", "expected"),
    [
        ([0.0, -INF, 0.0], [0.0, -INF, 0.0], 0.0),
        ([0.0, -INF, 0.0], [0.0, 0.0, 0.0], math.log(3 / 2)),
        ([0.0, 0.0, 0.0], [0.0, -INF, 0.0], INF),
        ([0.0, -5000.0], [0.0, -INF], 0.0),
        ([0.0, -5000.0], [-5000.0, 0.0], 5000.0),
    ],
)
def test_exact_kl_with_zero_probabilities(logits, other, expected):
    logits = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    other = torch.tensor(other, dtype=torch.float64, requires_grad=True)
    value = exact_kl(logits, other)
    assert math.isclose(value.item(), expected, rel_tol=1e-12)
    if math.isfinite(expected):
        assert all(part.isfinite().all() for part in torch.autograd.grad(value, (logits, other)))


def test_entropy_against_a_loop_and_with_zero_probabilities():
    logits = torch.tensor(
        [[0.3, -1.0, 2.0, -INF], [0.0, 0.0, 0.0, 0.0], [1.0, -INF, -INF, -5000.0]], dtype=torch.float64
    )
    logits.requires_grad_()
    value = entropy(logits)
    for row, found in zip(logits.tolist(), value.tolist(), strict=True):
        p = [math.exp(x) / sum(math.exp(y) for y in row) for x in row]
        assert math.isclose(found, -math.fsum(x * math.log(x) for x in p if x > 0), rel_tol=1e-12)
    assert torch.autograd.grad(value.sum(), logits)[0].isfinite().all()


def test_gradients_of_the_exact_forms():
    logits, other = random_table(ONE, 1), random_table(ONE, 2)
    assert torch.autograd.gradcheck(exact_kl, (logits, other))
    assert torch.autograd.gradcheck(entropy, (logits,))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_gradients_of_the_estimators(estimator):
    assert torch.autograd.gradcheck(estimator, (random_table(ONE, 1), random_table(ONE, 2)))
