"""Whatever is wrong with settings, data, model or rubric is told in one line before a run has left a trace."""

import json

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from grape_rl import train
from grape_rl.config.files import merge
from grape_rl.model.scratch import character_tokenizer, random_llama
from small_runs import settings, sums, written


def complaint(wanted, tmp_path, kind=ValueError):
    """The one line that a run ends with; nothing may have been written."""
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(kind) as told:
        train(wanted)
    assert sorted(tmp_path.rglob("*")) == before, "the run has left something"
    assert "\n" not in str(told.value)
    return str(told.value)


@pytest.mark.parametrize(
    ("method", "change", "message"),
    [
        ("sft", {"stps": 3}, "config: unknown key 'stps'; did you mean 'steps'?"),
        ("grpo", {"sampling": {"topp": 1}}, "config: sampling: unknown key 'topp'; did you mean 'top_p'?"),
        ("sft", {"model": {"scratch": {"layer": 2}}}, "config: model.scratch: unknown key 'layer'; did you mean"),
        ("grpo", {"options": {"clip": 0.1}}, "config: options of grpo: unknown key 'clip'; did you mean 'clip_low'?"),
        ("grape", {"method": "grap"}, "config: unknown method 'grap'; did you mean 'grape'?"),
        ("grpo", {"group_size": 1}, "group_size is 1: grpo compares the responses to a prompt"),
        ("grape", {"group_size": 1}, "group_size is 1: grape compares the responses to a prompt"),
        ("grpo", {"sampling": {"top_p": 0.9}}, "sampling: grpo needs tokens from the whole distribution"),
        ("reinforce", {"sampling": {"temperature": 0}}, "at temperature 0 all responses are equal"),
        (
            "grpo",
            {"reward": {"rubric": "r", "function": "f.py:f"}},
            "reward: set exactly one of rubric, function",
        ),
        ("grpo", {"reward": {"rubric": None}}, "reward: grpo learns from rewards: set exactly one of"),
        ("grape", {"reward": {"rubric": None, "function": "f.py:f"}}, "reward: grape reads the items of a rubric"),
        ("sft", {"device": "tpu9"}, "device 'tpu9': not available ("),
        ("sft", {"model": {"scratch": None, "name": "./no/model"}}, "model './no/model': no loadable folder here, nor"),
        ("grpo", {"reward": {"rubric": "no.yaml"}}, "no.yaml: cannot be read"),
        ("sft", {"data": {"source": "rows.jsnl"}}, "rows.jsnl: no such file"),
        ("sft", {"data": {"source": "./no.jsonl"}}, "./no.jsonl: no such file"),
        ("sft", {"data": {"completion": "answer"}}, "rows.jsonl: row 0 has no column 'answer'; it has 'prompt', 'comp"),
        ("grpo", {"data": {"prompt": "promt"}}, "row 0 has no column 'promt'; it has 'prompt', 'completion'; did you"),
        ("sft", {"data": {"held_out_rows": 12}}, "all of its 12 rows are held out; none are left to train on"),
        ("sft", {"data": {"max_length": 3}}, "none of the 12 rows has a token to learn"),
        ("grpo", {"sampling": {"max_tokens": 64}}, "sampling.max_tokens is 64, but the model's whole context is 64"),
        ("grpo", {"sampling": {"max_tokens": 60}}, "row 5: the prompt is 5 tokens long, and at most 4 leave"),
        ("sft", {"model": {"scratch": {"heads": 3}}}, "a model of hidden size 32 with 3 heads: heads must be even"),
    ],
)
def test_one_line_and_no_trace(method, change, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in complaint(merge(settings(tmp_path, method), change), tmp_path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "rows.jsonl: no rows"),
        ([*sums(2), {"prompt": "", "completion": "1"}], "rows.jsonl: row 2: the prompt ('prompt') is empty"),
        ([*sums(1), {"prompt": "1+1=", "completion": " "}], "row 1: the completion ('completion') is empty"),
        ([*sums(1), {"prompt": 7, "completion": "7"}], "row 1: the prompt ('prompt') must be text or a list"),
        ([*sums(3), {"prompt": "1+1="}], "rows.jsonl: row 3 has no column 'completion'; it has 'prompt'"),
        ([{"prompt": [{"role": "user", "content": "1+1?"}], "completion": [{"role": "assistant", "content": "2"}]}],
         "row 0: the prompt is made of messages, and the tokenizer has no chat template"),
    ],
)  # fmt: skip
def test_bad_rows(rows, message, tmp_path):
    wanted = settings(tmp_path, "sft")
    written(tmp_path / "rows.jsonl", rows)
    assert message in complaint(wanted, tmp_path)


