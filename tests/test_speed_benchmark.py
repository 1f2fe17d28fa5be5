"""The comparison with TRL: the specification and the measurements of both sides, and the lower bounds of a step."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import growth
import shapes
import vs_trl
from grape_rl.estimate.flops import count_flops, forward_work
from grape_rl.validation import load_config
from speed import data, floors, ours, peer, turns
from speed.workloads import STARTS, WORKLOADS, Workload

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 96,
}
SMALL = {
    "grpo": Workload("g", "grpo", "s", 2, 3, prompt_tokens=7, new_tokens=4),
    "sft": Workload("s", "sft", "s", 2, max_length=64),
    "dpo": Workload("d", "dpo", "s", 2, max_length=64),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of a model of two small layers, with a token a character."""
    folder = tmp_path_factory.mktemp("model")
    shapes.model(SHAPE).save_pretrained(folder)
    shapes.letters().save_pretrained(folder)
    return folder


def rows_of(method, steps):
    """As many rows as the steps take, of different lengths."""
    count = SMALL[method].per_step * steps
    if method == "grpo":
        return data.prompts(shapes.letters(), 7, count)
    texts = [{"prompt": "a" * (2 + n), "completion": "b" * (9 - n)} for n in range(count)]
    if method == "sft":
        return texts
    return [{"prompt": t["prompt"], "chosen": t["completion"], "rejected": "c" * n} for n, t in enumerate(texts, 1)]


@pytest.fixture(scope="module")
def runs(model, tmp_path_factory):
    """Spec and measurements of three steps of each method on the grape-rl side."""
    result = {}
    for method, row in SMALL.items():
        place = tmp_path_factory.mktemp(method)
        spec = row.spec(model, turns.write_rows(place / "rows.jsonl", rows_of(method, 3)), 3)
        ours.main(spec, place / "out.json")
        result[method] = spec, json.loads((place / "out.json").read_text())
    return result


@pytest.mark.parametrize("method", SMALL)
def test_ours_measures_every_step_but_the_first(runs, method):
    _, result = runs[method]
    for name in ("seconds", "update_seconds", "tokens", "operations", "update_operations"):
        assert len(result[name]) == 2 and min(result[name]) > 0, name
    assert result["versions"].keys() == {"grape-rl", "transformers", "torch"} and result["peak"] is None
    assert all(s >= u for s, u in zip(result["seconds"], result["update_seconds"], strict=True)) or method == "grpo"


def test_a_step_begins_at_the_end_of_the_step_before(model):
    spec = {**SMALL["grpo"].spec(model, model, 3), "bf16": True}
    steps = [{"time": t, "update_seconds": 1.0, "sample_seconds": 0.5, "length": t} for t in (1.0, 3.5, 4.0)]
    result = ours.measurements(spec, steps)
    assert result["seconds"] == [2.5, 0.5] and result["length"] == [3.5, 4.0] and result["sample_seconds"] == [0.5, 0.5]
    half = floors.weightless(str(model))
    assert result["decode_bytes"] == [floors.decode_bytes(half, spec, each, 2) for each in (3.5, 4.0)]


def test_the_settings_of_our_run(model, tmp_path):
    spec = replace(SMALL["grpo"], bf16=True, max_length=48).spec(model, tmp_path / "rows.jsonl", 3)
    found = load_config(ours.settings(spec, tmp_path))
    assert (found.steps, found.prompts_per_step, found.group_size, found.seed) == (3, 2, 3, ours.SEED)
    assert (found.sampling.max_tokens, found.sampling.temperature, found.data.max_length) == (4, 1.0, 48)
    assert (found.precision, found.log_kl, found.checkpoint_every, found.device) == ("bf16", False, 0, "cpu")
    assert found.optimizer.learning_rate == 1e-5 and found.model.name == str(model)
    assert load_config(ours.settings(SMALL["sft"].spec(model, model, 3), tmp_path)).precision == "fp32"


