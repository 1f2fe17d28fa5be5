"""Settings: what is refused and in which words, layers of files, and that what is written down reads back the same."""

from pathlib import Path

import pytest
import yaml

from grape_rl import ALGORITHMS
from grape_rl.config.files import dump, from_file, merge
from grape_rl.validation import load_config

SFT = {"method": "sft", "data": {"source": "rows.jsonl"}}
GRPO = {"method": "grpo", "data": {"source": "rows.jsonl"}, "reward": {"function": "f.py:f"}}
GRAPE = {**GRPO, "method": "grape", "reward": {"rubric": "rubric.yaml"}}


def complaint(base, change):
    with pytest.raises(ValueError) as told:
        load_config(merge(base, change))
    assert "\n" not in str(told.value)
    return str(told.value)


@pytest.mark.parametrize("base", [SFT, GRPO, GRAPE], ids=lambda base: base["method"])
def test_what_is_written_down_reads_back_the_same(base):
    config = load_config(merge(base, {"device": "cpu", "options": {"epochs": 2}, "optimizer": {"betas": [0.8, 0.9]}}))
    assert load_config(yaml.safe_load(dump(config))) == config
    assert yaml.safe_load(dump(config))["tokens_per_microbatch"] == 4096, "defaults are spelled out"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stepz": 3}, "config: unknown key 'stepz'; did you mean 'steps'?"),
        ({"optimizer": {"learning_rte": 1}}, "optimizer: unknown key 'learning_rte'; did you mean 'learning_rate'?"),
        ({"model": {"scratch": {"hiden": 8}}}, "model.scratch: unknown key 'hiden'; did you mean 'hidden'?"),
        ({"data": {"teacher": {"rong": 0}}}, "data.teacher: unknown key 'rong'; did you mean 'wrong'?"),
        ({"options": {"clip_hi": 0.3}}, "options of grpo: unknown key 'clip_hi'; did you mean 'clip_high'?"),
        ({"zzz": 1}, "unknown key 'zzz'; known: method, model, data"),
        ({"optimizer": 3}, "optimizer: should be a mapping but is 3"),
        ({"steps": 0}, "steps: Input should be greater than 0"),
        ({"steps": "many"}, "steps: Input should be a valid integer"),
        ({"optimizer": {"learning_rate": float("nan")}}, "optimizer.learning_rate: Input should be"),
        ({"precision": "fp8"}, "precision: Input should be 'fp32' or 'bf16'"),
        ({"data": {"teacher": {"wrong": 1.5}}}, "data.teacher.wrong: Input should be less than or equal to 1"),
        ({"options": {"kl": "much"}}, "options of grpo: kl: Input should be a valid number"),
        ({"options": {"kl_estimator": "k4"}}, "options of grpo: kl_estimator: Input should be 'k1', 'k2' or 'k3'"),
        ({"output": "runs/{name}"}, "output: 'runs/{name}': only {method} and {seed} may be in braces"),
        ({"output": "runs/{"}, "only {method} and {seed} may be in braces"),
        ({"group_size": 1}, "group_size is 1: grpo compares the responses to a prompt, so it needs at least 2"),
        ({"sampling": {"top_p": 0.9}}, "sampling: grpo needs tokens from the whole distribution of the policy"),
        ({"sampling": {"top_k": 5}}, "leave them out, or use rejection_sampling, which may cut"),
        ({"sampling": {"temperature": 0}}, "at temperature 0 all responses are equal: grpo would learn nothing"),
        ({"sampling": {"temperature": -1}}, "sampling.temperature: Input should be greater than or equal to 0"),
        (
            {"reward": {"rubric": "r.yaml", "function": "f.py:f"}},
            "reward: set exactly one of rubric, function and model",
        ),
        (
            {"reward": {"function": None}},
            "reward: grpo learns from rewards: set exactly one of rubric, function and",
        ),
        (
            {"data": {"source": "x.csv", "tasks": {"chain_sum": {}}}},
            "data: set exactly one of source (a file or a dataset) and tasks",
        ),
        ({"data": {"source": None}}, "data: set exactly one of source (a file or a dataset) and tasks"),
        ({"data": {"held_out": "test.jsonl"}}, "data: held_out is set but held_out_rows is 0"),
        ({"method": "grop"}, "unknown method 'grop'; did you mean 'grpo'?"),
        ({"method": "grape"}, "reward: grape reads the items of a rubric: set reward.rubric, or use grpo"),
        ({"method": "gdpo"}, "reward: gdpo reads the items of a rubric: set reward.rubric, or use grpo"),
    ],
)
def test_bad_settings_of_grpo(change, message):
    assert message in complaint(GRPO, change)


