"""Data of the wrong type: what the method needs, which type the data is, and which methods learn from that."""

import pytest

from grape_rl import ALGORITHMS
from grape_rl.config.config import Config
from grape_rl.methods import resolve_options
from grape_rl.sources.requirement import check_columns
from grape_rl.validation import load_config, load_rows
from small_runs import written

PAIRED = sum("preference" in made.source.requirement.types for made in ALGORITHMS.values())
LABELED = "which kto, bco_unpaired and apo_zero_unpaired learn from"


def config(method, source="rows.jsonl", **data) -> Config:
    reward = {"reward": {"function": "rewards.py:f"}} if method == "grpo" else {}
    return load_config({"method": method, "data": {"source": str(source), **data}, **reward})


def complaint(folder, method, columns, **data):
    """The message when the method reads one row with these columns."""
    path = written(folder / "rows.jsonl", [dict.fromkeys(columns.split(), "x")])
    with pytest.raises(ValueError) as error:
        load_rows(config(method, path, **data), ALGORITHMS[method], resolve_options(ALGORITHMS[method], {}))
    return str(error.value).removeprefix(f"{folder}/")


@pytest.mark.parametrize(
    ("method", "columns", "message"),
    [
        ("dpo", "prompt completion label", "dpo needs pairs (prompt, chosen, rejected), but the columns prompt, "
         f"completion, label are unpaired preference data, {LABELED}"),
        ("dpo", "prompt completion", "the columns prompt, completion are prompt-completion data, which sft and dft le"),
        ("kto", "prompt completion", "kto needs labeled responses (prompt, completion, label) or pairs (prompt, "
         "chosen, rejected), but the columns prompt, completion are prompt-completion data"),
        ("sft", "prompt chosen rejected", "sft needs demonstrations (prompt and completion, or messages, or text), but "
         "the columns prompt, chosen, rejected are preference data, which dpo, cdpo, robust_dpo and "
         f"{PAIRED - 3} more learn from"),
        ("grpo", "chosen rejected", "grpo needs prompts, but the columns chosen, rejected are preference data, which "),
        ("dpo", "prompt completions labels", "are stepwise supervision data, which process_reward_model learns from"),
    ],
)  # fmt: skip
def test_the_message_has_what_is_needed_and_what_learns_from_the_data(tmp_path, method, columns, message):
    text = complaint(tmp_path, method, columns)
    assert text.startswith(f"rows.jsonl: {method} needs ") and message in text and "\n" not in text


def test_columns_have_the_names_that_the_configuration_sets(tmp_path):
    text = complaint(tmp_path, "dpo", "q a ok", prompt="q", completion="a", label="ok")
    assert "the columns q, a, ok are unpaired preference data, which kto" in text


@pytest.mark.parametrize(
    ("method", "columns"),
    [
        ("dpo", "prompt chosen rejected"),
        ("dpo", "chosen rejected"),
        ("dpo", "prompt chosn rejected"),  # the code that reads the column reports the nearest name
        ("kto", "prompt chosen rejected"),
        ("kto", "prompt completion label"),
        ("kto", "prompt completion lable"),
        ("sft", "prompt completion label"),
        ("sft", "question answer"),  # no known type
        ("dpo", "prompt rejected"),  # a part of a pair
        ("grpo", "prompt completion"),
    ],
)
def test_suitable_columns_pass_and_so_do_those_with_a_better_message_elsewhere(method, columns):
    rows = [dict.fromkeys(columns.split(), "x")]
    check_columns(config(method), ALGORITHMS[method].source.requirement, rows, "rows.jsonl")


def test_a_column_with_a_name_of_the_user_s_is_reported_by_the_code_that_reads_it():
    rows = [{"prompt": "x", "completion": "y"}]
    check_columns(config("sft", completion="answer"), ALGORITHMS["sft"].source.requirement, rows, "rows.jsonl")


def test_tasks_and_no_rows_have_no_columns_to_check():
    requirement = ALGORITHMS["dpo"].source.requirement
    check_columns(config("dpo"), requirement, [], "rows.jsonl")
    tasks = load_config({"method": "dpo", "data": {"tasks": {"chain_sum": {}}}})
    check_columns(tasks, requirement, [{"prompt": "x", "completion": "y", "label": True}], "tasks")