def test_tokens_of_a_sampled_step_count_the_prompt_for_each_response(runs):
    _, result = runs["grpo"]
    assert all(0 < each <= 4 for each in result["length"])
    assert result["tokens"] == pytest.approx([6 * (7 + each) for each in result["length"]])


@pytest.mark.parametrize(("method", "keys"), [("sft", ["completion"]), ("dpo", ["chosen", "rejected"])])
def test_both_sides_read_the_rows_in_the_same_order(runs, method, keys):
    """Lengths identify the rows. A character is a token, and an end token follows each response."""
    _, result = runs[method]
    ordered = data.in_training_order(rows_of(method, 3), 2, ours.SEED)
    read = [sum(len(row["prompt"]) + len(row[key]) + 1 for key in keys) for row in ordered]
    assert result["tokens"] == [read[2] + read[3], read[4] + read[5]]
    assert sorted(map(str, ordered)) == sorted(map(str, rows_of(method, 3))), "each row once"


def test_a_sampled_step_costs_two_forward_passes_and_a_backward_pass_of_two(model):
    spec, made = SMALL["grpo"].spec(model, model, 3), floors.weightless(str(model))
    trunk, head, pairs = 2 * 7 + 6 * 3, 6 * 4, 0
    for _ in range(2):  # prompts
        pairs += sum(1 for query in range(7) for key in range(7) if key <= query)
        pairs += 3 * sum(1 for query in range(7, 10) for key in range(10) if key <= query)
    matrices = sum(w.numel() for name, w in made.named_parameters() if w.ndim == 2 and "embed" not in name)
    forward = 2 * (trunk * matrices + head * 32 * 96) + 4 * 2 * 32 * pairs
    found = floors.step_operations(made, "grpo", floors.step_work(spec, 4.2))
    assert found == {"step": 4 * forward, "update": 3 * forward}


def test_pairs_pay_for_the_reference_and_demonstrations_do_not(model, runs):
    made = floors.weightless(str(model))
    for method, passes in (("sft", 3), ("dpo", 4)):
        spec, result = runs[method]
        one = [count_flops(made, forward_work(batch)) for batch in ours.read_steps(spec)[1:]]
        assert result["operations"] == [passes * each for each in one]
        assert result["update_operations"] == [3 * each for each in one]


def test_a_prompt_of_a_pair_is_encoded_once(model):
    tokenizer = shapes.letters()
    read = floors.read_rows([{"prompt": "aaaa", "chosen": "bb", "rejected": "c"}], "dpo", tokenizer, 64)
    assert floors.read_tokens(read) == (4 + 3) + (4 + 2)
    assert forward_work(read).trunk_tokens == 4 + 2 + 1 and forward_work(read).head_tokens == 5


def test_decoding_reads_weights_and_the_cache_once_a_token(model):
    spec, made = SMALL["grpo"].spec(model, model, 3), floors.weightless(str(model))
    matrices = sum(w.numel() for name, w in made.named_parameters() if w.ndim == 2 and "embed" not in name)
    read = 4 * 32 * 96  # the head, for each of four tokens
    for cached in (1, 2, 3):
        read += matrices
        read += 2 * 7 * (2 * 2 * 16)  # two prompts; keys and values of two layers, one head of 16
        read += 6 * cached * (2 * 2 * 16)
    assert floors.decode_bytes(made, spec, 4.0, 2) == 2 * read


def test_the_peak_memory_of_a_command_is_its_own(tmp_path):
    here = torch.ones(50_000_000)  # 200 MB
    seconds, peak = turns.run_command([sys.executable, "-S", "-c", "x = bytearray(60 * 10**6)"])
    assert 60e6 < peak < 130e6 < here.nbytes and 0 < seconds < 30
    with pytest.raises(RuntimeError, match=r"exit code 3\nsaid this"):
        turns.run_command([sys.executable, "-S", "-c", "import sys; print('said this'); sys.exit(3)"])


