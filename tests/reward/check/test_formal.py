"""Answers in a formal language: JSON under a schema, mathematics by its meaning."""

import json
import math

import pytest
from pydantic import TypeAdapter, ValidationError

from grape_rl.reward.check.checks import Check, verdict
from grape_rl.types import Response


def graded(spec, text, row=None, folder=None):
    check = TypeAdapter(Check).validate_python(spec, context={"folder": folder, "allow": ()})
    return verdict("item", check, Response("the prompt", text, row or {}, 10, "stop"))


PERSON = {
    "type": "object",
    "required": ["name"],
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("text", "expected", "told"),
    [
        ('{"name": "Ada"}', 1, "it fits"),
        (' {"age": 3, "name": "Ada"}\n', 1, "it fits"),
        ('{"age": 3}', 0, "$: 'name' is a required property"),
        ('{"name": "Ada", "age": -1}', 0, "$.age: -1 is less than the minimum of 0"),
        ('{"name": "Ada", "more": 1}', 0, "more"),
        ('{"name": "Ada"', 0, "no JSON"),
        ('{"name": "Ada", "age": NaN}', 0, "NaN is no JSON"),
        ("", 0, "no JSON"),
        ("[" * 100_000, 0, "no JSON"),
    ],
)
def test_json_schema(text, expected, told):
    found = graded({"type": "json_schema", "schema": PERSON}, text)
    assert (found.status, found.score) == ("ok", expected) and told in found.reasoning


def test_json_schema_in_a_file_and_in_part_of_the_text(tmp_path):
    (tmp_path / "person.json").write_text(json.dumps(PERSON))
    spec = {"type": "json_schema", "schema": "person.json", "extract": r"```json\n(?s:(.*?))```"}
    assert graded(spec, 'So:\n```json\n{"name": "Ada"}\n```', folder=tmp_path).score == 1
    found = graded(spec, '{"name": "Ada"}', folder=tmp_path)
    assert (found.score, found.status) == (0, "ok") and "nothing matches" in found.reasoning


@pytest.mark.parametrize(
    ("schema", "told"),
    [({"type": "objekt"}, "no JSON schema: 'objekt' is not valid"), ("absent.json", "absent.json: cannot be read")],
)
def test_a_bad_schema_is_refused_as_the_rubric_loads(schema, told, tmp_path):
    with pytest.raises(ValidationError, match=told):
        graded({"type": "json_schema", "schema": schema}, "{}", folder=tmp_path)


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
        ("?!", None, "the gold answer '?!' is no mathematics"),
        ("3 #### ?!", "#### (.*)", "the gold answer '?!' is no mathematics"),
        ("3", "#### (.*)", "gold_extract '#### (.*)' finds nothing in the gold answer '3'"),
        ("", None, "no gold answer in ''"),
        (None, None, "the gold answer None is neither text nor a number"),  # and not N·o·n·e
        (math.nan, None, "the gold answer nan is neither text nor a number"),
    ],
)
def test_a_gold_answer_that_is_no_mathematics_is_missing(gold, pattern, told):
    spec = {"type": "math_verify", "gold": "${row.gold}", "gold_extract": pattern}
    found = graded(spec, "3", {"gold": gold})
    assert found.missing and told in found.reasoning
