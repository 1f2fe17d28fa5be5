"""A run's estimate: what its model holds, by a real forward pass; what a step runs, by its method; and its line."""

import re

import pytest
import torch

from grape_rl import ALGORITHMS
from grape_rl.cli import main
from grape_rl.estimate import plan
from grape_rl.estimate.cost import Machine
from grape_rl.estimate.fake_model import measure_footprint
from grape_rl.estimate.flops import Work, forward_work, generation_work
from grape_rl.estimate.plan import count_extra_models, estimated, plan_step
from grape_rl.methods import build_objective, resolve_options
from grape_rl.model.load import load
from grape_rl.model.lora import add_adapters
from grape_rl.setup.setup import Setup
from grape_rl.types import Sequences
from grape_rl.validation import load_config
from small_runs import settings, written

MACHINE = Machine(1e11, 1e10, 1e-6)
ROWS = [
    {"prompt": "12345+6=" * (1 + i % 3), "completion": "7" * (1 + i), "chosen": "123", "rejected": "45", "label": i > 3}
    for i in range(8)
]


def config(folder, method, **given):
    wanted = settings(folder, method) | {"prompts_per_step": 2, "group_size": 3} | given
    written(folder / "rows.jsonl", ROWS)
    return load_config(wanted)


def kept(model, ids):
    """Bytes that autograd really keeps of a forward pass over ``ids``, less the weights."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    del out
    return sum(storage.nbytes() for storage in found.values())


@pytest.mark.parametrize("lora", [None, {"rank": 4}, {"rank": 4, "targets": ["q_proj", "down_proj"]}])
def test_a_frame_holds_what_the_model_does(lora, tmp_path, model, tokenizer):
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    real, _ = load(str(tmp_path / "model"), torch.device("cpu"))
    if lora:
        add_adapters(real, lora["rank"], 8.0, lora.get("targets", ()), seed=0)
    asked = config(tmp_path, "sft", model={"name": str(tmp_path / "model"), "lora": lora})
    policy, frame = measure_footprint(asked, ROWS, reward_model=False)
    assert policy.context == 128 and policy.tokenizer.get_vocab() == tokenizer.get_vocab()
    assert frame.parameters == sum(p.numel() for p in real.parameters())
    assert frame.trained == sum(p.numel() for p in real.parameters() if p.requires_grad)
    assert frame.largest == max(p.numel() for p in real.parameters() if p.requires_grad)
    assert frame.vocabulary == len(tokenizer)
    cache = real.base_model(input_ids=torch.zeros(1, 7, dtype=torch.long), use_cache=True).past_key_values
    assert frame.cached == sum(4 * (each.keys.numel() + each.values.numel()) for each in cache.layers) / 7
    ids = torch.zeros(2, 64, dtype=torch.long)
    # Of longer rows attention keeps a few numbers a head beside; of single tokens it keeps one field otherwise.
    assert frame.activations == pytest.approx(kept(real, ids) / ids.numel(), rel=0.12)


def test_half_precision_keeps_less(tmp_path):
    whole, half = (measure_footprint(config(tmp_path, "sft", precision=p), ROWS, False)[1] for p in ("fp32", "bf16"))
    assert 0.5 * whole.activations < half.activations < 0.9 * whole.activations
    assert half.parameters == whole.parameters


def of(folder, method, **given):
    """A run's setup without a model, its source, and its first step's sequences."""
    asked = config(folder, method, **given)
    made = ALGORITHMS[method]
    source, options = made.source, resolve_options(made, asked.options)
    train, _ = source.rows(asked, options)
    policy, _ = measure_footprint(asked, train, source.trains_reward_model)
    setup = Setup(asked, options, build_objective(made, options), made.update, train, [], policy, policy)
    return setup, source, source.batches(setup)(0)


def test_a_step_of_grpo(tmp_path):
    setup, source, sequences = of(tmp_path, "grpo", log_kl=False, generation_batch_size=3)
    lengths = [len(prompt) for prompt in sequences.prompts]
    assert len(lengths) == 2 and sequences.mask.all() and sequences.mask.shape == (6, 10)
    step = plan_step(setup, source, sequences)
    assert step.decoded == generation_work(lengths, 3, 10)
    assert (step.decodes, step.rows, step.cached) == (20, 3, 3 * (max(lengths) + 10))  # a prompt at once
    assert step.learned == forward_work(sequences) and step.no_grad_passes == 0 and step.no_grad == Work()
    assert (step.microbatches, step.positions, step.chosen) == (1, step.learned.trunk_tokens, 60)
    assert count_extra_models(setup, source, sequences).references == 0
    setup, source, sequences = of(tmp_path, "grpo")
    step = plan_step(setup, source, sequences)
    assert (step.no_grad, step.no_grad_passes) == (forward_work(sequences), 1)
    assert count_extra_models(setup, source, sequences).references == 1


def test_epochs_parts_and_small_micro_batches(tmp_path):
    setup, source, sequences = of(tmp_path, "grpo", log_kl=False, options={"epochs": 3, "minibatches": 2})
    step = plan_step(setup, source, sequences)
    assert (step.updates, step.microbatches) == (6, 6)
    assert step.learned.head_tokens == 3 * 60 and step.chosen == 30
    setup, source, sequences = of(tmp_path, "grpo", log_kl=False, tokens_per_microbatch=40)
    step = plan_step(setup, source, sequences)
    assert step.microbatches > 1 and step.positions < step.learned.trunk_tokens
    assert step.learned.head_tokens == 60 and step.updates == 1


def test_a_value_function_reads_once_and_learns(tmp_path):
    setup, source, sequences = of(tmp_path, "ppo", log_kl=False, options={"kl_in_reward": 0.0})
    whole = forward_work(sequences)
    trunk = Work(whole.trunk_tokens, 0, whole.attention_pairs)
    step = plan_step(setup, source, sequences)
    assert (step.no_grad, step.learned, count_extra_models(setup, source, sequences).trunks) == (
        trunk,
        whole + trunk,
        1,
    )
    setup, source, sequences = of(tmp_path, "ppo", log_kl=False, options={"kl_in_reward": 0.0, "value_trunk": "shared"})
    step = plan_step(setup, source, sequences)
    assert (step.no_grad, step.learned, count_extra_models(setup, source, sequences).trunks) == (trunk, whole, 0)


@pytest.mark.parametrize(
    ("method", "reads", "fixed"),
    [
        ("sft", 0, 0),
        ("dpo", 0, 0),
        ("tdpo1", 1, 1),
        ("simpo", 0, 0),
        ("kto", 3, 1),
        ("reward_model", 0, 0),
        ("online_dpo", 2, 2),
    ],
)
def test_what_is_read_without_a_gradient(method, reads, fixed, tmp_path):
    setup, source, sequences = of(tmp_path, method)
    step = plan_step(setup, source, sequences)
    assert (step.no_grad_passes, count_extra_models(setup, source, sequences).references) == (reads, fixed)
    learned = step.learned.head_tokens
    assert learned == (4 * 10 if method == "online_dpo" else int(sequences.mask.sum()))  # a pair of each group of 3
    if reads:
        assert step.no_grad.head_tokens == (60 + learned if method == "online_dpo" else reads * learned)


def test_more_of_anything_takes_more(tmp_path):
    def estimate(**given):
        found = estimated(config(tmp_path, "grpo", **given), lambda *_: MACHINE)
        return sum(found.memory.values()) - found.memory["libraries"], sum(found.seconds.values())

    memory, seconds = estimate()
    for given in ({"group_size": 6}, {"sampling": {"max_tokens": 20}}, {"prompts_per_step": 4}):
        assert estimate(**given) > (memory, seconds), given
    less, longer = estimate(tokens_per_microbatch=40)
    assert less < memory and longer > seconds
    assert estimate(log_kl=False) < (memory, seconds)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"method": "trpo"}, "the cost of an update of trpo depends on the data"),
        (
            {"model": {"name": "nobody/nothing"}},
            "the model's files are needed, and nobody/nothing has none",
        ),
        (
            {"data": {"source": "nobody/rows"}},
            "the data's lengths are needed, and nobody/rows is not a file",
        ),
    ],
)
def test_what_can_not_be_estimated_says_why(given, why, tmp_path):
    with pytest.raises(ValueError, match=why):
        estimated(config(tmp_path, given.pop("method", "grpo"), **given), lambda *_: MACHINE)


def dry(folder, capsys, *given):
    """The last line of a dry run of SFT."""
    rows = written(folder / "rows.jsonl", ROWS)
    shape = ["--model.scratch.hidden", "32", "--model.scratch.layers", "2", "--model.scratch.heads", "2"]
    assert main(["train", "sft", "--data.source", str(rows), *shape, "--device", "cpu", *given, "--dry-run"]) == 0
    return capsys.readouterr().out.splitlines()[-1]


def test_a_dry_run_tells_the_estimate(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(plan, "measure_machine", lambda where, dtype: MACHINE)
    line = dry(tmp_path, capsys)
    assert re.match(r"estimate: about [\d.]+ GB at the peak \(libraries [\d.]+", line)
    assert " s a step (update " in line and line.endswith(" at the 100 GFLOP/s measured here")


def test_a_dry_run_goes_through_whatever_an_estimate_lacks(tmp_path, capsys, monkeypatch):
    assert dry(tmp_path, capsys, "--data.prompt", "question").startswith("estimate: none, since ")

    def broken(where, dtype):
        raise RuntimeError("no clock\nhere")

    monkeypatch.setattr(plan, "measure_machine", broken)
    assert dry(tmp_path, capsys) == "estimate: none, since no clock here"


def test_the_machine_is_measured_as_it_computes(monkeypatch):
    monkeypatch.setattr(plan, "matmul_throughput", lambda where, dtype: 1.0 if dtype == torch.bfloat16 else 2.0)
    monkeypatch.setattr(plan, "memory_bandwidth", lambda where: 3.0)
    monkeypatch.setattr(plan, "operation_latency", lambda where: 4.0)
    assert plan.measure_machine(torch.device("cpu"), torch.float32) == Machine(2.0, 3.0, 4.0)
    assert plan.measure_machine(torch.device("cpu"), torch.bfloat16).matrix_rate == 1.0


def test_sequences_are_as_long_as_responses_may_become(tmp_path):
    *_, sequences = of(tmp_path, "grpo", sampling={"max_tokens": 5})
    assert isinstance(sequences, Sequences) and sequences.tokens.shape == (6, 5)
