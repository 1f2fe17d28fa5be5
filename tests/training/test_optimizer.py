"""The optimizer's groups, its step against AdamW written out, and the learning rate over the steps."""

import itertools
import math

import pytest
import torch

from grape_rl.model.value_head import PolicyWithValue
from grape_rl.training.optimizer import adamw, grad_norm_modules, learning_rate, set_learning_rate


def test_matrices_decay_and_nothing_else_does():
    model = torch.nn.Sequential(torch.nn.Embedding(5, 3), torch.nn.LayerNorm(3), torch.nn.Linear(3, 2))
    frozen = model[2].weight.requires_grad_(False)
    optimizer = adamw(model, 0.1, (0.9, 0.95))
    decay = {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert frozen not in decay
    assert decay == {model[0].weight: 0.1, model[1].weight: 0.0, model[1].bias: 0.0, model[2].bias: 0.0}
    assert all(group["betas"] == (0.9, 0.95) for group in optimizer.param_groups)


def test_a_model_of_matrices_alone_has_one_group():
    assert len(adamw(torch.nn.Linear(2, 2, bias=False), 0.0, (0.9, 0.95)).param_groups) == 1


def test_a_value_function_learns_at_a_rate_of_its_own_and_keeps_it_when_a_run_goes_on():
    policy = torch.nn.Sequential(torch.nn.Embedding(5, 3), torch.nn.LayerNorm(3))
    whole = PolicyWithValue(policy, torch.nn.Linear(3, 1))
    assert grad_norm_modules(whole) == {"grad_norm": policy, "value_grad_norm": whole.value}
    assert grad_norm_modules(policy) == {"grad_norm": policy}

    def rates(optimizer):
        return {p: g["lr"] for g in optimizer.param_groups for p in g["params"]}

    optimizer = adamw(whole, 0.1, (0.9, 0.95), value_rate=5.0)
    set_learning_rate(optimizer, 0.02)
    values = {whole.value.weight, whole.value.bias}
    assert rates(optimizer) == {p: 0.02 * (5.0 if p in values else 1.0) for p in whole.parameters()}
    again = adamw(whole, 0.1, (0.9, 0.95), value_rate=5.0)
    again.load_state_dict(optimizer.state_dict())
    set_learning_rate(again, 0.04)
    assert rates(again)[whole.value.weight] == 0.2 and rates(again)[policy[1].weight] == 0.04


def test_two_steps_are_adamw_as_published():
    """Loshchilov & Hutter, algorithm 2, for a single number in Python's floats."""
    rate, decay, betas = 0.1, 0.2, (0.8, 0.9)
    model = torch.nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        model.weight.fill_(3.0)
    optimizer = adamw(model, decay, betas)
    weight, m, v = 3.0, 0.0, 0.0
    for step, slope in enumerate((2.0, -0.5), start=1):
        set_learning_rate(optimizer, rate)
        model.weight.grad = torch.tensor([[slope]], dtype=torch.float64)
        optimizer.step()
        m, v = betas[0] * m + (1 - betas[0]) * slope, betas[1] * v + (1 - betas[1]) * slope**2
        weight -= rate * decay * weight
        weight -= rate * (m / (1 - betas[0] ** step)) / (math.sqrt(v / (1 - betas[1] ** step)) + 1e-8)
        assert model.weight.item() == pytest.approx(weight, rel=1e-12)


def trained(optimizer, model, steps, seed):
    """The model after some steps by random gradients."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


def layers(dtype):
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Embedding(7, 5), torch.nn.LayerNorm(5), torch.nn.Linear(5, 33)).to(dtype)


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
def test_the_fused_step_is_the_plain_one(dtype, close):
    ours, plain = layers(dtype), layers(dtype)
    optimizer = adamw(ours, 0.1, (0.9, 0.95))
    assert optimizer.defaults["fused"]
    groups = [{"params": [p], "weight_decay": 0.1 if p.ndim > 1 else 0.0} for p in plain.parameters()]
    other = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95), foreach=False, fused=False)
    set_learning_rate(optimizer, 0.01)
    for a, b in zip(trained(optimizer, ours, 5, 1), trained(other, plain, 5, 1), strict=True):
        torch.testing.assert_close(a, b, rtol=close, atol=close)


def test_a_parameter_on_a_device_that_has_no_fused_step_gets_the_plain_one():
    assert not adamw(torch.nn.Linear(2, 2, device="meta"), 0.0, (0.9, 0.95)).defaults["fused"]


@pytest.mark.parametrize("fused", [True, False, None])
def test_the_state_of_an_optimizer_goes_on_to_the_same_bits_as_it_began(fused, tmp_path):
    """A checkpoint from before the fused step too: its run goes on by the plain one."""
    straight, halved = layers(torch.float32), layers(torch.float32)
    first, second = (adamw(model, 0.1, (0.9, 0.95)) for model in (straight, halved))
    for optimizer in (first, second):
        set_learning_rate(optimizer, 0.01)
        for group in optimizer.param_groups:
            group["fused"] = fused
    expected = [trained(first, straight, 3, seed) for seed in (1, 2)][1]
    trained(second, halved, 3, 1)
    torch.save(second.state_dict(), tmp_path / "state.pt")
    again = adamw(halved, 0.1, (0.9, 0.95))
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert all(group["fused"] is fused for group in again.param_groups)
    found = trained(again, halved, 3, 2)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_the_rate_rises_and_falls():
    rates = [learning_rate(step, 10, 2.0, 4, "constant") for step in range(10)]
    assert rates == pytest.approx([0.5, 1.0, 1.5, 2.0] + 6 * [2.0])
    linear = [learning_rate(step, 10, 2.0, 4, "linear") for step in range(10)]
    assert linear == pytest.approx([0.5, 1.0, 1.5, 2.0] + [2 * k / 6 for k in (6, 5, 4, 3, 2, 1)])
    assert all(learning_rate(step, 10, 2.0, 4, "linear") > 0 for step in range(10)), "no step is wasted"


def test_a_cosine_falls_from_the_peak_to_almost_nothing_and_is_halfway_in_the_middle():
    """It should rise over the warm-up to the peak, and go down to 0, slowly at both ends."""
    rates = [learning_rate(step, 24, 1.0, 4, "cosine") for step in range(24)]
    assert rates[3] == rates[4] == 1.0
    assert rates[14] == pytest.approx(0.5)
    falls = [a - b for a, b in itertools.pairwise(rates[4:])]
    assert all(fall > 0 for fall in falls)
    assert falls[0] < falls[9] > falls[-1]
    assert 0 < rates[-1] < 0.01


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_a_run_that_is_all_warm_up(schedule):
    assert [learning_rate(step, 2, 1.0, 4, schedule) for step in range(2)] == [0.25, 0.5]
