"""Rubrics of one criterion on a scale, each score described: BiGGen-Bench's, from 1 to 5, or from 1 to any number."""

import re
from collections.abc import Mapping
from typing import Any

from grape_rl.reward.formats.parsing import field_text

ID = "quality"
_KEY = re.compile(r"score([1-9]\d*)_description")


def items(told: Any) -> list[dict[str, Any]]:
    """The one item of ``{criteria, score1_description, …, scoreN_description}``: score i of N counts (i − 1)/(N − 1).

    Where there is also ``reference``, a text that may hold look-ups as in a rubric file, the critic is shown it.

    Raises:
        ValueError: it is nothing like that, or a score between 1 and N has no description.

    >>> (item,) = items({"criteria": "Is it kind?", "score1_description": "rude", "score2_description": "kind"})
    >>> item["judge"]["labels"], item["judge"]["anchors"]
    ({'1': 0.0, '2': 1.0}, {'1': 'rude', '2': 'kind'})
    """
    if not isinstance(told, Mapping):
        raise ValueError(f"should be {{criteria, score1_description, …}}, and is {told!r:.80}")
    known = {"criteria", "reference"}
    if stray := [key for key in told if key not in known and not _KEY.fullmatch(str(key))]:
        raise ValueError(f"unknown key {stray[0]!r}: should be {{criteria, score1_description, …}}")
    top = max((int(match[1]) for key in told if (match := _KEY.fullmatch(str(key)))), default=0)
    if top < 2:
        raise ValueError("should have score1_description and score2_description, at the least")
    anchors = {str(score): field_text(told, f"score{score}_description") for score in range(1, top + 1)}
    judge: dict[str, Any] = {
        "criterion": field_text(told, "criteria"),
        "labels": {score: (int(score) - 1) / (top - 1) for score in anchors},
        "anchors": anchors,
    }
    if told.get("reference"):
        judge |= {"show": ["prompt", "response", "reference"], "reference": told["reference"]}
    return [{"id": ID, "weight": 1, "judge": judge}]
