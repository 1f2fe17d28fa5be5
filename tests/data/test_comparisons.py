"""Pairs for a reward model: whole responses with their end token, and margins from the data."""

import copy

import pytest
import torch

from grape_rl.data.comparisons import tokenize_comparisons
from grape_rl.data.steps import tokenize_solutions

COLUMNS = ("margin", "chosen_reward", "rejected_reward")
ROWS = [
    {"prompt": "1+1=", "chosen": "2", "rejected": "13", "margin": 0.5, "chosen_reward": 3.0, "rejected_reward": 1.0},
    {"prompt": "2+1=", "chosen": "3.", "rejected": "4", "margin": -1, "chosen_reward": 2.0, "rejected_reward": 2.5},
]


def without(*keys):
    return [{key: value for key, value in row.items() if key not in keys} for row in ROWS]


def tokenized(tokenizer, rows, limit=64, **options):
    return tokenize_comparisons(rows, tokenizer, (tokenizer.eos_token_id,), limit, COLUMNS, "data", **options)


def test_responses_end_with_the_end_token(tokenizer):
    pairs, stats = tokenized(tokenizer, ROWS)
    assert [tokenizer.decode(p.pair.chosen) for p in pairs] == ["2<eos>", "3.<eos>"]
    assert [tokenizer.decode(p.pair.rejected) for p in pairs] == ["13<eos>", "4<eos>"]
    assert (stats.rows, stats.truncated, stats.dropped, stats.tokens) == (2, 0, 0, 10)


def test_messages_go_through_the_chat_template(tokenizer):
    own = copy.deepcopy(tokenizer)
    own.chat_template = (
        "{% for m in messages %}{{ m['role'][0] + ':' + m['content'] + '<eos>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'a:' }}{% endif %}"
    )
    row = {"prompt": [{"role": "user", "content": "1+1="}]}
    row |= {key: [{"role": "assistant", "content": text}] for key, text in (("chosen", "2"), ("rejected", "13"))}
    ((pair,), _) = tokenized(own, [row])
    whole = [own.decode(torch.cat([pair.pair.prompt, each])) for each in (pair.pair.chosen, pair.pair.rejected)]
    assert whole == ["u:1+1=<eos>a:2<eos>", "u:1+1=<eos>a:13<eos>"]
    ((solution,), _) = tokenize_solutions(
        [{**row, "completions": ["2", "so"], "labels": [True, False]}], own, 64, "data"
    )
    assert own.decode(torch.cat([solution.prompt, solution.tokens])) == "u:1+1=<eos>a:2\nso\n"


@pytest.mark.parametrize(
    ("rows", "options", "margins"),
    [
        (ROWS, {}, [0.5, -1.0]),
        (without("margin"), {}, [0.0, 0.0]),
        (ROWS, {"margin_from": "rewards"}, [2.0, -0.5]),
        (ROWS, {"margin_from": "none"}, [0.0, 0.0]),
    ],
)
def test_the_margin_comes_from_the_chosen_column(tokenizer, rows, options, margins):
    assert [p.margin for p in tokenized(tokenizer, rows, **options)[0]] == margins


def test_a_pair_that_is_too_long_or_has_equal_responses_is_dropped(tokenizer):
    twice = {**ROWS[0], "chosen": "2", "rejected": "2<eos>"}
    pairs, stats = tokenized(tokenizer, [{**ROWS[0], "rejected": "12345"}, twice, *ROWS], limit=7)
    assert [tokenizer.decode(p.pair.rejected) for p in pairs] == ["13<eos>", "4<eos>"]
    assert (stats.rows, stats.dropped) == (4, 2) and [p.margin for p in pairs] == [0.5, -1.0]


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([ROWS[0], without("margin")[1]], {}, "data: row 1 has no 'margin', but other rows do: give every row one"),
        ([{**ROWS[0], "margin": "big"}], {}, "data: row 0: 'margin' must be a finite number; got 'big'"),
        ([{**ROWS[0], "margin": True}], {}, "data: row 0: 'margin' must be a finite number; got True"),
        (without("chosen_reward"), {"margin_from": "rewards"}, "options.margin_from is rewards, which requires the "
         "columns 'chosen_reward' and 'rejected_reward'; it has 'prompt', 'chosen', 'rejected', 'margin', 'rejected_r"),
        (ROWS, {"limit": 3}, "data: none of the 2 pairs differs and fits into the 3 tokens of max_len"),
        ([{**ROWS[0], "chosen": "2", "rejected": "2<eos>"}], {}, "data: none of the 1 pairs differs"),
    ],
)  # fmt: skip
def test_invalid_pairs_are_refused(tokenizer, rows, options, message):
    with pytest.raises(ValueError) as error:
        tokenized(tokenizer, rows, **options)
    assert message in str(error.value) and "\n" not in str(error.value)
