"""A check of JSON answers under a JSON schema."""

import json
from typing import Any, Literal

from pydantic import Field, PrivateAttr, model_validator

from grape_rl.reward.check.extract import extract_text
from grape_rl.reward.check.field_types import Pattern, TimeLimit
from grape_rl.schema import Strict, parsed, require_allowed
from grape_rl.types import Response


class JsonSchema(Strict):
    """1 if the answer is JSON that validates under the schema, else 0.

    ``schema`` is the schema itself, or the name of a file in the rubric's folder.
    """

    type: Literal["json_schema"]
    schema_or_file: dict[str, Any] | str = Field(alias="schema")
    extract: Pattern | None = None
    timeout_s: TimeLimit = 10.0

    _schema: dict[str, Any] = PrivateAttr()

    @model_validator(mode="after")
    def _valid(self, info: Any) -> "JsonSchema":  # a pydantic.ValidationInfo, which beartype cannot check
        from jsonschema import SchemaError, validators

        schema = self.schema_or_file
        if isinstance(schema, str):
            require_allowed(schema, info.context)
            schema = parsed(info.context["folder"] / schema)
        try:
            validators.validator_for(schema).check_schema(schema)
        except SchemaError as error:
            raise ValueError(f"not a JSON schema: {error.message}") from None
        self._schema = schema
        return self

    def score(self, response: Response) -> tuple[float, str]:
        """The score and its reason."""
        from jsonschema import exceptions, validators

        answer = extract_text(self.extract, response.text)
        if answer is None:
            return 0.0, f"nothing matches {self.extract!r}"
        try:
            value = json.loads(answer, parse_constant=_reject_constant)
        except (ValueError, RecursionError) as error:
            return 0.0, f"not JSON: {error}"
        validator = validators.validator_for(self._schema)(self._schema)
        error = exceptions.best_match(validator.iter_errors(value))
        return (0.0, f"{error.json_path}: {error.message}"[:200]) if error else (1.0, "valid under the schema")


def _reject_constant(text: str) -> Any:
    """Refuse NaN and Infinity, which Python's parser accepts."""
    raise ValueError(f"{text} is not allowed")
