"""Packing: the layout of the row, and both implementations of attention against a forward pass per sequence."""

import pytest
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import MODELS, SHAPE, VOCABULARY, alone, apart, exactness, gradient, sequences, sharp

from grape_rl.model import logprobs as passes
from grape_rl.model.cpu_attention import cpu_attention
from grape_rl.model.logprobs import compute_logprobs, masked_logits
from grape_rl.model.packing import pack
from grape_rl.model.padded_attention import padded_attention
from grape_rl.types import Sequences

MIXED = sequences([3, 9, 6], [[7, 2], [5, 9, 1], [4]])
MODELS_AND_SINKS = MODELS | {
    "gpt-oss, sinks": lambda: hf.GptOssForCausalLM(
        hf.GptOssConfig(
            **SHAPE, head_dim=4, num_local_experts=2, num_experts_per_tok=1, sliding_window=4,
            layer_types=["sliding_attention", "full_attention"],
            rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        )
    )
}  # fmt: skip


def test_the_layout_of_the_row():
    given = Sequences(
        (torch.tensor([1, 2]), torch.tensor([3, 4, 5])),
        torch.tensor([[6, 7, 8], [9, 10, 0], [11, 12, 13]]),
        torch.tensor([[True, True, False], [True, True, False], [True, False, True]]),
        torch.tensor([1, 0, 1]),
    )
    packed = pack(given)
    # Prompt 0 with its only response, prompt 1, then its two responses; of each response all but the last masked token.
    assert packed.tokens.tolist() == [1, 2, 9, 3, 4, 5, 6, 11, 12]
    assert packed.positions.tolist() == [0, 1, 2, 0, 1, 2, 3, 3, 4]
    assert (packed.prefix_lengths, packed.suffix_lengths, packed.parent) == ((3, 3), (1, 2), (1, 1))
    assert packed.predictor[:, :2].tolist() == [[5, 6], [1, 2], [5, 7]] and packed.predictor[2, 2] == 8
    assert packed.max_length == 5
    unshared = pack(given, share_prompts=False)
    assert unshared.tokens.tolist() == [3, 4, 5, 6, 1, 2, 9, 3, 4, 5, 11, 12]
    assert (unshared.prefix_lengths, unshared.suffix_lengths) == ((4, 3, 5), ())


def test_a_response_of_one_token_is_not_read_at_all():
    packed = pack(sequences([2], [[1, 1, 3]]))
    assert (packed.prefix_lengths, packed.suffix_lengths) == ((2,), (2,))
    assert packed.predictor[:, 0].tolist() == [1, 1, 1]


@pytest.mark.parametrize("name", MODELS_AND_SINKS)
def test_padded_attention_equals_cpu_attention_and_has_the_same_gradient(name, monkeypatch):
    """Other tests here and in test_logprobs.py use cpu_attention, since this is a CPU; a GPU uses padded_attention."""
    dtype, tolerance = exactness(name)
    model = sharp(MODELS_AND_SINKS[name], torch.float32 if "sinks" in name else dtype)
    weight = torch.linspace(-1, 2, MIXED.mask.numel()).reshape(MIXED.mask.shape)
    tolerance = tolerance if name.startswith(("gpt2", "gemma2")) else 1e-5
    expected_logp, expected_entropy = alone(model, MIXED, 1.0)
    expected = gradient(model, (weight * expected_logp).sum())
    for batch in (MIXED, apart(MIXED)):
        for attention in (cpu_attention, padded_attention):
            monkeypatch.setattr(passes, "packed_attention", attention)
            outputs = compute_logprobs(model, batch)
            torch.testing.assert_close(outputs.logp, expected_logp, rtol=0, atol=max(tolerance, 1e-10))
            torch.testing.assert_close(outputs.entropy, expected_entropy, rtol=0, atol=max(tolerance, 1e-10))
            found = gradient(model, (weight * outputs.logp).sum())
            torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * expected.abs().max().item())


POLICY = sharp(MODELS["qwen2"])


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.lists(st.integers(1, 9), min_size=1, max_size=4)), min_size=1, max_size=4),
    st.integers(0, 2**16),
)
def test_any_packed_batch_equals_its_rows_alone_and_has_almost_no_padding(plan, seed):
    given = sequences([p for p, _ in plan], [lengths for _, lengths in plan], seed)
    seen = []
    hook = POLICY.base_model.register_forward_pre_hook(
        lambda module, args, named: seen.append(named["input_ids"].shape), with_kwargs=True
    )
    with torch.no_grad():
        found = compute_logprobs(POLICY, given)
    hook.remove()
    real = sum(p for p, _ in plan) + sum(n - 1 for _, lengths in plan for n in lengths)
    assert len(seen) == 1 and real <= seen[0][1] <= real * 17 / 16, "except for one prefix of padding"
    logp, _ = alone(POLICY, given, 1.0)
    torch.testing.assert_close(found.logp, logp, rtol=0, atol=1e-10)


def test_in_float32_the_gradient_is_the_plain_one_up_to_rounding():
    """Within 1e-5 of the largest component, for full, grouped-query and sliding-window attention."""
    for name in ("gpt2, absolute", "qwen2", "llama", "mistral, window 4"):
        model = sharp(MODELS[name], torch.float32)
        with (
            torch.no_grad()
        ):  # milder than sharp: in single precision it is rounding that is to be seen, not its growth
            for parameter in model.parameters():
                if parameter.dim() >= 2:
                    parameter.mul_(0.2)
        weight = torch.linspace(-1, 2, MIXED.mask.numel()).reshape(MIXED.mask.shape)
        expected = gradient(model, (weight * alone(model, MIXED, 1.0)[0]).sum())
        found = gradient(model, (weight * compute_logprobs(model, MIXED).logp).sum())
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max(), name
        assert (found - expected).norm() <= 1e-5 * expected.norm(), name


def test_a_second_derivative_is_refused_by_cpu_attention_and_computed_by_padded_attention():
    weights = [p for p in POLICY.parameters() if p.dim() >= 2]
    logits = masked_logits(POLICY, MIXED)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        logits = masked_logits(POLICY, MIXED)
        (slope,) = torch.autograd.grad(logits.logsumexp(dim=1).sum(), weights[1], create_graph=True)
        torch.autograd.grad(slope.square().sum(), weights[1])
    hidden = passes.hidden_states(POLICY, MIXED)
    with pytest.raises(RuntimeError, match="differentiated once only"):
        torch.autograd.grad(hidden.square().sum(), weights[1], create_graph=True)
    assert logits.shape == (int(MIXED.mask.sum()), VOCABULARY)


def test_under_autocast_attention_uses_its_type():
    model = sharp(MODELS["qwen2"], torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.2)
    exact = compute_logprobs(model, MIXED).logp
    with torch.autocast("cpu", torch.bfloat16):
        found = compute_logprobs(model, MIXED).logp
    assert found.dtype == torch.float32
    assert 0 < (found - exact).abs().max() < 0.1
