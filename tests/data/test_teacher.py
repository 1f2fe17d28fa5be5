"""Synthetic demonstrations: the fraction of wrong answers, the styles, and the seed."""

from collections import Counter

import pytest

from grape_rl.data.teacher import synthesize_demonstrations

STYLES = {"Answer: {answer}": 2.0, "{answer}": 1.0, "Let me see. Answer: {answer}": 1.0}
ROWS = [{"prompt": f"q{i}", "answer": f"{task}{i}", "task": task, "n": i} for i in range(2000) for task in "ab"]


def answer_of(row):
    """The answer in the completion, whatever its style."""
    return row["completion"].rsplit(" ", 1)[-1]


def test_a_teacher_without_mistakes():
    demonstrations = synthesize_demonstrations(ROWS, 0.0, {"= {answer}": 1.0}, seed=0)
    assert [row["completion"] for row in demonstrations] == [f"= {row['answer']}" for row in ROWS]
    assert [{k: v for k, v in row.items() if k != "completion"} for row in demonstrations] == ROWS
    assert "completion" not in ROWS[0]


def test_a_fraction_is_wrong_with_an_answer_of_the_same_task():
    demonstrations = synthesize_demonstrations(ROWS, 0.3, STYLES, seed=1)
    wrong = [row for row in demonstrations if answer_of(row) != row["answer"]]
    # 4000 draws: 0.3 ± 4 standard deviations of 0.0072. All answers differ, so a mistaken one is (nearly) never right.
    assert len(wrong) / len(demonstrations) == pytest.approx(0.3, abs=0.03)
    answers = {task: {row["answer"] for row in ROWS if row["task"] == task} for task in "ab"}
    assert all(answer_of(row) in answers[row["task"]] for row in wrong)
    assert len({answer_of(row) for row in wrong}) > 500


def test_styles_are_sampled_by_their_weights():
    counts = Counter(
        row["completion"].replace(answer_of(row), "{answer}")
        for row in synthesize_demonstrations(ROWS, 0.5, STYLES, seed=2)
    )
    assert counts.keys() == STYLES.keys()
    for style, weight in STYLES.items():
        assert counts[style] / len(ROWS) == pytest.approx(weight / 4, abs=0.032)  # 4 deviations of at most 0.0079


def test_every_placeholder_of_a_style_is_replaced():
    (row,) = synthesize_demonstrations([{"answer": "{answer}!"}], 0.0, {"{answer} {x} {answer}": 1.0}, seed=0)
    assert row["completion"] == "{answer}! {x} {answer}!"


def test_the_seed_determines_the_demonstrations():
    first = synthesize_demonstrations(ROWS, 0.3, STYLES, seed=3)
    assert first == synthesize_demonstrations(ROWS, 0.3, STYLES, seed=3)
    assert first != synthesize_demonstrations(ROWS, 0.3, STYLES, seed=4)


@pytest.mark.parametrize(
    ("rows", "styles", "message"),
    [
        (ROWS[:1], {}, "data.teacher.styles is empty: give at least one style"),
        (ROWS[:1], {"{answer}": 1.0, "Answer:": 1.0}, "data.teacher.styles: 'Answer:' does not contain {answer}"),
        ([ROWS[0], {"task": "maze", "answer": None}], {"{answer}": 1.0}, "row 1 (task 'maze') has no single answer"),
    ],
)
def test_invalid_rows_and_styles_are_refused(rows, styles, message):
    with pytest.raises(ValueError) as error:
        synthesize_demonstrations(rows, 0.0, styles, seed=0)
    assert message in str(error.value)
