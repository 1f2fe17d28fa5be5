"""Surrogate losses per token: values against loops, gradients against differences, and tokens without gradient."""

import math

import pytest
import torch

from grape_rl.maths.surrogate import cispo, clipped, policy_gradient, ratio, sequence_clipped


def fields(seed=0, rows=6, columns=5):
    """Log-ratios from −0.9 to 0.9, so inside and outside of every bound, and advantages of both signs."""
    generator = torch.Generator().manual_seed(seed)
    logp = -3 * torch.rand(rows, columns, generator=generator, dtype=torch.float64)
    behavior_logp = logp + 1.8 * torch.rand(rows, columns, generator=generator, dtype=torch.float64) - 0.9
    advantage = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    mask = torch.rand(rows, columns, generator=generator) < 0.7
    return logp.requires_grad_(), behavior_logp, advantage, mask


def clip(x, low, high):
    return max(low, min(high, x))


def entries(*tensors):
    return zip(*(tensor.detach().flatten().tolist() for tensor in tensors), strict=True)


def gradient(loss, logp):
    return torch.autograd.grad(loss.sum(), logp)[0]


def close(found, expected):
    torch.testing.assert_close(found.flatten().tolist(), expected, rtol=1e-12, atol=1e-12)


def test_values_against_loops():
    logp, old, advantage, _ = fields()
    close(policy_gradient(logp, advantage), [-a * x for x, a in entries(logp, advantage)])
    close(ratio(logp, old, advantage), [-a * math.exp(x - o) for x, o, a in entries(logp, old, advantage)])
    expected = []
    for x, o, a in entries(logp, old, advantage):
        rho = math.exp(x - o)
        expected.append(max(-rho * a, -clip(rho, 0.9, 1.4) * a))
    close(clipped(logp, old, advantage, clip_low=0.1, clip_high=0.4), expected)
    expected = [-clip(math.exp(x - o), 0.5, 1.28) * a * x for x, o, a in entries(logp, old, advantage)]
    close(cispo(logp, old, advantage, clip_low=0.5), expected)


@pytest.mark.parametrize("bounds", [{}, {"clip_low": 0.1, "clip_high": 0.2}])
def test_sequence_clipped_against_a_loop(bounds):
    logp, old, advantage, mask = fields()
    low, high = 1 - bounds.get("clip_low", 3e-4), 1 + bounds.get("clip_high", 4e-4)
    expected = []
    for row in range(len(mask)):
        own = mask[row].tolist()
        d = [x - o for (x, o), m in zip(entries(logp[row], old[row]), own, strict=True) if m]
        rho = math.exp(math.fsum(d) / len(d))
        expected += [max(-rho * a, -clip(rho, low, high) * a) for a in advantage[row].tolist()]
    close(sequence_clipped(logp, old, advantage, mask, **bounds), expected)


def test_sequence_clipped_reads_only_the_mask():
    logp, old, advantage, mask = fields()
    mask[0] = False
    loss = sequence_clipped(logp, old, advantage, mask, 0.9, 0.9)
    hidden = logp.detach().masked_fill(~mask, torch.nan)
    assert torch.equal(sequence_clipped(hidden, old, advantage, mask, 0.9, 0.9), loss.detach())
    close(loss[0], (-advantage[0]).tolist())  # no token, nothing to compare: a ratio of 1
    assert not gradient(loss, logp)[~mask].any()


def test_gradients_against_differences():
    """In every differentiable argument, away from the bounds' corners."""
    logp, old, advantage, mask = fields()
    both = (logp, old.requires_grad_(), advantage.requires_grad_())
    assert torch.autograd.gradcheck(policy_gradient, (logp, advantage))
    assert torch.autograd.gradcheck(ratio, both)
    assert torch.autograd.gradcheck(clipped, both)
    assert torch.autograd.gradcheck(lambda *args: clipped(*args, clip_low=0.05, clip_high=0.5), both)
    assert torch.autograd.gradcheck(lambda *args: sequence_clipped(*args, mask, 0.1, 0.2), both)
    # CISPO's weight is a constant by decree; where it is clipped from both sides to one value it really is one.
    assert torch.autograd.gradcheck(lambda *args: cispo(*args, clip_low=-0.3, clip_high=0.3), both)


