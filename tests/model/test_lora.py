"""LoRA adapters: no change when new, only adapters are trained, and equal policies when merged, saved and copied.

Comparisons are in float64, so that they differ only by the order of sums.
"""

import sys

import peft
import pytest
import torch
import transformers as hf

from grape_rl import ALGORITHMS
from grape_rl.methods import build_objective, resolve_options
from grape_rl.model.forward import ForwardContext
from grape_rl.model.load import copy_sharing_frozen, frozen_copy
from grape_rl.model.logprobs import compute_logprobs
from grape_rl.model.lora import add_adapters, has_adapters, load_adapter, merge_adapters, save_adapter
from grape_rl.model.sampler import SamplingParams, sample
from grape_rl.rollout.experience import TokenExperience
from grape_rl.training.optimizer import adamw
from grape_rl.training.update import UpdateSettings, gradient
from grape_rl.types import Sequences, TokenBatch
from precise import doubled

SHAPE = dict(vocab_size=17, pad_token_id=0, bos_token_id=1, eos_token_id=2)
LLAMA = dict(SHAPE, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=4)
LLAMA |= dict(num_key_value_heads=2, max_position_embeddings=32)
MODELS = {
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA)),
    "qwen2, tied, with biases": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**LLAMA, tie_word_embeddings=True)),
    "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**SHAPE, n_embd=8, n_layer=2, n_head=2, n_positions=32)),
}
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def built(name="llama", seed=0):
    """The model in float64, with random weights large enough for distributions far from uniform."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = doubled(MODELS[name]())
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2:
                p.mul_(20.0)
    return model.eval()


def with_nonzero_adapters(model, size=0.3):
    """The model with adapters that change its output."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(size * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return model


def experience():
    generator = torch.Generator().manual_seed(5)
    mask = torch.arange(6) < torch.tensor([4, 1, 6, 3, 5])[:, None]
    draw = lambda *shape: torch.randint(3, 17, shape, generator=generator)  # noqa: E731
    sequences = Sequences((draw(5), draw(2)), draw(5, 6), mask, torch.tensor([0, 0, 1, 1, 1]))
    behavior = (-3 * torch.rand(5, 6, generator=generator, dtype=torch.float64)).masked_fill(~mask, 0)
    advantage = torch.tensor([1.0, -0.5, 2.0, 0.7, -1.5], dtype=torch.float64)[:, None].expand(5, 6)
    return TokenExperience(sequences, TokenBatch(mask, behavior, behavior + 0.1, advantage), {})


def logp_of(model):
    with torch.no_grad():
        return compute_logprobs(model, experience().sequences).logp


