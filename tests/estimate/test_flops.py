"""Work against loops over single tokens, and FLOPs against torch's counter on real models."""

import pytest
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import MODELS, SHAPE, VOCABULARY, sequences
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from grape_rl.estimate import flops as module
from grape_rl.estimate.flops import (
    Work,
    count_flops,
    forward_work,
    generation_work,
    matmul_throughput,
    prefill_work,
    shape_of,
)
from grape_rl.types import Sequences

everything = settings(deadline=None)
EXPERTS = dict(**SHAPE, num_local_experts=4, num_experts_per_tok=2)
# Experts run one by one, in products that the counter supports; all of the 4 are used.
COUNTED = MODELS | {
    "qwen3, wide heads": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**SHAPE, head_dim=10)),
    "mixtral, experts": lambda: hf.MixtralForCausalLM(hf.MixtralConfig(**EXPERTS)),
}


def counted(model: hf.PreTrainedModel, rows: int, width: int) -> tuple[int, int]:
    """torch's FLOP counts of a forward pass over whole rows through the head, and of its backward pass."""
    model.set_attn_implementation("eager")  # which multiplies every query with every key: width² pairs per row
    ids = torch.arange(rows * width).reshape(rows, width) % VOCABULARY
    with FlopCounterMode(display=False) as forward:
        out = model(input_ids=ids, use_cache=False).logits.sum()
    with FlopCounterMode(display=False) as backward:
        out.backward()
    return forward.get_total_flops(), backward.get_total_flops()


@pytest.mark.parametrize("name", COUNTED)
def test_flops_equal_those_that_torch_counts(name):
    model = COUNTED[name]()
    if "experts" in name:
        model.set_experts_implementation("eager")
    work = Work(trunk_tokens=3 * 11, head_tokens=3 * 11, attention_pairs=3 * 11 * 11)
    assert counted(model, 3, 11) == (count_flops(model, work), count_flops(model, work, backward=True))


def test_only_chosen_tokens_reach_the_head_and_pairs_count_alone():
    model = MODELS["qwen2"]()
    trunk, head, pair = (count_flops(model, w) for w in (Work(1, 0, 0), Work(0, 1, 0), Work(0, 0, 1)))
    assert head == 2 * VOCABULARY * 16
    assert pair == 4 * 2 * 16  # two layers, and queries of 4 heads x 4
    assert trunk == 2 * 2 * (16 * 16 + 2 * 16 * 8 + 16 * 16 + 3 * 16 * 24)  # query, key and value, output, feed-forward
    assert count_flops(model, Work(5, 3, 7)) == 5 * trunk + 3 * head + 7 * pair


def test_frozen_weights_need_no_product_for_their_gradient():
    model = MODELS["llama"]()
    for weight in model.parameters():
        weight.requires_grad_(False)
    model.get_input_embeddings().weight.requires_grad_(True)  # so that inputs need a gradient
    work = Work(3 * 11, 3 * 11, 3 * 11 * 11)
    assert counted(model, 3, 11) == (count_flops(model, work), count_flops(model, work, backward=True))
    shape = shape_of(model)
    assert (shape.trunk_trained, shape.head_trained) == (0, 0)


def test_a_model_on_the_meta_device_costs_the_same():
    real = MODELS["gemma3"]()
    with torch.device("meta"):
        meta = MODELS["gemma3"]()
    work = Work(7, 5, 11)
    assert count_flops(meta, work) == count_flops(real, work) > 0
    assert shape_of(meta) == shape_of(real)


def test_a_reward_model_has_no_lm_head():
    scoring = hf.Qwen2ForSequenceClassification(hf.Qwen2Config(**SHAPE, num_labels=1))
    assert shape_of(scoring).head == shape_of(scoring).head_trained == 0
    assert count_flops(scoring, Work(5, 0, 7)) == count_flops(MODELS["qwen2"](), Work(5, 0, 7))


def test_only_the_text_part_of_a_vision_language_model_counts():
    text = dict(SHAPE, rope_parameters={"rope_type": "default", "mrope_section": [1, 1, 0], "rope_theta": 1e4})
    config = hf.Qwen2VLConfig(text_config=text)
    with torch.device("meta"):
        assert shape_of(hf.Qwen2VLForConditionalGeneration(config)).layers == 2


def test_a_model_without_attention_is_refused():
    config = hf.MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, state_size=4)
    with (
        torch.device("meta"),
        pytest.raises(ValueError, match="MambaForCausalLM: its configuration lacks the number of layers"),
    ):
        shape_of(hf.MambaForCausalLM(config))


