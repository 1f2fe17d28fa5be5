"""JSON answers under a schema, in the rubric or in a file."""

import json

import pytest
from pydantic import TypeAdapter, ValidationError

from grape_rl.reward.check.checks import Check, check_verdict
from grape_rl.types import Response


def graded(spec, text, row=None, folder=None):
    check = TypeAdapter(Check).validate_python(spec, context={"folder": folder, "allow": ()})
    return check_verdict("item", check, Response("the prompt", text, row or {}, 10, "stop"))


PERSON = {
    "type": "object",
    "required": ["name"],
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("text", "expected", "told"),
    [
        ('{"name": "Ada"}', 1, "valid under the schema"),
        (' {"age": 3, "name": "Ada"}\n', 1, "valid under the schema"),
        ('{"age": 3}', 0, "$: 'name' is a required property"),
        ('{"name": "Ada", "age": -1}', 0, "$.age: -1 is less than the minimum of 0"),
        ('{"name": "Ada", "more": 1}', 0, "more"),
        ('{"name": "Ada"', 0, "not JSON"),
        ('{"name": "Ada", "age": NaN}', 0, "not JSON: NaN is not allowed"),
        ("", 0, "not JSON"),
        ("[" * 100_000, 0, "not JSON"),
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
    [({"type": "objekt"}, "not a JSON schema: 'objekt' is not valid"), ("absent.json", "absent.json: cannot be read")],
)
def test_an_invalid_schema_is_refused_when_the_rubric_loads(schema, told, tmp_path):
    with pytest.raises(ValidationError, match=told):
        graded({"type": "json_schema", "schema": schema}, "{}", folder=tmp_path)