def trainable(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("name", MODELS)
def test_new_adapters_change_no_bit_and_only_they_are_trained(name):
    model = built(name)
    before, whole = logp_of(model), model(input_ids=torch.arange(3, 12)[None]).logits
    prompts, drawn = [torch.arange(3, 8), torch.arange(3, 5)], SamplingParams(max_tokens=5)
    rollout = sample(model, prompts, 2, drawn, end=(2,), seed=4)
    assert not has_adapters(model)
    kind, own, fixed = type(model), {id(p) for p in model.parameters()}, sum(p.numel() for p in model.parameters())
    model = add_adapters(model, 2, 4.0, (), seed=1)
    assert type(model) is kind and has_adapters(model) and not model.training
    assert torch.equal(logp_of(model), before) and before.abs().max() > 1
    assert torch.equal(model(input_ids=torch.arange(3, 12)[None]).logits, whole)
    again = sample(model, prompts, 2, drawn, end=(2,), seed=4)
    assert torch.equal(again.tokens, rollout.tokens) and torch.equal(again.behavior_logp, rollout.behavior_logp)
    assert trainable(model) and all("lora_" in key for key in trainable(model))
    assert {id(p) for p in model.parameters() if not p.requires_grad} == own
    assert sum(p.numel() for p in model.parameters() if not p.requires_grad) == fixed
    layers = {key.rpartition(".lora_")[0].rpartition(".")[2] for key in trainable(model)}
    wanted = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert layers == ({"c_attn", "c_proj", "c_fc"} if name == "gpt2" else wanted), "all but the head"


def test_the_seed_determines_the_adapters_and_the_global_generator_is_unused():
    state = torch.get_rng_state()
    one, two, other = (trainable(add_adapters(built(), 2, 4.0, (), seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


def test_rank_alpha_and_targets_are_applied():
    """One layer by hand: W x + (alpha / rank) B A x."""
    model = built()
    weight = model.model.layers[1].self_attn.q_proj.weight.detach().clone()
    with_nonzero_adapters(add_adapters(model, 3, 5.0, ("layers.1.self_attn.q_proj",), seed=1))
    a, b = trainable(model).values()
    assert (a.shape, b.shape) == ((3, 8), (8, 3))
    assert {key.rpartition(".lora_")[0] for key in trainable(model)} == {"model.layers.1.self_attn.q_proj"}
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = x @ weight.T + 5 / 3 * (x @ a.T @ b.T)
    torch.testing.assert_close(model.model.layers[1].self_attn.q_proj(x), expected, **EXACT)


@pytest.mark.parametrize("name", MODELS)
def test_the_merged_model_is_the_same_policy(name):
    model = with_nonzero_adapters(add_adapters(built(name), 2, 4.0, (), seed=1))
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    plain = merge_adapters(model)
    assert not has_adapters(plain) and has_adapters(model)
    assert plain.state_dict().keys() == built(name).state_dict().keys()
    torch.testing.assert_close(logp_of(plain), logp_of(model), **EXACT)
    assert (logp_of(plain) - logp_of(built(name))).abs().max() > 0.1
    assert all(torch.equal(p, before[key]) for key, p in model.named_parameters())
    assert plain.get_output_embeddings().weight is model.get_output_embeddings().weight


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft asks for it
@pytest.mark.parametrize("name", MODELS)
def test_saved_adapters_load_in_peft_and_are_bit_identical(name, tmp_path):
    model = with_nonzero_adapters(add_adapters(built(name), 2, 4.0, (), seed=1))
    save_adapter(model, tmp_path / "adapter")
    start = add_adapters(built(name), 2, 4.0, (), seed=9)
    again = load_adapter(start, tmp_path / "adapter")
    assert torch.equal(logp_of(start), logp_of(built(name))), "the adapters are loaded into a copy"
    ours, theirs = trainable(model), trainable(again)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert torch.equal(logp_of(again), logp_of(model))
    other = peft.PeftModel.from_pretrained(built(name), tmp_path / "adapter")
    found = other(input_ids=torch.arange(3, 12)[None]).logits
    torch.testing.assert_close(found, model(input_ids=torch.arange(3, 12)[None]).logits, **EXACT)


def test_adapters_of_other_layers_are_refused(tmp_path):
    save_adapter(add_adapters(built(), 2, 4.0, ("q_proj",), seed=1), tmp_path / "adapter")
    with pytest.raises(ValueError, match="adapter: its adapters belong to other layers than the model's"):
        load_adapter(add_adapters(built(), 2, 4.0, (), seed=1), tmp_path / "adapter")


def test_a_copy_shares_the_weights_and_no_adapter():
    model = with_nonzero_adapters(add_adapters(built(), 2, 4.0, (), seed=1))
    reference, other, before = frozen_copy(model), copy_sharing_frozen(model), logp_of(model)
    assert not trainable(reference) and trainable(model).keys() == trainable(other).keys()
    for copied in (reference, other):
        for (key, p), q in zip(model.named_parameters(), copied.parameters(), strict=True):
            assert (p is q) == ("lora_" not in key)
    with_nonzero_adapters(model)
    assert torch.equal(logp_of(reference), before) and torch.equal(logp_of(other), before)
    assert (logp_of(model) - before).abs().max() > 0.1


def test_a_copy_of_a_model_that_is_trained_whole_shares_nothing():
    model = built()
    assert not {id(p) for p in model.parameters()} & {id(p) for p in frozen_copy(model).parameters()}
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens", "query", "proj", "norm"])
def test_a_target_that_is_no_linear_layer_is_refused(target):
    message = f"model.lora.targets: no linear layer is named '{target}'; choose from q_proj, k_proj, v_proj, o_proj, "
    with pytest.raises(ValueError, match=message):
        add_adapters(built(), 2, 4.0, ("q_proj", target), seed=1)


def test_without_peft_the_error_names_the_package_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError) as error:
        add_adapters(built(), 2, 4.0, (), seed=1)
    assert str(error.value) == "model.lora needs peft: pip install 'grape-rl[lora]'"


SETTINGS = UpdateSettings(ForwardContext(10_000, temperature=0.7), max_tokens=9, max_grad_norm=1e9, seed=3)


def gradients_of(model, method, tokens=10_000):
    """The gradient of a method's loss: what plain descent with rate 1 took off each parameter."""
    row = ALGORITHMS[method]
    goal = build_objective(row, resolve_options(row, {"kl": 0.1, "entropy": 0.01} if method == "grpo" else {}))
    settings = UpdateSettings(ForwardContext(tokens, temperature=0.7), 9, 1e9, 3)
    before = {key: p.detach().clone() for key, p in trainable(model).items()}
    gradient(model, torch.optim.SGD(trainable(model).values(), lr=1.0), experience(), goal, settings, step=0)
    with torch.no_grad():
        found = {key: before[key] - p for key, p in trainable(model).items()}
        for key, p in trainable(model).items():
            p.copy_(before[key])
    return found


@pytest.mark.parametrize("method", ["sft", "grpo"])
def test_the_gradient_of_an_adapter_is_the_merged_weight_s_by_the_chain_rule(method):
    """∂L/∂B = s G Aᵀ and ∂L/∂A = s Bᵀ G, G the gradient of the weight that s B A is added to."""
    model = with_nonzero_adapters(add_adapters(built(), 2, 4.0, (), seed=1))
    adapter_gradients, weight_gradients = (
        gradients_of(model, method),
        gradients_of(merge_adapters(model).requires_grad_(True), method),
    )
    layers = {key.rpartition(".lora_")[0] for key in adapter_gradients}
    assert len(layers) == 14
    for layer in layers:
        a, b = (trainable(model)[f"{layer}.lora_{which}.default.weight"].detach() for which in "AB")
        g = weight_gradients[f"{layer}.weight"]
        assert g.abs().max() > 1e-4
        torch.testing.assert_close(adapter_gradients[f"{layer}.lora_B.default.weight"], 2 * g @ a.T, **EXACT)
        torch.testing.assert_close(adapter_gradients[f"{layer}.lora_A.default.weight"], 2 * b.T @ g, **EXACT)


@pytest.mark.parametrize("method", ["sft", "grpo"])
def test_micro_batches_change_no_gradient_of_an_adapter(method):
    model = with_nonzero_adapters(add_adapters(built(), 2, 4.0, (), seed=1))
    whole = gradients_of(model, method)
    for tokens in (1, 20):
        found = gradients_of(model, method, tokens)
        for key in whole:
            torch.testing.assert_close(found[key], whole[key], **EXACT)


def test_the_optimizer_updates_only_adapters():
    model = with_nonzero_adapters(add_adapters(built(), 2, 4.0, (), seed=1))
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    row = ALGORITHMS["grpo"]
    optimizer = adamw(model, 0.1, (0.9, 0.95))
    for group in optimizer.param_groups:
        group["lr"] = 1e-2
    gradient(model, optimizer, experience(), build_objective(row, resolve_options(row, {})), SETTINGS, step=0)
    changed = {key for key, p in model.named_parameters() if not torch.equal(p, before[key])}
    assert changed == trainable(model).keys()