def test_a_side_gets_the_spec_and_returns_its_measurements(tmp_path):
    script = "import json, sys; s = json.load(open(sys.argv[1])); json.dump({'peak': s['n']}, open(sys.argv[2], 'w'))"
    assert turns.run_side([sys.executable, "-S", "-c", script], {"n": 5}, tmp_path) == {"peak": 5}, "a GPU's own"
    assert turns.run_side([sys.executable, "-S", "-c", script], {"n": None}, tmp_path)["peak"] > 10**6


def test_the_settings_of_the_peer(tmp_path, monkeypatch):
    from transformers import TrainerCallback

    class Trainer:
        def __init__(self, **given):
            self.given, self.callbacks = given, []
            logged = [{"loss": 1.0, "num_tokens": n, "completions/mean_length": n / 10} for n in (10, 30, 60)]
            self.state = SimpleNamespace(log_history=[{"eval": 1}, *logged, {"train_runtime": 1.0}])

        def add_callback(self, callback):
            assert isinstance(callback, TrainerCallback)
            self.callbacks.append(callback)

        def train(self):
            for _ in range(3):
                self.callbacks[0].on_step_begin(None, None, None)

    names = [f"{method}{kind}" for method in ("GRPO", "SFT", "DPO") for kind in ("Config", "Trainer")]
    fake = SimpleNamespace(**{name: dict if name.endswith("Config") else Trainer for name in names})
    monkeypatch.setitem(sys.modules, "trl", fake)
    monkeypatch.setattr(peer, "version", lambda name: name)
    data_file = turns.write_rows(tmp_path / "rows.jsonl", [{"prompt": "a"}])
    row = replace(SMALL["grpo"], bf16=True, peer={"use_transformers_continuous_batching": True})
    result = peer.trainer(row.spec(tmp_path, data_file, 3), "out").given
    asked = {"per_device_train_batch_size": 6, "num_generations": 3, "max_completion_length": 4, "max_steps": 3}
    asked |= {
        "bf16": True,
        "use_cpu": True,
        "learning_rate": 1e-5,
        "gradient_checkpointing": False,
        "use_transformers_continuous_batching": True,
        "output_dir": "out",
    }
    assert (
        result["args"].items() >= asked.items() and result["args"]["beta"] == 0.0 and result["model"] == str(tmp_path)
    )
    assert len(result["reward_funcs"](completions=["a", "b"], prompts=[])) == 2
    for method in ("sft", "dpo"):
        result = peer.trainer(replace(SMALL[method], peer={}).spec(tmp_path, data_file, 3), "out").given
        assert result["args"]["train_sampling_strategy"] == "sequential" and result["args"]["max_length"] == 64

    peer.main(replace(SMALL["grpo"], peer={}).spec(tmp_path, data_file, 3), tmp_path / "out.json")
    found = json.loads((tmp_path / "out.json").read_text())
    assert len(found["seconds"]) == 2 and found["tokens"] == [20, 30] and found["length"] == [3.0, 6.0]


def measured_by(lengths, tokens, **more):
    return {"seconds": [2.0], "length": lengths, "tokens": tokens, "peak": 5, **more}


def test_sides_with_different_work_are_reported():
    alike = {"peer": measured_by([3.0], [60.0]), "ours": measured_by([4.0], [66.0])}
    row = SMALL["grpo"]  # 6 rows: 42 tokens of prompts on both sides
    assert turns.disagreement(row, alike) == "" == turns.disagreement(row, {"ours": alike["ours"]})
    other = alike | {"peer": measured_by([3.0], [61.0])}
    assert turns.disagreement(row, other) == "g: TRL read [43.0] tokens a step, grape-rl [42.0]"


