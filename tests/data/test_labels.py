"""Labels as rows and as tokens: how they may be written, pairs taken apart, and completions behind other prompts."""

import pytest
import torch

from grape_rl.data.chat import Example
from grape_rl.data.labels import mismatched_completions, tokenize_labeled_responses, unpair, with_labels
from grape_rl.data.preferences import with_preferences

USER, GOOD, BAD = (
    {"role": "user", "content": "Sky?"},
    {"role": "assistant", "content": "Blue."},
    {"role": "assistant", "content": "Green."},
)


@pytest.mark.parametrize(("on", "off"), [(True, False), (1, 0), ("true", "false"), ("True ", " FALSE"), ("1", "0")])
def test_a_label_may_be_written_in_several_ways(on, off):
    found = [row["label"] for row in with_labels([{"label": on}, {"label": off}])]
    assert found[0] is True and found[1] is False


@pytest.mark.parametrize("value", ["yes", 2, -1, 1.0, None, [True], {}, ""])
def test_what_is_no_label_is_told(value):
    with pytest.raises(ValueError) as told:
        with_labels([{"label": True}, {"label": value}], source="rows.csv")
    assert str(told.value) == f"rows.csv: row 1: the label ('label') must be true or false; got {value!r}"


def test_a_column_that_is_not_there_is_told_with_the_nearest():
    with pytest.raises(ValueError, match=r"row 0 has no column 'label', .* it has 'lable'; did you mean 'lable'\?"):
        with_labels([{"lable": True}])


def test_pairs_become_two_labeled_responses():
    rows = with_preferences([{"chosen": [USER, GOOD], "rejected": [USER, BAD], "id": 3}])
    assert unpair(rows) == [
        {"prompt": [USER], "completion": [GOOD], "label": True, "id": 3},
        {"prompt": [USER], "completion": [BAD], "label": False, "id": 3},
    ]


def test_responses_in_tokens(tokenizer):
    rows = [
        {"prompt": "1+1=", "completion": "2", "label": True},
        {"prompt": "1+1=", "completion": "1234567", "label": False},
        {"prompt": "1+1+1+1=", "completion": "4", "label": True},
    ]
    end = (tokenizer.eos_token_id,)
    whole, lengths = tokenize_labeled_responses(rows, tokenizer, end, 50)
    assert (lengths.rows, lengths.truncated, lengths.dropped, lengths.tokens) == (3, 0, 0, 2 + 8 + 2)
    assert [each.desirable for each in whole] == [True, False, True]
    assert tokenizer.decode(whole[1].example.completion[:-1]) == "1234567" and whole[1].example.completion[-1] == end[0]
    cut, lengths = tokenize_labeled_responses(rows, tokenizer, end, len(whole[0].example.prompt) + 2)
    assert (lengths.truncated, lengths.dropped) == (1, 1)
    assert [len(each.example.completion) for each in cut] == [2, 2] and [each.desirable for each in cut] == [
        True,
        False,
    ]
    with pytest.raises(ValueError, match="data: none of the 3 rows has a response within the 2 tokens of max_length"):
        tokenize_labeled_responses(rows, tokenizer, end, 2)


def example(prompt, completion):
    return Example(torch.tensor(prompt), torch.tensor(completion))


def test_a_completion_goes_behind_the_next_prompt_that_is_another():
    given = [example([1], [11]), example([1], [12, 13, 14]), example([2, 2], [21, 22, 23]), example([1], [15])]
    found = mismatched_completions(given, 4)
    rows = [(p.tolist(), t[m].tolist()) for p, t, m in zip(found.prompts, found.tokens, found.mask, strict=True)]
    assert rows == [([1], [21, 22, 23]), ([1], [21, 22, 23]), ([2, 2], [15]), ([1], [21, 22, 23])]
    cut = mismatched_completions([given[1], given[2]], 4)
    assert cut.mask.sum(dim=1).tolist() == [3, 2], "cut where it would be over the length behind its new prompt"
    cycled = mismatched_completions([example([i], [10 + i]) for i in range(3)], 9)
    assert cycled.tokens.flatten().tolist() == [11, 12, 10]


def test_nothing_is_mismatched_where_there_is_only_one_prompt():
    assert mismatched_completions([example([1], [11]), example([1], [12])], 9) is None
    assert mismatched_completions([example([1], [11])], 9) is None
