"""Rubrics with one criterion and a described score scale: 1 to 5 in BiGGen-Bench, 1 to any N here."""

import re
from collections.abc import Mapping
from typing import Any

from grape_rl.reward.formats.parsing import field_text

ANCHORED_ID = "quality"
"""The id of the one item of such a rubric."""

_KEY = re.compile(r"score([1-9]\d*)_description")


def anchored_items(value: Any) -> list[dict[str, Any]]:
    """The one item of ``{criteria, score1_description, …, scoreN_description}``. Score i of N maps to (i − 1)/(N − 1).

    If the rubric has a ``reference`` (text that may contain lookups), the critic is shown it.

    Raises:
        ValueError: the value has another form, or a score between 1 and N has no description.

    >>> rubric = {"criteria": "Is it kind?", "score1_description": "rude", "score2_description": "kind"}
    >>> (item,) = anchored_items(rubric)
    >>> item["judge"]["labels"], item["judge"]["anchors"]
    ({'1': 0.0, '2': 1.0}, {'1': 'rude', '2': 'kind'})
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"should be {{criteria, score1_description, …}} but is {value!r:.80}")
    known = {"criteria", "reference"}
    if unknown := [key for key in value if key not in known and not _KEY.fullmatch(str(key))]:
        raise ValueError(f"unknown key {unknown[0]!r}: should be {{criteria, score1_description, …}}")
    top = max((int(match[1]) for key in value if (match := _KEY.fullmatch(str(key)))), default=0)
    if top < 2:
        raise ValueError("needs at least score1_description and score2_description")
    anchors = {str(score): field_text(value, f"score{score}_description") for score in range(1, top + 1)}
    judge: dict[str, Any] = {
        "criterion": field_text(value, "criteria"),
        "labels": {score: (int(score) - 1) / (top - 1) for score in anchors},
        "anchors": anchors,
    }
    if value.get("reference"):
        judge |= {"show": ["prompt", "response", "reference"], "reference": value["reference"]}
    return [{"id": ANCHORED_ID, "weight": 1, "judge": judge}]