def test_a_run_writes_each_turn_and_alternates(tmp_path, monkeypatch, capsys):
    order, files = [], {}

    def run_side(script, spec, folder):
        if spec["method"] == "dpo":
            raise RuntimeError("it burst")
        order.append("peer" if script[1].endswith("peer.py") else script[2])
        rows = [json.loads(line) for line in Path(spec["data"]).read_text().splitlines()]
        assert len(rows) == 2 * spec["steps"] and spec["model"] == str(tmp_path / "tiny")
        files[order[-1]] = rows
        if "machine" in order[-1]:
            return {"matrix_rate": 1e9, "bandwidth": 1e9}
        return measured_by([5.0], [20.0], operations=[1e9])

    shapes.letters().save_pretrained(tmp_path / "tiny")
    monkeypatch.setattr(turns, "run_side", run_side)
    monkeypatch.setattr(turns, "measured_start", lambda command, python: {"seconds": [len(command)], "peak": 5})
    arguments = ["run", "--data", str(tmp_path), "--folder", str(tmp_path), "--results", str(tmp_path / "out.jsonl")]
    more = ["--turns", "2", "--steps", "2", "--only", "grpo_wide,import", "--small", "--peer-python", sys.executable]
    vs_trl.main(arguments + more)
    assert order == ["peer", "speed.ours", "speed.machine"] * 2
    result = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(each["row"], each["turn"]) for each in result] == [(n, t) for n in ("grpo_wide", "import") for t in (0, 1)]
    assert "grpo_wide: ours 2 s" in capsys.readouterr().out

    turns.write_rows(tmp_path / "train.jsonl", [{"question": f"{n}?", "answer": f"{n}"} for n in range(9)])
    turns.write_rows(tmp_path / "example_model_solutions.jsonl", [])
    del order[:]
    more[5] = "dpo_gsm,sft_gsm,gpu_sft"
    with pytest.raises(RuntimeError, match=r"^dpo_gsm: it burst$"):
        vs_trl.main(arguments + more)
    assert order == ["peer", "speed.ours", "speed.machine"] * 2 + ["speed.ours", "speed.machine"] * 2
    assert files["peer"] != files["speed.ours"] and data.in_training_order(files["speed.ours"], 2, 0) == files["peer"]


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        (vs_trl, ["runn"], "name one of run and report, not runn"),
        (vs_trl, ["run"], "run needs --data FOLDER"),
        (
            vs_trl,
            ["run", "--data", "x", "--only", "grpo_wid"],
            "unknown workload 'grpo_wid'; did you mean 'grpo_wide'?",
        ),
        (vs_trl, ["run", "--data", "x", "--steps", "1"], "--steps 1: the first step does not count"),
        (vs_trl, ["run", "--data", "x", "--small"], "--small is a smoke test"),
        (growth, ["run", "report"], "name one of run and report, not run report"),
        (growth, ["run", "--only", "promt"], "unknown dimension 'promt'; did you mean 'prompt'?"),
        (growth, ["run", "--steps", "1"], "--steps 1: the first step does not count"),
        (growth, ["run", "--small"], "--small is a smoke test"),
    ],
)
def test_an_invalid_command_raises(script, arguments, message):
    with pytest.raises(ValueError) as error:
        script.main(arguments)
    assert message in str(error.value)


def test_every_workload_is_selected_once_and_small_ones_are_small():
    names = [row.name for row in WORKLOADS]
    assert len(set(names)) == len(names) and not set(names) & set(STARTS)
    assert sorted(vs_trl.selected(None, False) + vs_trl.selected(None, True)) == sorted([*names, *STARTS])
    assert vs_trl.selected("gpu_sft,help", False) == ["gpu_sft", "help"]
    assert {row.shape for row in WORKLOADS} <= set(shapes.SHAPES)
    for row in WORKLOADS:
        assert row.small().shape == "tiny" and row.small().method == row.method and not row.small().gpu
        assert row.small().per_step * row.small().group <= 4
