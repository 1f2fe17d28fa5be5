"""oneDNN linear layers against torch's own: values, gradients, second derivatives; and when they are not used."""

import copy

import pytest
import torch
from tiny import MODELS, sharp
from torch import nn

from grape_rl.model import onednn_linear
from grape_rl.model.onednn_linear import ONEDNN_IS_FASTER, OneDNNLinear, matmul_nt, padding_multiple, use_onednn_linear

needs_onednn = pytest.mark.skipif(not ONEDNN_IS_FASTER, reason="the processor has no AVX-512, or torch no oneDNN")


@pytest.fixture(autouse=True)
def any_size(monkeypatch):
    monkeypatch.setattr(onednn_linear, "MIN_MULTIPLICATIONS", 1)


def field(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layers(bias):
    torch.manual_seed(0)
    plain = nn.Linear(5, 7, bias=bias)
    module = nn.Sequential(copy.deepcopy(plain))
    use_onednn_linear(module)
    assert isinstance(module[0], OneDNNLinear)
    return plain.double(), module[0]


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5)])
def test_values_and_gradients_are_those_of_float64(shape, bias):
    plain, ours = layers(bias)
    x = field(*shape)
    for inputs in ((x, *ours.parameters()), (x.double(), *plain.parameters())):
        inputs[0].requires_grad_()
    y = x.double().detach().requires_grad_()
    out, expected = ours(x), plain(y)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=1e-6)
    weight = field(*out.shape, seed=1)
    found = torch.autograd.grad((out.sin() * weight).sum(), [x, *ours.parameters()])
    wanted = torch.autograd.grad((expected.sin() * weight).sum(), [y, *plain.parameters()])
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=0, atol=1e-5)


@needs_onednn
def test_it_can_be_differentiated_twice():
    plain, ours = layers(True)

    def second(layer, x):
        (slope,) = torch.autograd.grad(layer(x).pow(3).sum(), layer.weight, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), [layer.weight, layer.bias, x])

    x = field(3, 5)
    found = second(ours, x.clone().requires_grad_())
    expected = second(plain, x.double().requires_grad_())
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-3)


@needs_onednn
def test_products_of_transposed_tensors_are_equal():
    a, b = field(4, 6), field(5, 6, seed=1)
    expected = a.double() @ b.double().t()
    for one in (a, a.t().contiguous().t()):
        for other in (b, b.t().contiguous().t()):
            torch.testing.assert_close(matmul_nt(one, other).double(), expected, rtol=0, atol=1e-5)


def test_other_types_and_autocast_are_left_to_torch(monkeypatch):
    def refused(*_):
        raise AssertionError("oneDNN was called")

    monkeypatch.setattr(onednn_linear, "ONEDNN", refused)
    module = nn.Sequential(nn.Linear(5, 7))
    module[0].__class__ = OneDNNLinear
    with torch.autocast("cpu", torch.bfloat16):
        assert module(field(3, 5)).dtype == torch.bfloat16
    assert module(field(0, 5)).shape == (0, 7), "nothing to multiply"
    assert copy.deepcopy(module).double()(field(3, 5).double()).dtype == torch.float64
    assert matmul_nt(field(2, 3).double(), field(4, 3).double()).dtype == torch.float64


def test_a_small_product_is_left_to_torch(monkeypatch):
    monkeypatch.setattr(onednn_linear, "MIN_MULTIPLICATIONS", 3 * 5 * 7 + 1)
    monkeypatch.setattr(onednn_linear, "ONEDNN", None)
    module = nn.Linear(5, 7)
    module.__class__ = OneDNNLinear
    assert module(field(3, 5)).shape == (3, 7)


@needs_onednn
def test_a_model_keeps_its_names_and_weights_and_every_linear_layer_uses_onednn():
    model = sharp(MODELS["qwen2"], torch.float32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ids = torch.tensor([[5, 9, 3, 17, 4]])
    expected = model(input_ids=ids).logits
    use_onednn_linear(model)
    assert not any(type(module) is nn.Linear for module in model.modules())
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    torch.testing.assert_close(model(input_ids=ids).logits, expected, rtol=0, atol=2e-4)  # logits of a few tens


@pytest.mark.parametrize("n", [1, 7, 31, 32, 63, 64, 100, 1000, 4097])
def test_rounding_up_adds_a_sixteenth_at_most(n):
    size = n + -n % padding_multiple(n)
    assert n <= size <= n * 17 / 16
    assert len({k + -k % padding_multiple(k) for k in range(1024, 2048)}) <= 33
