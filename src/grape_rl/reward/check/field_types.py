"""Types of the fields of checks: text with look-ups, patterns, gold answers, limits."""

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from grape_rl.reward.check.lookup import filled, lookups


def _text(text: str) -> str:
    lookups(text)
    return text


def _pattern(text: str) -> str:
    lookups(text)
    try:
        re.compile(filled(text, _AnyRow(), quoted=lambda _: "x"))
    except re.error as error:
        raise ValueError(f"bad pattern {text!r}: {error}") from None
    return text


class _AnyRow(dict[str, Any]):
    """A row with every column, each of them such a row: the data when a pattern is compiled at load time."""

    def __contains__(self, key: object) -> bool:
        return True

    def __getitem__(self, key: str) -> "_AnyRow":
        return self


def _constant(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f"should be text or a number but is {value!r}; put text such as yes and no in quotes")
    return _text(value) if isinstance(value, str) else value


LookupText = Annotated[str, AfterValidator(_text)]
Pattern = Annotated[str, AfterValidator(_pattern)]
GoldAnswer = Annotated[str | int | float, BeforeValidator(_constant)]
Tolerance = Annotated[float, Field(ge=0)]
SizeLimit = Annotated[int, Field(ge=0, strict=True)]
TimeLimit = Annotated[float, Field(gt=0)]
"""Seconds."""

PATTERN_FIELDS = ("extract", "gold_extract", "pattern")
"""The fields of checks that are a ``Pattern``."""
