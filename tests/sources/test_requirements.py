"""Data that does not suit a method: what it needs, what there is, and who learns from that."""

import pytest
from grape_rl.sources.requirements import REQUIREMENTS, suited

from grape_rl import ALGORITHMS
from grape_rl.sources.comparisons import Comparisons
from grape_rl.sources.preferences import Preferences
from grape_rl.validation import load_config

PAIRED = sum(isinstance(row.source, Preferences | Comparisons) for row in ALGORITHMS.values())
LABELED = "kto, bco_unpaired, apo_zero_unpaired learn from"


def config(method, **data):
    more = {"reward": {"function": "rewards.py:f"}} if method == "grpo" else {}
    return load_config({"method": method, "data": {"source": "rows.jsonl", **data}, **more})


def told(method, columns, **data):
    with pytest.raises(ValueError) as error:
        suited(config(method, **data), ALGORITHMS[method], [dict.fromkeys(columns.split(), "x")], "rows.jsonl")
    return str(error.value)


@pytest.mark.parametrize(
    ("method", "columns", "message"),
    [
        ("dpo", "prompt completion label", "dpo needs a chosen and a rejected response for each prompt; found the "
         f"columns prompt, completion, label (unpaired preference data), which is what {LABELED}"),
        ("dpo", "prompt completion", "found the columns prompt, completion (prompt-completion data), which is what"),
        ("kto", "prompt completion", "kto needs a completion with a label (true where it is desirable) for each "
         "prompt, or a chosen and a rejected response; found the columns prompt, completion (prompt-completion data)"),
        ("sft", "prompt chosen rejected", "sft needs a prompt and a completion, or whole messages or a whole text; "
         "found the columns prompt, chosen, rejected (preference data), which is what dpo, cdpo, robust_dpo and "
         f"{PAIRED - 3} more learn from"),
        ("grpo", "chosen rejected", "grpo needs a prompt; found the columns chosen, rejected (preference data), whi"),
        ("dpo", "prompt completions labels", "(stepwise supervision data), which is what process_reward_model learns "),
    ],
)  # fmt: skip
def test_what_a_method_needs_and_who_learns_from_what_there_is(method, columns, message):
    said = told(method, columns)
    assert said.startswith(f"rows.jsonl: {method} needs ") and message in said and "\n" not in said


def test_columns_are_called_as_the_configuration_calls_them():
    said = told("dpo", "q a ok", prompt="q", completion="a", label="ok")
    assert "found the columns q, a, ok (unpaired preference data), which is what kto" in said


@pytest.mark.parametrize(
    ("method", "columns"),
    [
        ("dpo", "prompt chosen rejected"),
        ("dpo", "chosen rejected"),
        ("dpo", "prompt chosn rejected"),  # told with the nearest name by what reads the column
        ("kto", "prompt chosen rejected"),
        ("kto", "prompt completion label"),
        ("kto", "prompt completion lable"),
        ("sft", "prompt completion label"),
        ("sft", "question answer"),  # no known type
        ("dpo", "prompt rejected"),  # a part of a pair
        ("grpo", "prompt completion"),
    ],
)
def test_what_suits_passes_and_so_does_what_is_told_better_elsewhere(method, columns):
    found = [dict.fromkeys(columns.split(), "x")]
    assert suited(config(method), ALGORITHMS[method], found, "rows.jsonl") is found


def test_a_column_that_the_user_has_named_is_missed_by_its_name():
    found = [{"prompt": "x", "completion": "y"}]
    assert suited(config("sft", completion="answer"), ALGORITHMS["sft"], found, "rows.jsonl") is found


def test_every_kind_of_method_has_a_diet():
    assert {type(row.source) for row in ALGORITHMS.values()} <= REQUIREMENTS.keys()