def test_cispo_weights_the_policy_gradient_and_drops_no_token():
    logp, old, advantage, _ = fields()
    found = gradient(cispo(logp, old, advantage), logp)
    close(found, [-min(math.exp(x - o), 1.28) * a for x, o, a in entries(logp, old, advantage)])
    assert (found != 0).all()
    assert ((logp - old).exp() > 1.28).any()


def at_ratio(*rhos):
    """One token at each of these ratios, with a log-probability that can be differentiated."""
    logp = torch.full((1, len(rhos)), -1.5, dtype=torch.float64, requires_grad=True)
    return logp, logp.detach() - torch.tensor([rhos], dtype=torch.float64).log()


@pytest.mark.parametrize(("a", "kept"), [(1.0, [1, 1, 1, 1, 0]), (-1.0, [0, 1, 1, 1, 1])])
def test_the_default_bounds_are_ppos(a, kept):
    logp, old = at_ratio(0.799, 0.801, 1.0, 1.199, 1.201)
    found = gradient(clipped(logp, old, torch.full_like(old, a)), logp)
    assert (found != 0).long().tolist() == [kept]


def test_cispo_has_no_lower_bound_by_default():
    logp, old = at_ratio(1e-3, 0.05, 1.0, 1.279, 1.281)
    found = gradient(cispo(logp, old, torch.ones_like(old)), logp)
    close(found, [-1e-3, -0.05, -1.0, -1.279, -1.28])


def test_for_one_token_sequence_clipped_has_the_token_ratio():
    logp, old = at_ratio(1.5, 0.1, 0.2)
    mask = torch.tensor([[True, False, False]])
    loss = sequence_clipped(logp, old, torch.ones_like(old), mask, 0.9, 9.0)
    close(loss, [-1.5, -1.5, -1.5])


def test_clipped_drops_exactly_the_tokens_past_their_bound():
    logp, old, advantage, _ = fields()
    found = gradient(clipped(logp, old, advantage), logp).flatten().tolist()
    kinds = set()
    for slope, (x, o, a) in zip(found, entries(logp, old, advantage), strict=True):
        rho = math.exp(x - o)
        done = (a > 0 and rho > 1.2) or (a < 0 and rho < 0.8)
        assert slope == 0 if done else math.isclose(slope, -a * rho, rel_tol=1e-12)
        kinds.add((a > 0, rho > 1.2, rho < 0.8))
    assert len(kinds) == 6  # both signs; inside, above and below


@pytest.mark.parametrize(
    "loss",
    [
        lambda logp, old, advantage, mask: policy_gradient(logp, advantage),
        lambda logp, old, advantage, mask: ratio(logp, old, advantage),
        lambda logp, old, advantage, mask: clipped(logp, old, advantage),
        lambda logp, old, advantage, mask: sequence_clipped(logp, old, advantage, mask),
        lambda logp, old, advantage, mask: cispo(logp, old, advantage),
    ],
)
class TestAtTheBehaviorPolicy:
    """At rho = 1 all are alike."""

    def test_descent_raises_the_likelihood_of_positive_advantages(self, loss):
        logp, _, advantage, mask = fields()
        advantage = advantage[:, :1].expand_as(logp)
        mask[:] = True
        step = -gradient(loss(logp, logp.detach(), advantage, mask), logp)
        assert torch.equal(step.sign(), advantage.sign())

    def test_a_zero_advantage_has_no_gradient(self, loss):
        logp, old, _, mask = fields()
        assert not gradient(loss(logp, old, torch.zeros_like(old), mask), logp).any()

    def test_the_loss_is_finite_where_the_mask_is_empty(self, loss):
        logp, old, advantage, mask = fields()
        assert loss(logp, old, advantage, torch.zeros_like(mask)).isfinite().all()


def test_float32_stays_float32():
    logp, old, advantage = (field.detach().float() for field in fields()[:3])
    mask = fields()[3]
    for loss in (
        policy_gradient(logp, advantage),
        ratio(logp, old, advantage),
        clipped(logp, old, advantage),
        sequence_clipped(logp, old, advantage, mask),
        cispo(logp, old, advantage),
    ):
        assert loss.dtype == torch.float32
        assert loss.shape == logp.shape