def by_hand(prompts: list[list[int]]) -> Work:
    """The work token by token. Each list has a prompt's length, then the tokens that are read of each of its rows."""
    read = [i + 1 for length, *_ in prompts for i in range(length)]
    read += [length + i + 1 for length, *rows in prompts for row in rows for i in range(row)]
    return Work(len(read), 0, sum(read))


@everything
@given(st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=4), min_size=1, max_size=3))
def test_prefill_work_counts_every_token_and_its_attention_pairs(prompts):
    assert sum((prefill_work(length, rows) for length, *rows in prompts), Work()) == by_hand(prompts)


@everything
@given(st.lists(st.integers(1, 6), min_size=1, max_size=3), st.integers(1, 4), st.integers(1, 5))
def test_generation_work_reads_each_prompt_once_and_all_but_the_last_token(prompts, n, t):
    found = generation_work(prompts, n, t)
    assert found.head_tokens == len(prompts) * n * t
    assert found == by_hand([[length, *[t - 1] * n] for length in prompts]) + Work(head_tokens=found.head_tokens)


def test_forward_work_reads_the_tokens_before_masked_ones():
    given = sequences([3, 2, 4], [[4, 2], [5], [1]])
    assert forward_work(given) == by_hand([[3, 3, 1], [2, 4], [4, 0]]) + Work(head_tokens=12)
    gap = given.mask.clone()
    gap[0, :2] = False  # a tool's output, say: read, but not chosen
    gap[3] = False  # a row that is skipped, with its prompt
    found = forward_work(Sequences(given.prompts, given.tokens, gap, given.group))
    assert found == by_hand([[3, 3, 1], [2, 4]]) + Work(head_tokens=9)


def test_nothing_masked_is_no_work():
    given = sequences([3], [[2]])
    assert forward_work(Sequences(given.prompts, given.tokens, given.mask & False, given.group)) == Work()


def test_the_throughput_is_that_of_the_best_run(monkeypatch):
    now, sleeps = [0.0], iter([50.0, 4.0, 2.0, 3.0, 8.0, 8.0, 1.0, 9.0])

    def product(x, w):
        now[0] += next(sleeps)
        return x

    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(module, "_products", lambda device, dtype: [product])
    monkeypatch.setattr(module.torch, "rand", lambda *size, **kwargs: torch.ones(1))
    assert (
        matmul_throughput(torch.device("cpu"), torch.float32, seconds=58.5) == 2 * 1536**3 / 2.0
    )  # 50 + 4 + 2 + 3 > 58.5
    assert (
        matmul_throughput(torch.device("cpu"), torch.float32, seconds=0.0) == 2 * 1536**3 / 8.0
    )  # at least one run counts


def test_the_throughput_is_plausible():
    assert 1e8 < matmul_throughput(torch.device("cpu"), torch.float32, seconds=0.0) < 1e16


def test_memory_bandwidth_and_operation_latency(monkeypatch):
    cpu = torch.device("cpu")
    assert 1e7 < module.memory_bandwidth(cpu, seconds=0.0) < 1e13
    assert 1e-8 < module.operation_latency(cpu, seconds=0.0) < 1e-2
    runs = []
    monkeypatch.setattr(module, "_shortest", lambda once, device, seconds: runs.append(once()) or 2.0)
    assert module.memory_bandwidth(cpu) == 2 * runs[0].nbytes / 2.0  # read and written
    assert module.operation_latency(cpu) == 2.0 / runs[1].item()


def test_the_global_generator_is_left_alone():
    torch.manual_seed(0)
    wanted = torch.rand(3)
    torch.manual_seed(0)
    matmul_throughput(torch.device("cpu"), torch.bfloat16, seconds=0.0)
    assert torch.equal(torch.rand(3), wanted)


def test_every_implementation_multiplies_by_the_transpose():
    x, w = torch.rand(3, 5), torch.rand(4, 5)
    ways = module._products(torch.device("cpu"), torch.float32)
    assert len(ways) == 1 + hasattr(torch.ops.mkldnn, "_linear_pointwise")
    for way in ways:
        torch.testing.assert_close(way(x, w), x @ w.T)
    assert module._products(torch.device("cpu"), torch.bfloat16) == [nn.functional.linear]


def test_the_faster_implementation_counts(monkeypatch):
    monkeypatch.setattr(module, "_products", lambda device, dtype: [lambda x, w: 4.0, lambda x, w: 2.0])
    monkeypatch.setattr(module, "_shortest", lambda once, device, seconds: once())
    assert matmul_throughput(torch.device("cpu"), torch.float32) == 2 * 1536**3 / 2.0