@pytest.mark.parametrize(
    ("base", "change", "message"),
    [
        (GRAPE, {"group_size": 1}, "grape compares the responses to a prompt, so it needs at least 2"),
        (GRAPE, {"sampling": {"top_p": 0.5}}, "sampling: grape needs tokens from the whole distribution"),
        (
            SFT,
            {"data": {"source": None, "tasks": {"leg_counting": {}}, "held_out_rows": 3}},
            "data: held_out_rows of tasks are evaluated by grading: set reward.rubric, ",
        ),
        (SFT, {"data": {"learn": "answers"}}, "data.learn: Input should be 'completion', 'assistant' or 'all'"),
        (SFT, {"options": {"neftune": -1.0}}, "neftune: Input should be greater than or equal to 0"),
        (SFT, {"reward": {"rubric": "a", "function": "b"}}, "reward: set exactly one of rubric, function and model"),
        (SFT, {"options": {"clip_low": 0.1}}, "options of sft: unknown key 'clip_low'"),
    ],
)
def test_bad_settings_of_other_methods(base, change, message):
    assert message in complaint(base, change)


def test_two_faults_are_one_line_with_both():
    told = complaint(GRPO, {"steps": 0, "optimizer": {"warmup": -1}})
    assert "steps: " in told and "; " in told and "optimizer.warmup: " in told


def test_what_a_method_does_not_need_may_be_cut():
    cut = {"sampling": {"top_p": 0.9, "top_k": 5, "temperature": 0}, "group_size": 1}
    assert load_config(merge({**GRPO, "method": "rejection_sampling"}, cut)).sampling.top_k == 5
    assert load_config(merge({**GRPO, "method": "reinforce"}, {"group_size": 1})).group_size == 1
    assert load_config(merge(SFT, cut)).group_size == 1


def test_settings_cannot_be_changed_later():
    with pytest.raises(ValueError, match="frozen"):
        load_config(SFT).steps = 3


def test_the_folder_has_the_method_and_the_seed_in_its_name():
    assert load_config({**SFT, "output": "a/{method}-{seed}", "seed": 4}).folder == Path("a/sft-4")
    assert load_config(SFT).folder == Path("runs/sft")


def test_layers_merge_key_by_key_and_change_neither():
    below, above = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}, {"a": {"c": {"d": 4}}, "e": {"f": 5}}
    assert merge(below, above) == {"a": {"b": 1, "c": {"d": 4}}, "e": {"f": 5}}
    assert below == {"a": {"b": 1, "c": {"d": 2}}, "e": 3} and above["a"] == {"c": {"d": 4}}


def test_a_file_extends_another_and_finds_the_rubric_beside_the_file_that_names_it(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "rubric.yaml").write_text("x: 1")
    (tmp_path / "base" / "checks.py").write_text("")
    (tmp_path / "base" / "all.yaml").write_text(
        "steps: 5\noptimizer: {warmup: 2, learning_rate: 0.1}\nreward: {rubric: rubric.yaml}\n"
    )
    (tmp_path / "mine.yaml").write_text("extends: base/all.yaml\noptimizer: {warmup: 7}\nmethod: sft\n")
    assert from_file(tmp_path / "mine.yaml", "sft") == {
        "steps": 5,
        "optimizer": {"warmup": 7, "learning_rate": 0.1},
        "reward": {"rubric": str(tmp_path / "base" / "rubric.yaml")},
        "method": "sft",
    }
    (tmp_path / "base" / "own.yaml").write_text("reward: {function: 'checks.py:good'}\n")
    assert from_file(tmp_path / "base" / "own.yaml", "grpo")["reward"] == {
        "function": str(tmp_path / "base" / "checks.py") + ":good"
    }
    (tmp_path / "elsewhere.yaml").write_text("reward: {rubric: elsewhere/rubric.yaml}\n")
    assert from_file(tmp_path / "elsewhere.yaml", "grape")["reward"]["rubric"] == "elsewhere/rubric.yaml"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("method: grpo", "config.yaml: its method is 'grpo', but 'sft' was requested"),
        ("- a list", "config.yaml: should be keys with values"),
        ("", "config.yaml: should be keys with values"),
        ("steps: 1\nsteps: 2", "config.yaml: line 2: duplicate key 'steps'"),
        ("steps: [1", "config.yaml: while parsing"),
        ("extends: nothing.yaml", "nothing.yaml: cannot be read"),
        ("extends: 3", "3: cannot be read"),
        ("extends: config.yaml", "config.yaml: extends itself"),
    ],
)
def test_bad_files(tmp_path, text, message):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError) as told:
        from_file(tmp_path / "config.yaml", "sft")
    assert message in str(told.value) and "\n" not in str(told.value)


def test_a_config_names_a_method_of_the_table():
    for name in ALGORITHMS:
        base = GRAPE if name in ("grape", "gdpo") else {**GRPO, "method": name}
        assert load_config({**base, "method": name}).method == name


def test_naming_a_model_or_data_in_an_upper_layer_takes_the_place_of_its_rival_below() -> None:
    below = {"model": {"scratch": {"hidden": 32}}, "data": {"tasks": {"gcd": {}}}, "reward": {"rubric": "r"}}
    above = {"model": {"name": "m"}, "data": {"source": "s"}, "reward": {"function": "f"}}
    assert merge(below, above) == above
    assert merge(above, below) == below


def test_a_model_with_two_origins_in_one_layer_is_refused() -> None:
    with pytest.raises(ValueError, match="set exactly one of name"):
        load_config({"method": "sft", "model": {"name": "m", "scratch": {}}, "data": {"source": "s"}})
