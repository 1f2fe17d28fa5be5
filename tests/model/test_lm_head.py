"""The LM head's log-probabilities and entropies against torch's softmax, and their gradients."""

import math

import pytest
import torch
from tiny import MODELS, exactness, sharp
from torch import nn

from grape_rl.model import lm_head as heads
from grape_rl.model.lm_head import LMHead, lm_head_of, logits_of, token_logprobs


def field(*shape, seed=0):
    return 3.0 * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def identity_head(logits, bias=None):
    """An LM head whose logits are its inputs."""
    return LMHead(torch.eye(logits.shape[-1], dtype=logits.dtype), bias)


def assert_near(actual, expected, tolerance=1e-12):
    """Assert equality up to a dozen float64 roundings of numbers up to a few tens."""
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 3.0])
def test_values_are_those_of_torchs_softmax_and_the_entropy_spelled_out(temperature):
    logits, tokens = field(6, 9), torch.tensor([0, 8, 3, 3, 1, 5])
    logp, entropy = token_logprobs(identity_head(logits), logits, tokens, temperature)
    for row in range(6):
        logprobs = torch.log_softmax(logits[row] / temperature, dim=-1).tolist()
        assert_near(logp[row].item(), logprobs[tokens[row]])
        assert_near(entropy[row].item(), -math.fsum(math.exp(c) * c for c in logprobs))


def test_logits_too_large_for_an_exponential_are_handled():
    logp, entropy = token_logprobs(identity_head(large := torch.tensor([[1e4, 1e4, -1e4]])), large, torch.tensor([1]))
    assert logp.item() == pytest.approx(-math.log(2), abs=1e-6)  # float32
    assert entropy.item() == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("output", [0, 1])
def test_gradients_are_those_of_finite_differences(temperature, output):
    logits, tokens = field(4, 5).requires_grad_(), torch.tensor([0, 4, 2, 2])
    assert torch.autograd.gradcheck(lambda z: token_logprobs(identity_head(z), z, tokens, temperature)[output], logits)


def test_both_gradients_add_up():
    logits, tokens = field(4, 5).requires_grad_(), torch.tensor([0, 4, 2, 2])

    def both(z):
        logp, entropy = token_logprobs(identity_head(z), z, tokens, 0.7)
        return logp.square() + entropy.sin()

    assert torch.autograd.gradcheck(both, logits)


def test_a_second_derivative_is_refused():
    logits = field(2, 5).requires_grad_()
    logp, _ = token_logprobs(identity_head(logits), logits, torch.tensor([0, 4]))
    with pytest.raises(RuntimeError, match="differentiated once only"):
        torch.autograd.grad(logp.sum(), logits, create_graph=True)


@pytest.mark.parametrize("tile", [0, 3, 12])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_token_that_is_ruled_out_contributes_nothing_and_gets_no_gradient(temperature, tile):
    logits, out = field(3, 6).requires_grad_(), torch.zeros(6, dtype=torch.float64)
    out[[1, 4]] = -torch.inf
    logp, entropy = token_logprobs(identity_head(logits, out), logits, torch.tensor([0, 4, 5]), temperature, tile)
    (found,) = torch.autograd.grad(logp[[0, 2]].sum() + entropy.sum(), logits)

    rest = logits.detach()[:, [0, 2, 3, 5]].requires_grad_()
    smaller_logp, smaller_entropy = token_logprobs(identity_head(rest), rest, torch.tensor([0, 1, 3]), temperature)
    (expected,) = torch.autograd.grad(smaller_logp[[0, 2]].sum() + smaller_entropy.sum(), rest)

    assert logp[1] == -torch.inf
    assert_near(logp[[0, 2]], smaller_logp[[0, 2]])
    assert_near(entropy, smaller_entropy)
    assert_near(found[:, [0, 2, 3, 5]], expected)
    assert torch.equal(found[:, [1, 4]], torch.zeros(3, 2, dtype=torch.float64))