def test_a_prompt_longer_than_the_context(tmp_path):
    wanted = settings(tmp_path, "grpo")
    written(tmp_path / "rows.jsonl", [*sums(3), {"prompt": "1+" * 40}])
    assert "row 3: the prompt is 80 tokens long, and at most 54 leave the response its room" in complaint(
        wanted, tmp_path
    )


RUBRIC = """
schema: grape-rubric/1
categories:
  sums:
    when: {task: sum}
    items: [{id: right, check: {type: exact, gold: "${row.completion}"}}]
"""


@pytest.mark.parametrize(
    ("rubric", "message"),
    [
        (
            RUBRIC,
            "the row {prompt='0+0=', completion='0'} belongs to no category; categories: sums (when task is 'sum')",
        ),
        (
            RUBRIC.replace("    when: {task: sum}\n", "").replace("row.completion", "row.gold"),
            "row 0: item 'right'",
        ),
        (
            RUBRIC.replace("check", "chek"),
            "rubric.yaml: categories.sums.items[right]: unknown key 'chek'; did",
        ),
        (RUBRIC.replace("exact", "exakt"), "unknown type 'exakt'; did you mean 'exact'?"),
    ],
)
def test_a_rubric_that_cannot_grade_the_rows(rubric, message, tmp_path):
    wanted = settings(tmp_path, "grpo")
    (tmp_path / "rubric.yaml").write_text(rubric)
    assert message in complaint(wanted, tmp_path)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("rewards.py:nothing", "rewards.py has no function 'nothing'"),
        ("rewards.py", "names no function: write 'file.py:name'"),
        ("rewords.py:length", "'rewords.py:length' cannot be loaded"),
        ("no.such.module:length", "'no.such.module:length' cannot be loaded: ModuleNotFoundError"),
    ],
)
def test_a_reward_function_that_is_not_there(function, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wanted = {**settings(tmp_path, "grpo"), "reward": {"function": function}}
    (tmp_path / "rewards.py").write_text("length = 3\n")
    assert message in complaint(wanted, tmp_path)


def test_a_reward_function_for_columns_that_the_data_has_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wanted = {**settings(tmp_path, "grpo"), "reward": {"function": "rewards.py:length"}}
    (tmp_path / "rewards.py").write_text("def length(completions, gold):\n    return [0.0 for _ in completions]\n")
    with pytest.raises(ValueError, match=r"length: no column for the parameters \['gold'\]; columns: prompt, comp"):
        train(wanted)
    assert not (tmp_path / "run" / "checkpoints").exists()


def saved(folder, tokenizer):
    """A model on disk with this tokenizer, and a generation configuration that ends nothing."""
    model = random_llama(tokenizer, 32, 2, 2, 64, seed=0)
    model.config.eos_token_id = model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_a_tokenizer_without_an_end_token(tmp_path):
    plain = character_tokenizer(["0123456789+="])
    endless = PreTrainedTokenizerFast(tokenizer_object=plain.backend_tokenizer, pad_token="<pad>")
    wanted = {**settings(tmp_path, "grpo"), "model": {"name": saved(tmp_path / "model", endless)}}
    assert "the tokenizer has no end token: no response would end; set its eos_token" in complaint(wanted, tmp_path)


def test_a_folder_that_is_no_model(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "no_such_kind"}))
    wanted = {**settings(tmp_path, "sft"), "model": {"name": str(tmp_path / "model")}}
    assert f"model {str(tmp_path / 'model')!r}: no loadable folder (" in complaint(wanted, tmp_path)


def test_options_that_only_their_function_can_refuse_stop_before_the_first_update(tmp_path, monkeypatch):
    updated = []
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: updated.append(self))
    with pytest.raises(ValueError, match="overlong_buffer is 11; it must be from 0 to max_tokens, 10"):
        train({**settings(tmp_path, "dapo"), "options": {"overlong_buffer": 11}})
    assert not updated


def test_a_step_that_breaks_the_numbers_stops_the_run(tmp_path):
    wanted = merge(settings(tmp_path, "sft"), {"optimizer": {"learning_rate": 1e30}, "steps": 9})
    with pytest.raises(RuntimeError, match="the gradient's norm is"):
        train(wanted)
    assert not (tmp_path / "run" / "checkpoints").exists()
