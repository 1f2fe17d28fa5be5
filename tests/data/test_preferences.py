"""Preferences as text and as tokens: TRL's forms, synthesized from tasks, and real data where it is available."""

import json
import math
from collections import Counter
from pathlib import Path

import pytest
import torch

from grape_rl.data.preferences import Pair, collate_pairs, synthesize_preferences, tokenize_pairs, with_preferences
from grape_rl.data.rows import read_rows

USER, GOOD, BAD = (
    {"role": "user", "content": "Sky?"},
    {"role": "assistant", "content": "Blue."},
    {"role": "assistant", "content": "Green."},
)
EXPLICIT = {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (EXPLICIT, EXPLICIT),
        ({"chosen": "The sky is blue.", "rejected": "The sky is green."}, EXPLICIT),
        (
            {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
            {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        ),
        ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}),
        (
            {"chosen": [USER, GOOD, USER, GOOD], "rejected": [USER, GOOD, USER, BAD]},
            {"prompt": [USER, GOOD, USER], "chosen": [GOOD], "rejected": [BAD]},
        ),
        # a plain prompt in addition to whole conversations, which contain it
        (
            {"prompt": "Sky?", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
            {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        ),
    ],
)
def test_trl_types_load(row, expected):
    given = json.loads(json.dumps(row))
    assert with_preferences([{**given, "id": 7}]) == [{**expected, "id": 7}]
    assert given == row, "the row given is left alone"


def test_named_columns_and_a_system_message():
    row = {"q": "a", "good": "b", "bad": "c", "completion": "mine"}
    (new,) = with_preferences([row], "q", "good", "bad", system="Be kind.")
    assert new == {**row, "prompt": "Be kind.\n\na", "chosen": "b", "rejected": "c"}
    (new,) = with_preferences([{"chosen": [USER, GOOD], "rejected": [USER, BAD]}], system="Be kind.")
    assert new["prompt"] == [{"role": "system", "content": "Be kind."}, USER]


@pytest.mark.parametrize(
    ("bad", "part"),
    [
        ({"prompt": "a", "chosen": "b"}, "row 1 has no column 'rejected': a preference needs a chosen and a rejected"),
        ({"prompt": "a", "completion": "b"}, "has no column 'chosen': a preference needs"),
        ({"prompt": "a", "chosn": "b", "rejected": "c"}, "it has 'prompt', 'chosn', 'rejected'; did you mean 'chosn'?"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "'chosen' and 'rejected' are equal; remove the row"),
        (
            {"chosen": "b", "rejected": "c"},
            "there is no column 'prompt', and 'chosen' and 'rejected' have no common prefix",
        ),
        ({"chosen": "b", "rejected": [BAD]}, "must both be plain text or both be messages"),
        ({"prompt": "a", "chosen": "b", "rejected": ""}, "the completion ('rejected') is empty"),
        ({"prompt": "a", "chosen": 3, "rejected": "c"}, "the completion ('chosen') must be text or a list of messages"),
        ({"prompt": [USER], "chosen": "b", "rejected": "c"}, "the prompt is messages but the completion is plain text"),
        (
            {"chosen": [USER, GOOD, USER], "rejected": [USER, BAD]},
            "the completion must begin and end with an assistant message",
        ),
        ({"prompt": "", "chosen": "b", "rejected": "c"}, "the prompt ('prompt') is empty"),
    ],
)
def test_a_bad_row_is_named(bad, part):
    with pytest.raises(ValueError) as error:
        with_preferences([EXPLICIT, bad], source="data.jsonl")
    assert str(error.value).startswith("data.jsonl: row 1") and part in str(error.value)
    assert "\n" not in str(error.value)


STYLES = ["Answer: {answer}", "{answer}", "It is {answer}."]
TASKS = [{"prompt": f"q{i}", "answer": f"{task}{i % 50}", "task": task} for i in range(1000) for task in "ab"]


def test_the_right_answer_in_the_first_style_is_chosen_over_another_answer_or_style():
    preferences = synthesize_preferences(TASKS, 0.3, STYLES, seed=1)
    kinds: Counter[str] = Counter()
    for row, source in zip(preferences, TASKS, strict=True):
        assert {key: row[key] for key in source} == source
        assert row["chosen"] == f"Answer: {row['answer']}" and row["chosen_reward"] == 1
        if row["rejected"].startswith("Answer: "):
            kinds["wrong"] += 1
            assert row["rejected"] != row["chosen"] and row["rejected"][8] == row["task"]
            assert row["rejected_reward"] == 0
        else:
            kinds[row["rejected"].replace(row["answer"], "{answer}")] += 1
            assert row["rejected_reward"] == 0.5
    assert kinds.keys() == {"wrong", "{answer}", "It is {answer}."}
    # 2000 draws: 4 standard deviations of at most 0.0107
    assert kinds["wrong"] / 2000 == pytest.approx(0.3, abs=0.043)
    assert kinds["{answer}"] / 2000 == pytest.approx(0.35, abs=0.043)
    assert (
        preferences
        == synthesize_preferences(TASKS, 0.3, STYLES, seed=1)
        != synthesize_preferences(TASKS, 0.3, STYLES, seed=2)
    )
    assert all("chosen" not in row for row in TASKS)


@pytest.mark.parametrize(
    ("given", "wrong", "styles", "message"),
    [
        (TASKS, 0.5, ["{answer}"], "right answers are rejected for their style, but styles has only one"),
        (TASKS, 0.5, ["{answer}", "no"], "data.teacher.styles: 'no' does not contain {answer}"),
        ([{"task": "maze", "answer": None}], 0.5, STYLES, "row 0 (task 'maze') has no single answer to prefer"),
        (TASKS[:2], 0.5, STYLES, "task 'a': all of its rows have the same answer, so there is no wrong answer"),
    ],
)
def test_tasks_and_styles_without_a_worse_response_are_refused(given, wrong, styles, message):
    with pytest.raises(ValueError) as error:
        synthesize_preferences(given, wrong, styles, seed=0)
    assert message in str(error.value)


def test_one_style_is_enough_if_every_rejected_answer_is_wrong():
    assert all(row["rejected"] != row["chosen"] for row in synthesize_preferences(TASKS, 1.0, ["{answer}"], seed=0))


def test_pairs_in_tokens(tokenizer):
    end = (tokenizer.eos_token_id,)
    given = [
        {"prompt": "1+1=", "chosen": "2", "rejected": "11", "chosen_reward": 1, "rejected_reward": -0.5},
        {"prompt": "1+2=", "chosen": "12345678", "rejected": "3"},  # cut
        {"prompt": "1+3+4+5=", "chosen": "1", "rejected": "2"},  # no room
        {"prompt": "1+4=", "chosen": "5555x", "rejected": "5555y"},  # the same as far as they fit
    ]
    pairs, stats = tokenize_pairs(given, tokenizer, end, max_length=8)
    assert (stats.rows, stats.truncated, stats.dropped) == (4, 1, 2)
    assert [tokenizer.decode(pair.prompt) for pair in pairs] == ["1+1=", "1+2="]
    assert pairs[0].chosen.tolist() == [*tokenizer("2")["input_ids"], *end]
    assert pairs[0].rejected.tolist() == [*tokenizer("11")["input_ids"], *end]
    assert pairs[1].chosen.tolist() == tokenizer("1234")["input_ids"], "cut, so that it does not end"
    assert (pairs[0].chosen_reward, pairs[0].rejected_reward) == (1.0, -0.5)
    assert math.isnan(pairs[1].chosen_reward) and math.isnan(pairs[1].rejected_reward)
    assert stats.tokens == 2 + 3 + 4 + 2
    with pytest.raises(ValueError, match="none of the 2 pairs differs within the 4 tokens of max_length; raise it"):
        tokenize_pairs(given[:2], tokenizer, end, max_length=4)


@pytest.mark.parametrize("value", ["high", True, math.inf, math.nan])
def test_a_reward_that_is_not_a_number(tokenizer, value):
    row = {"prompt": "1", "chosen": "2", "rejected": "3", "good": 1.0, "bad": value}
    with pytest.raises(ValueError, match="data: row 0: 'bad' must be a finite number; got"):
        tokenize_pairs([row], tokenizer, (tokenizer.eos_token_id,), 9, ("good", "bad"))


def test_collated_pairs_have_the_chosen_in_the_first_half():
    one, two = (torch.tensor(x) for x in ([1, 2], [3]))
    batch = collate_pairs([Pair(one, one, two), Pair(two, two, torch.tensor([4, 5, 6]))])
    assert batch.tokens.tolist() == [[1, 2, 0], [3, 0, 0], [3, 0, 0], [4, 5, 6]]
    assert batch.mask.sum(dim=1).tolist() == [2, 1, 1, 3]
    assert batch.group.tolist() == [0, 1, 0, 1] and len(batch.prompts) == 2
    with pytest.raises(ValueError, match="no pairs to collate"):
        collate_pairs([])


SOLUTIONS = Path(__file__).parents[2].parent / "shared" / "data" / "gsm8k_model_solutions.jsonl"


@pytest.mark.skipif(not SOLUTIONS.is_file(), reason=f"no {SOLUTIONS.name} in {SOLUTIONS.parent}")
def test_pairs_of_real_solutions_load_and_tokenize():
    """Where one model's solution of a GSM8K question is right and another's wrong, the right one is preferred."""
    from grape_rl.data.chat import decode_text
    from grape_rl.model.scratch import bpe_tokenizer

    preferred = []
    for row in read_rows(SOLUTIONS):
        solutions = [value for value in row.values() if isinstance(value, dict)]
        right = [solution["solution"] for solution in solutions if solution["is_correct"]]
        wrong = [solution["solution"] for solution in solutions if not solution["is_correct"]]
        if right and wrong:
            preferred.append({"prompt": row["question"] + "\n", "chosen": right[0], "rejected": wrong[0]})
    assert len(preferred) > 300
    ready = with_preferences(preferred)
    tokenizer = bpe_tokenizer([row["prompt"] + row["chosen"] for row in ready], 1000)
    pairs, stats = tokenize_pairs(ready, tokenizer, (tokenizer.eos_token_id,), max_length=4096)
    assert len(pairs) == len(preferred) and stats.truncated == stats.dropped == 0
    for pair, row in list(zip(pairs, ready, strict=True))[:50]:
        for side in ("chosen", "rejected"):
            tokens = getattr(pair, side)
            assert tokens[-1] == tokenizer.eos_token_id
            assert decode_text(tokenizer, torch.cat([pair.prompt, tokens])) == row["prompt"] + row[side]
    assert collate_pairs(pairs[:8]).tokens.shape[0] == 16
