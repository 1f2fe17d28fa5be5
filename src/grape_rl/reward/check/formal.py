"""Checks of answers in a formal language: JSON under a schema, and mathematics by its meaning."""

import importlib.util
import json
from typing import Any, Literal

from pydantic import Field, PrivateAttr, model_validator

from grape_rl.reward.check.extract import extracted, gold_text
from grape_rl.reward.check.fields import Gold, Pattern, Seconds
from grape_rl.schema import Strict, parsed, require_allowed
from grape_rl.types import Response


class JsonSchema(Strict):
    """1 if the answer is JSON that fits the schema, else 0: a schema in place, or a file beside the rubric."""

    type: Literal["json_schema"]
    fits: dict[str, Any] | str = Field(alias="schema")
    extract: Pattern | None = None
    timeout_s: Seconds = 10.0

    _schema: dict[str, Any] = PrivateAttr()

    @model_validator(mode="after")
    def _sound(self, info: Any) -> "JsonSchema":  # a pydantic.ValidationInfo, which beartype cannot check
        from jsonschema import SchemaError, validators

        if isinstance(self.fits, str):
            require_allowed(self.fits, info.context)
        found = parsed(info.context["folder"] / self.fits) if isinstance(self.fits, str) else self.fits
        try:
            validators.validator_for(found).check_schema(found)
        except SchemaError as error:
            raise ValueError(f"no JSON schema: {error.message}") from None
        self._schema = found
        return self

    def score(self, response: Response) -> tuple[float, str]:
        """The score, and what it rests on."""
        from jsonschema import exceptions, validators

        answer = extracted(self.extract, response.text)
        if answer is None:
            return 0.0, f"nothing matches {self.extract!r}"
        try:
            value = json.loads(answer, parse_constant=_no_json)
        except (ValueError, RecursionError) as error:
            return 0.0, f"no JSON: {error}"
        validator = validators.validator_for(self._schema)(self._schema)
        fault = exceptions.best_match(validator.iter_errors(value))
        return (0.0, f"{fault.json_path}: {fault.message}"[:200]) if fault else (1.0, "it fits")


def _no_json(text: str) -> Any:
    raise ValueError(f"{text} is no JSON")


class MathVerify(Strict):
    """1 if the answer means the same as the gold one, as math-verify reads LaTeX and plain expressions; else 0."""

    type: Literal["math_verify"]
    gold: Gold
    extract: Pattern | None = None
    gold_extract: Pattern | None = None
    timeout_s: Seconds = 10.0

    @model_validator(mode="after")
    def _installed(self) -> "MathVerify":
        if importlib.util.find_spec("math_verify") is None:
            raise ValueError("the math_verify check needs the math-verify package: install grape-rl[math]")
        return self

    def score(self, response: Response) -> tuple[float, str]:
        """The score, and what it rests on."""
        import math_verify

        right = gold_text(self.gold, self.gold_extract)
        gold = math_verify.parse(_formula(right), **_AS)
        if not gold:
            raise ValueError(f"the gold answer {right!r} is no mathematics")
        answer = extracted(self.extract, response.text)
        if answer is None:
            return 0.0, f"nothing matches {self.extract!r}"
        found = math_verify.parse(_formula(answer) if self.extract else answer, **_AS)
        if not found:
            return 0.0, f"no mathematics in {answer[-80:]!r}"
        same = math_verify.verify(gold, found, timeout_seconds=None)
        return float(same), f"{str(found[0])[:80]} against {str(gold[0])[:80]}"


_AS: dict[str, Any] = {"parsing_timeout": None, "fallback_mode": "no_fallback"}
"""Its own time limits are alarms, of the main thread only, and here the whole process has one; and what is no
mathematics is not to be compared as text: that is what ``exact`` is for."""


def _formula(text: str) -> str:
    """An expression by itself as a formula: bare LaTeX is read only within dollars."""
    return text if any(mark in text for mark in ("$", "\\boxed", "\\(", "\\[")) else f"${text}$"
