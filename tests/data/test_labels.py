"""Labels as rows and as tokens: their accepted forms, unpaired pairs, and mismatched completions."""

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
    labels = [row["label"] for row in with_labels([{"label": on}, {"label": off}])]
    assert labels[0] is True and labels[1] is False


@pytest.mark.parametrize("value", ["yes", 2, -1, 1.0, None, [True], {}, ""])
def test_an_invalid_label_is_refused(value):
    with pytest.raises(ValueError) as error:
        with_labels([{"label": True}, {"label": value}], source="rows.csv")
    assert str(error.value) == f"rows.csv: row 1: the label ('label') must be true or false; got {value!r}"


def test_a_missing_label_column_is_refused_with_the_nearest_name():
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
    whole, stats = tokenize_labeled_responses(rows, tokenizer, end, 50)
    assert (stats.rows, stats.truncated, stats.dropped, stats.tokens) == (3, 0, 0, 2 + 8 + 2)
    assert [response.desirable for response in whole] == [True, False, True]
    assert tokenizer.decode(whole[1].example.completion[:-1]) == "1234567" and whole[1].example.completion[-1] == end[0]
    truncated, stats = tokenize_labeled_responses(rows, tokenizer, end, len(whole[0].example.prompt) + 2)
    assert (stats.truncated, stats.dropped) == (1, 1)
    assert [len(response.example.completion) for response in truncated] == [2, 2]
    assert [response.desirable for response in truncated] == [True, False]
    with pytest.raises(ValueError, match="data: none of the 3 rows has a response within the 2 tokens of max_length"):
        tokenize_labeled_responses(rows, tokenizer, end, 2)


def example(prompt, completion):
    return Example(torch.tensor(prompt), torch.tensor(completion))


def test_a_completion_follows_the_next_different_prompt():
    examples = [example([1], [11]), example([1], [12, 13, 14]), example([2, 2], [21, 22, 23]), example([1], [15])]
    labels = mismatched_completions(examples, 4)
    rows = [(p.tolist(), t[m].tolist()) for p, t, m in zip(labels.prompts, labels.tokens, labels.mask, strict=True)]
    assert rows == [([1], [21, 22, 23]), ([1], [21, 22, 23]), ([2, 2], [15]), ([1], [21, 22, 23])]
    truncated = mismatched_completions([examples[1], examples[2]], 4)
    assert truncated.mask.sum(dim=1).tolist() == [3, 2], "truncated where it exceeds the length with its new prompt"
    cycled = mismatched_completions([example([i], [10 + i]) for i in range(3)], 9)
    assert cycled.tokens.flatten().tolist() == [11, 12, 10]


def test_a_single_prompt_gives_no_mismatched_completions():
    assert mismatched_completions([example([1], [11]), example([1], [12])], 9) is None
    assert mismatched_completions([example([1], [11])], 9) is None
