"""The teacher: how often it is wrong, how it writes, and that it does so again."""

from collections import Counter

import pytest

from grape_rl.data.teacher import synthesize_demonstrations

STYLES = {"Answer: {answer}": 2.0, "{answer}": 1.0, "Let me see. Answer: {answer}": 1.0}
ROWS = [{"prompt": f"q{i}", "answer": f"{task}{i}", "task": task, "n": i} for i in range(2000) for task in "ab"]


def spoken(row):
    """The answer in the completion, whatever its style."""
    return row["completion"].rsplit(" ", 1)[-1]


def test_a_faultless_teacher():
    taught = synthesize_demonstrations(ROWS, 0.0, {"= {answer}": 1.0}, seed=0)
    assert [row["completion"] for row in taught] == [f"= {row['answer']}" for row in ROWS]
    assert [{k: v for k, v in row.items() if k != "completion"} for row in taught] == ROWS
    assert "completion" not in ROWS[0]


def test_a_share_is_wrong_with_an_answer_of_the_same_task():
    taught = synthesize_demonstrations(ROWS, 0.3, STYLES, seed=1)
    wrong = [row for row in taught if spoken(row) != row["answer"]]
    # 4000 draws: 0.3 ± 4 standard deviations of 0.0072. All answers differ, so a mistaken one is (nearly) never right.
    assert len(wrong) / len(taught) == pytest.approx(0.3, abs=0.03)
    answers = {task: {row["answer"] for row in ROWS if row["task"] == task} for task in "ab"}
    assert all(spoken(row) in answers[row["task"]] for row in wrong)
    assert len({spoken(row) for row in wrong}) > 500


def test_styles_come_as_often_as_they_weigh():
    found = Counter(
        row["completion"].replace(spoken(row), "{answer}")
        for row in synthesize_demonstrations(ROWS, 0.5, STYLES, seed=2)
    )
    assert found.keys() == STYLES.keys()
    for style, weight in STYLES.items():
        assert found[style] / len(ROWS) == pytest.approx(weight / 4, abs=0.032)  # 4 deviations of at most 0.0079


def test_a_style_says_the_answer_wherever_it_is_asked_to():
    (taught,) = synthesize_demonstrations([{"answer": "{answer}!"}], 0.0, {"{answer} {x} {answer}": 1.0}, seed=0)
    assert taught["completion"] == "{answer}! {x} {answer}!"


def test_the_same_seed_teaches_the_same_and_another_something_else():
    first = synthesize_demonstrations(ROWS, 0.3, STYLES, seed=3)
    assert first == synthesize_demonstrations(ROWS, 0.3, STYLES, seed=3)
    assert first != synthesize_demonstrations(ROWS, 0.3, STYLES, seed=4)


@pytest.mark.parametrize(
    ("rows", "styles", "message"),
    [
        (ROWS[:1], {}, "data.teacher.styles is empty: at least one style"),
        (ROWS[:1], {"{answer}": 1.0, "Answer:": 1.0}, "data.teacher.styles: 'Answer:' has no {answer} in it"),
        ([ROWS[0], {"task": "maze", "answer": None}], {"{answer}": 1.0}, "row 1 (task 'maze') has no single answer"),
    ],
)
def test_what_cannot_be_taught(rows, styles, message):
    with pytest.raises(ValueError) as told:
        synthesize_demonstrations(rows, 0.0, styles, seed=0)
    assert message in str(told.value)
