"""The numeric and math_verify checks and the GSM8K example against the data and four models' real solutions."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from grape_rl.reward.check.callables import python_callable
from grape_rl.reward.check.checks import Numeric
from grape_rl.reward.check.math_verify import MathVerify
from grape_rl.reward.check.worker import CheckJob, run_checks
from grape_rl.reward.grading import assign_items, grade
from grape_rl.reward.rubric import check_rows, load_rubric
from grape_rl.types import Response

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared/data"
EXAMPLE = ROOT / "examples/gsm8k"


def rows(name):
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{path} is not there: it is openai/grade-school-math, which is no part of the repository")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def response(text, row=None, tokens=150):
    return Response("the question", text, row or {}, tokens, "stop")


def calculates(answer):
    """Whether a mark has more than a number before its equals sign, as ``<<12=12>>`` and ``<<+7=7>>`` have not."""
    for mark in answer.split("<<")[1:]:
        try:
            float(mark.split("=")[0])
        except ValueError:
            return True
    return False


@pytest.fixture(scope="module")
def marks():
    return python_callable("checks.py:calculator_marks", EXAMPLE, ["checks.py"])


def solutions(check, of):
    """A job for each of the four models' solutions of the rows, and whether the dataset says it is correct."""
    models = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
    each = [(row, row[model]) for row in of for model in models]
    jobs = [CheckJob("correct", check, response(said["solution"], row)) for row, said in each]
    return jobs, [said["is_correct"] for _, said in each]


GOLD: dict[str, Any] = {"gold": "${row.ground_truth}", "extract": "A: (.*)", "gold_extract": "A: (.*)"}


@pytest.mark.parametrize(
    ("check", "step", "count"),
    [
        (Numeric(type="numeric", **GOLD), 1, 4000),
        (MathVerify(type="math_verify", **GOLD), 20, 200),  # of all 4,000, too, but that takes half a minute
    ],
    ids=["numeric", "math_verify"],
)
def test_four_models_solutions_are_graded_as_the_data_set_grades_them(check, step, count):
    jobs, correct = solutions(check, rows("gsm8k_model_solutions.jsonl")[::step])
    found = run_checks(jobs)
    assert {v.status for v in found} == {"ok"}
    assert [v for v, right in zip(found, correct, strict=True) if v.score != right] == []
    assert len(found) == count and min(Counter(correct).values()) > count / 4


def test_gold_answers_score_on_every_item_of_the_example():
    data = rows("gsm8k_train.jsonl")[:500]
    rubric = load_rubric(EXAMPLE / "rubric.yaml", ["checks.py"])
    check_rows(rubric, data)
    graded = grade(assign_items(rubric, [response(row["answer"], row) for row in data]))
    verdicts = [each.verdicts for each in graded]
    zero = {v.item: [] for v in verdicts[0]}
    for index, found in enumerate(verdicts):
        assert all(v.status == "ok" for v in found)
        for v in found:
            if v.score != 1:
                zero[v.item].append(index)
    uncalculated = [index for index, row in enumerate(data) if not calculates(row["answer"])]
    assert zero == {"correct": [], "result_line": [], "calculator": uncalculated, "brevity": []}
    assert len(uncalculated) == 17


def test_every_calculation_of_the_data_set_is_right(marks):
    data = rows("gsm8k_train.jsonl") + rows("gsm8k_test.jsonl")
    assert [row["answer"] for row in data if marks(response(row["answer"])) != calculates(row["answer"])] == []


def test_a_wrong_answer_loses_the_items_it_should():
    rubric = load_rubric(EXAMPLE / "rubric.yaml", ["checks.py"])
    row = {"answer": "so <<2*36=72>>72\n#### 72"}
    cases = {
        "so <<2*36=72>>72\n#### 72": (1, 1, 1, 1),
        "so <<2*36=72>>72\n#### $72.00\n": (1, 1, 1, 1),
        "so <<2*36=72>>72\n#### 72 clips": (1, 0, 1, 1),
        "so <<2*36=72>>72\n#### 71": (0, 1, 1, 1),
        "so <<2*36=73>>73\n#### 72": (1, 1, 0, 1),
        "so 72\n#### 72": (1, 1, 0, 1),
        "so <<2*36=72>>72": (0, 0, 1, 1),
        "#### 72\nno, wait": (1, 0, 0, 1),
    }
    for text, scores in cases.items():
        found = grade(assign_items(rubric, [response(text, row)]))[0].verdicts
        assert tuple(v.score for v in found) == scores, text
    assert grade(assign_items(rubric, [response("#### 72", row, tokens=201)]))[0].verdicts[3].score == 0


@pytest.mark.parametrize(
    ("mark", "right"),
    [
        ("48/2=24", True),
        ("48/2=25", False),
        ("(3+4)*2-1=13", True),
        ("-5+3=-2", True),
        ("1,200*2=2,400", True),
        ("50%*30=15", True),
        ("200*.5%=1", True),
        ("180//3=60", True),
        ("100/3=33.33", True),  # rounded to the places that are written
        ("100/3=33.34", False),
        ("2/3=0.66", False),
        ("7/2=3", False),  # a whole result is exact
        ("0.1+0.2=0.30000000000000004", True),  # the calculator's own noise
        ("1/3=0.3333333333333333", True),
        ("3*15=$45", True),
        ("12+12=24", True),
        ("3*+6=18", True),
        ("72=72", True),  # read off the question: right, if no calculation
        ("72=73", False),
        ("2*3=6=6", False),
        ("2*3", False),
        ("x+2=4", False),
        ("2**3=8", False),
        ("9**9**9**9=1", False),
        ("1/0=0", False),
        ("__import__('os').getcwd()=1", False),
        ("2*3=", False),
        ("=6", False),
        ("", False),
        ("(" * 150 + "=1", False),
        ("-" * 150 + "1+0=1", True),
        ("1e9+1=1000000001", True),
        ("1+1=2e0", False),
        ("1+1=1e999999999", False),  # at once
        ("5-8=-$3", True),
        ("1-1/4=3/4", True),
        ("1-1/4=3/0", False),
        ("-" * 100_000 + "1+0=1", False),  # no parser has to go so deep
        ("1e400+1=1", False),
        ("1+1=" + "1" * 5000, False),
        ("True+1=2", False),
    ],
)
def test_calculator_marks(marks, mark, right):
    assert marks(response(f"<<1+1=2>> so <<{mark}>> it is")) == right
    assert marks(response(f"so <<{mark}>> and <<1+1=3>>")) == 0


@pytest.mark.parametrize(
    ("text", "right"),
    [("<<2*3=6>>", 1), ("<<6=6>> <<-6=-6>>", 0), ("<<6=6>> <<6/2=3>>", 1), ("2*3=6", 0), ("<<2*3=6", 0), ("", 0)],
)
def test_one_mark_at_least_has_to_be_a_calculation(marks, text, right):
    assert marks(response(text)) == right
