"""Stepwise supervision: valid rows, the positions of labels, and steps synthesized from tasks."""

import math

import pytest
import torch

from grape_rl.data.steps import (
    collate_solutions,
    response_steps,
    step_tokens,
    synthesize_steps,
    tokenize_solutions,
    with_steps,
)

ROWS = [
    {"prompt": "1+1+1=", "completions": ["2+1=", "3"], "labels": [True, True]},
    {"prompt": "2+2=", "completions": ["5"], "labels": [False]},
]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"completions": ["a", "b"], "labels": [True]}, "2 steps in 'completions' but 1 labels in 'labels'; give each"),
        (
            {"labels": [True]},
            "row 1 has no column 'completions': stepwise data needs the steps of a solution",
        ),
        ({"prompt": "p", "chosen": "a", "rejected": "b"}, "a label for each; it has 'prompt', 'chosen', 'rejected'"),
        ({"completions": ["a"]}, "row 1 has no column 'labels'"),
        ({"completions": "a", "labels": [True]}, "'completions' must be a list of non-empty texts, one per"),
        ({"completions": [" "], "labels": [True]}, "'completions' must be a list of non-empty texts, one per"),
        ({"completions": [], "labels": []}, "'completions' must be a list of non-empty texts"),
        ({"completions": ["a"], "labels": [1]}, "'labels' must be a list of true and false, one per step; got [1]"),
        ({"completions": ["a"], "labels": True}, "'labels' must be a list of true and false, one per step; got True"),
    ],
)
def test_an_invalid_stepwise_row_is_refused(row, message):
    with pytest.raises(ValueError) as error:
        with_steps([ROWS[0], row])
    assert message in str(error.value) and "\n" not in str(error.value) and "row 1" in str(error.value)


def test_columns_of_other_names():
    (row,) = with_steps([{"s": ["a"], "z": [False], "prompt": "p"}], "s", "z")
    assert (row["completions"], row["labels"], row["prompt"]) == (["a"], [False], "p")


def with_labels_shown(tokenizer, solution):
    return "".join(
        tokenizer.decode([token]) + ("" if math.isnan(label) else f"[{label:g}]")
        for token, label in zip(solution.tokens.tolist(), solution.label.tolist(), strict=True)
    )


def test_a_label_is_at_the_last_token_of_the_separator(tokenizer):
    solutions, stats = tokenize_solutions(ROWS, tokenizer, 64, "data")
    assert [with_labels_shown(tokenizer, solution) for solution in solutions] == ["2+1=\n[1]3\n[1]", "5\n[0]"]
    assert (stats.rows, stats.truncated, stats.dropped) == (2, 0, 0)
    solutions, _ = tokenize_solutions(ROWS, tokenizer, 64, "data", separator=", ")
    assert with_labels_shown(tokenizer, solutions[0]) == "2+1=, [1]3, [1]"
    solutions, _ = tokenize_solutions(ROWS, tokenizer, 64, "data", train_on_last_step_only=True)
    assert with_labels_shown(tokenizer, solutions[0]) == "2+1=\n3\n[1]"


def test_steps_over_the_limit_are_dropped_whole(tokenizer):
    solutions, stats = tokenize_solutions(ROWS, tokenizer, 12, "data")
    assert [with_labels_shown(tokenizer, solution) for solution in solutions] == ["2+1=\n[1]", "5\n[0]"]
    assert (stats.truncated, stats.dropped) == (1, 0)
    solutions, stats = tokenize_solutions(ROWS, tokenizer, 12, "data", train_on_last_step_only=True)
    assert [with_labels_shown(tokenizer, solution) for solution in solutions] == ["5\n[0]"] and stats.dropped == 1
    with pytest.raises(ValueError, match="none of the 2 solutions has a labeled step within the 5 tokens"):
        tokenize_solutions(ROWS, tokenizer, 5, "data")


def test_a_step_has_the_same_tokens_whatever_follows_it(tokenizer):
    two, one = step_tokens(tokenizer, ["2+1=", "3"], "\n"), step_tokens(tokenizer, ["2+1="], "\n")
    assert torch.equal(two[0], one[0])
    assert response_steps("2+1=\n3", "\n") == ["2+1=", "3"] and response_steps(" \n", "\n") == [""]


def test_a_batch_of_solutions(tokenizer):
    solutions, _ = tokenize_solutions(ROWS, tokenizer, 64, "data")
    sequences, label = collate_solutions(solutions)
    assert sequences.mask.sum(1).tolist() == [7, 2] and label.shape == sequences.tokens.shape
    assert label[~label.isnan()].tolist() == [1, 1, 0] and label[~sequences.mask].isnan().all()
    with pytest.raises(ValueError, match="no solutions to collate"):
        collate_solutions([])


def task(*answers):
    return [{"prompt": f"q{i}", "answer": answer, "task": "t"} for i, answer in enumerate(answers)]


def test_a_synthesized_step_is_right_as_long_as_the_right_answer_begins_so():
    rows = task(*["abc", "abd", "xyz", "12"] * 25)
    made = synthesize_steps(rows, 0.5, seed=1)
    wrong = 0
    for row in made:
        for i, label in enumerate(row["labels"]):
            assert label == row["answer"].startswith("".join(row["completions"][: i + 1]))
        wrong += "".join(row["completions"]) != row["answer"]
    assert 35 < wrong < 65, "about the requested fraction"
    assert made == synthesize_steps(rows, 0.5, seed=1) != synthesize_steps(rows, 0.5, seed=2)
    assert all(all(row["labels"]) for row in synthesize_steps(rows, 0.0, seed=1))


def test_tasks_without_an_answer_or_a_wrong_answer_are_refused():
    with pytest.raises(ValueError, match="task 't': all of its rows have the same answer"):
        synthesize_steps(task("a", "a"), 0.5, seed=0)
    with pytest.raises(ValueError, match=r"row 1 \(task 't'\) has no single answer to write step by step"):
        synthesize_steps(task("a", None), 0.5, seed=0)