@pytest.mark.parametrize("head", [{}, {"scale": 0.3}, {"cap": 2.0, "scale": 1.7}])
@pytest.mark.parametrize("tile", [1, 11, 22, 33, 64 * 11, 64 * 11 * 7])
def test_tiles_change_neither_values_nor_gradients(tile, head, monkeypatch):
    layer = nn.Linear(4, 7, dtype=torch.float64)
    hidden, tokens = field(11, 4).requires_grad_(), torch.arange(11) % 7
    weights = torch.arange(1, 12, dtype=torch.float64)
    sizes = []

    def counted(x, weight):
        sizes.append(len(x) * len(weight))
        return x @ weight.t()

    def with_gradients(logp, entropy):
        loss = (logp * weights).sum() + (entropy * weights.flip(0)).sum()
        return logp, entropy, *torch.autograd.grad(loss, [hidden, layer.weight, layer.bias])

    logits = head.get("scale", 1.0) * layer(hidden)
    cap = head.get("cap")
    logprobs = ((cap * torch.tanh(logits / cap) if cap else logits) / 0.7).log_softmax(dim=1)
    expected = with_gradients(logprobs.gather(1, tokens[:, None])[:, 0], -(logprobs.exp() * logprobs).sum(dim=1))
    monkeypatch.setattr(heads, "matmul_nt", counted)
    found = token_logprobs(LMHead(layer.weight, layer.bias, **head), hidden, tokens, 0.7, tile)
    assert sum(sizes) == 77 and max(sizes) <= tile, "more logits than the tile existed at once"
    for one, other in zip(with_gradients(*found), expected, strict=True):
        assert_near(one, other)


def test_a_head_with_an_adapter_has_the_merged_weight():
    class Adapted(nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base, self.low, self.high = (
                base,
                nn.Parameter(field(2, 16, seed=1)),
                nn.Parameter(field(23, 2, seed=2)),
            )

        def forward(self, hidden):
            return self.base(hidden) + hidden @ self.low.t() @ self.high.t()

    model = sharp(MODELS["qwen2"])
    layer = Adapted(model.get_output_embeddings())
    model.set_output_embeddings(layer)
    hidden, tokens = field(3, 16), torch.tensor([4, 0, 22])
    logp, _ = token_logprobs(lm_head_of(model), hidden, tokens)
    plain = layer(hidden).log_softmax(dim=1).gather(1, tokens[:, None])[:, 0]
    assert_near(logp, plain)
    for parameter in (layer.low, layer.high):
        assert_near(
            torch.autograd.grad(logp.sum(), parameter, retain_graph=True)[0],
            torch.autograd.grad(plain.sum(), parameter, retain_graph=True)[0],
            1e-10,
        )


def test_autocast_takes_the_products_in_its_type_and_sums_in_float32():
    weight, hidden, tokens = field(50, 8).float().requires_grad_(), field(9, 8).float(), torch.arange(9)
    with torch.autocast("cpu", torch.bfloat16):
        logp, entropy = token_logprobs(LMHead(weight), hidden, tokens, tile=64)
    assert logp.dtype == entropy.dtype == torch.float32
    logits = (hidden.bfloat16() @ weight.detach().bfloat16().t()).float()
    assert_near(logp, logits.log_softmax(dim=1).gather(1, tokens[:, None])[:, 0], 1e-5)
    (found,) = torch.autograd.grad(logp.sum(), weight)
    assert found.dtype == torch.float32
    (exact,) = torch.autograd.grad(token_logprobs(LMHead(weight), hidden, tokens)[0].sum(), weight)
    assert 0 < (found - exact).abs().max() < 0.05 * exact.abs().max()


def test_zero_tokens_are_allowed():
    logp, entropy = token_logprobs(identity_head(none := field(0, 5)), none, torch.zeros(0, dtype=torch.long))
    assert logp.shape == entropy.shape == (0,)


@pytest.mark.parametrize("name", MODELS)
def test_the_head_gives_the_models_own_logits(name):
    dtype, tolerance = exactness(name)
    model = sharp(MODELS[name], dtype)
    ids = torch.tensor([[5, 9, 3, 17, 4]])
    with torch.no_grad():
        found = logits_of(model)(model.base_model(input_ids=ids).last_hidden_state[0])
        assert_near(found, model(input_ids=ids).logits[0], tolerance)


@pytest.mark.parametrize(
    ("name", "plain"),
    [("gemma2, soft caps", {"final_logit_softcapping": None}), ("granite, scaled", {"logits_scaling": 1.0})],
)
def test_caps_and_scales_matter(name, plain):
    model = sharp(MODELS[name], torch.float32)
    hidden = field(1, 16).float()
    scaled = logits_of(model)(hidden)
    model.config.update(plain)
    assert (scaled - logits_of(model)(hidden)).abs().max() > 0.1


def test_half_precision_hidden_states_give_logits_in_single():
    model = sharp(MODELS["qwen2"], torch.bfloat16)
    assert logits_of(model)(torch.zeros(1, 16, dtype=torch.bfloat16)).dtype == torch.float32


def test_a_model_without_a_head_is_refused():
    with pytest.raises(ValueError, match="Qwen2Model has no output embeddings"):
        logits_of(sharp(MODELS["qwen2"]).base_model)
