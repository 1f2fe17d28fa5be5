"""Expected KL penalty by enumeration, with tokens sampled by another policy; the entropy terms."""

import math

import pytest
import torch

from grape_rl.maths.exact import enumerated, expectation, logprobs, probabilities, random_table
from grape_rl.maths.penalty import advantage_weighted_entropy, entropy_bonus, reference_kl

EXACT = {"rtol": 1e-10, "atol": 1e-12}  # float64 sums of a few dozen products

ONE = enumerated(vocabulary=4, length=1)
VARIED = enumerated(vocabulary=3, length=2, end=2)


def policies(world):
    """The policy, the one that sampled, the reference: three different ones."""
    policy, behavior, reference = (random_table(world, seed) for seed in (1, 2, 3))
    return policy, behavior.detach(), reference.detach()


def average(world, policy, behavior, reference, estimator):
    """The mean over the behavior policy's responses of the sum of the term over a response's tokens."""

    def term(index):
        at = [logprobs(world, table)[index] for table in (policy, behavior, reference)]
        return reference_kl(*at, estimator).masked_fill(~world.mask[index], 0).sum()

    return expectation(world, behavior, 1, term)


def visited_kl(world, policy, behavior, reference):
    """Σ over prefixes of (how often the behavior policy comes by) × KL(policy‖reference) there, with plain loops."""
    chance = probabilities(world, behavior)
    at_policy, at_reference = policy.softmax(-1), reference.softmax(-1)
    total = torch.zeros((), dtype=torch.float64)
    for prefix in range(world.prefixes):
        comes_by = sum(
            chance[i]
            for i in range(len(world.tokens))
            if any(world.mask[i, t] and world.prefix[i, t] == prefix for t in range(world.mask.shape[1]))
        )
        for p, q in zip(at_policy[prefix], at_reference[prefix], strict=True):
            total = total + comes_by * p * (p.log() - q.log())
    return total


@pytest.mark.parametrize("world", [ONE, VARIED], ids=["one token", "one or two tokens"])
@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_its_mean_and_gradient_are_those_of_the_kl_to_the_reference(world, estimator):
    policy, behavior, reference = policies(world)
    found = average(world, policy, behavior, reference, estimator)
    expected = visited_kl(world, policy, behavior, reference)
    torch.testing.assert_close(found, expected, **EXACT)
    (found_gradient,) = torch.autograd.grad(found, policy)
    (expected_gradient,) = torch.autograd.grad(expected, policy)
    assert expected_gradient.abs().max() > 0.01
    torch.testing.assert_close(found_gradient, expected_gradient, **EXACT)


def test_k2_has_the_importance_ratio_too():
    policy, behavior, reference = policies(ONE)
    found = average(ONE, policy, behavior, reference, "k2")
    p, q = policy.softmax(-1)[0], reference.softmax(-1)[0]
    torch.testing.assert_close(found, sum(a * (a / b).log() ** 2 / 2 for a, b in zip(p, q, strict=True)), **EXACT)


def test_without_the_ratio_the_gradient_is_biased():
    """What the weight is for: k3 alone, on the policy's own tokens, moves it by the reverse KL."""
    policy, _, reference = policies(ONE)
    fixed = policy.detach()
    weighted = torch.autograd.grad(average(ONE, policy, fixed, reference, "k3"), policy)[0]
    p, q = policy.softmax(-1)[0], reference.softmax(-1)[0]
    reverse = torch.autograd.grad((q * (q.log() - p.log())).sum(), policy)[0]
    assert not torch.allclose(weighted, reverse, rtol=0.1)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_a_policy_equal_to_its_reference_has_no_penalty(estimator):
    policy, behavior, _ = policies(ONE)
    found = average(ONE, policy, behavior, policy.detach(), estimator)
    assert found.item() == pytest.approx(0, abs=1e-14)
    if estimator != "k1":  # their minimum is there; k1's average gradient vanishes too, its samples' don't
        assert torch.autograd.grad(found, policy)[0].abs().max() < 1e-14


def test_k3_is_the_default():
    logp, behavior_logp, reference_logp = torch.tensor([[[-1.0]], [[-1.5]], [[-0.5]]])
    found = reference_kl(logp, behavior_logp, reference_logp)
    assert torch.equal(found, reference_kl(logp, behavior_logp, reference_logp, "k3"))


def test_the_entropy_bonus_is_a_loss():
    assert torch.equal(entropy_bonus(torch.tensor([[0.5, 2.0]])), torch.tensor([[-0.5, -2.0]]))


def entropies(logits):
    choices = logits.log_softmax(-1)
    return -(choices.exp() * choices).sum(-1)


def test_ibro_raises_the_entropy_of_good_responses_and_lowers_that_of_bad_ones():
    logits = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    advantage = torch.tensor([[1.5], [-0.5], [0.0], [1.0]], dtype=torch.float64).expand(4, 3)
    loss = advantage_weighted_entropy(entropies(logits), advantage)
    for i, a in enumerate((1.5, -0.5, 0.0, 1.0)):
        for t in range(3):
            p = logits[i, t].detach().softmax(-1).tolist()
            assert loss[i, t].item() == pytest.approx(a * sum(q * math.log(q) for q in p), rel=1e-12)
    assert torch.equal(loss[3], entropy_bonus(entropies(logits))[3]), "with advantage 1 it is the entropy bonus"
    (slope,) = torch.autograd.grad(loss.sum(), logits)
    change = entropies(logits - 1e-3 * slope) - entropies(logits)
    assert (change[0] > 0).all() and (change[1] < 0).all() and not change[2].any()
    assert torch.autograd.gradcheck(lambda x: advantage_weighted_entropy(entropies(x), advantage), (logits,))
