"""Mathematical answers by their meaning, and gold answers that are not mathematics."""

import math

import pytest
from pydantic import TypeAdapter

from grape_rl.reward.check.checks import Check, check_verdict
from grape_rl.types import Response


def graded(spec, text, row=None):
    check = TypeAdapter(Check).validate_python(spec)
    return check_verdict("item", check, Response("the prompt", text, row or {}, 10, "stop"))


@pytest.mark.parametrize(
    ("gold", "text", "expected"),
    [
        ("\\frac{1}{2}", "so it is $0.5$", 1),
        ("\\frac{1}{2}", "so it is \\boxed{\\frac{2}{4}}", 1),
        ("1/2", "the answer is $\\frac12$", 1),
        ("\\frac{1}{2}", "so it is $2$", 0),
        ("$x^2 - 1$", "$(x-1)(x+1)$", 1),
        ("$\\{1, 2\\}$", "$\\{2, 1\\}$", 1),
        (72, "It is 72.", 1),
        (72, "It is 27.", 0),
        ("72", "I do not know", 0),
    ],
)
def test_math_verify(gold, text, expected):
    found = graded({"type": "math_verify", "gold": "${row.gold}"}, text, {"gold": gold})
    assert (found.status, found.score) == ("ok", expected), found


def test_math_verify_of_a_part():
    spec = {"type": "math_verify", "gold": "3", "extract": "Answer: (.*)"}
    assert graded(spec, "2 and then\nAnswer: 6/2").score == 1
    assert graded(spec, "Answer: 3\nAnswer: 2").score == 0
    assert graded(spec, "3").score == 0


def test_math_verify_of_a_part_of_the_gold_answer():
    spec = {"type": "math_verify", "gold": "${row.gold}", "gold_extract": "#### (.*)"}
    gold = {"gold": "She pays $4.00 + $2.00 = $6.00.\n#### 6"}
    assert graded(spec, "It is 6.00", gold).score == 1
    assert graded(spec, "It is 4", gold).score == 0
    assert graded(spec | {"gold": "#### 5 or\n#### \\frac{12}{2}"}, "It is 6").score == 1


@pytest.mark.parametrize(
    ("gold", "pattern", "told"),
    [
        ("?!", None, "the gold answer '?!' is not mathematics"),
        ("3 #### ?!", "#### (.*)", "the gold answer '?!' is not mathematics"),
        ("3", "#### (.*)", "gold_extract '#### (.*)' finds nothing in the gold answer '3'"),
        ("", None, "no gold answer in ''"),
        (None, None, "the gold answer None is neither text nor a number"),  # and not N·o·n·e
        (math.nan, None, "the gold answer nan is neither text nor a number"),
    ],
)
def test_a_gold_answer_that_is_not_mathematics_is_missing(gold, pattern, told):
    spec = {"type": "math_verify", "gold": "${row.gold}", "gold_extract": pattern}
    found = graded(spec, "3", {"gold": gold})
    assert found.missing and told in found.reasoning
