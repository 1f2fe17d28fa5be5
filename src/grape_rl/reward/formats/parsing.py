"""Parsing that all formats share: entries, their texts and weights, and item ids."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any


def entries(value: Any, form: str) -> list[Mapping[str, Any]]:
    """The entries of a rubric that is a list of mappings. ``form`` describes one entry, for error messages.

    Raises:
        ValueError: the value is not such a list, or is empty.
    """
    if not isinstance(value, list) or not value:
        raise ValueError(f"should be a list of {form} but is {value!r:.80}")
    for index, entry in enumerate(value):
        if not isinstance(entry, Mapping):
            raise ValueError(f"[{index}]: should be a mapping but is {entry!r:.80}")
    return value


def field_text(entry: Mapping[str, Any], key: str, where: str = "") -> str:
    """The text of a field, without surrounding space and without lookups.

    Raises:
        ValueError: the field is missing, empty or not text.
    """
    text = entry.get(key)
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{where}{key} should be text but is {_shown(entry, key)}")
    return literal(text.strip())


def field_weight(entry: Mapping[str, Any], key: str, where: str) -> int | float:
    """The weight in a field.

    Raises:
        ValueError: the field is missing, not a finite number, or 0.
    """
    weight = entry.get(key)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
        raise ValueError(f"{where}{key} should be a number but is {_shown(entry, key)}")
    if weight == 0:
        raise ValueError(f"{where}{key} is 0, which has no effect: remove the entry, or give it a weight")
    return weight


def _shown(entry: Mapping[str, Any], key: str) -> str:
    return "missing" if key not in entry else repr(entry[key])[:80]


def literal(text: str) -> str:
    """Text in which nothing is a lookup: a space separates ``$`` and ``{``, which LaTeX ignores.

    >>> literal("${x}$")
    '$ {x}$'
    """
    return text.replace("${", "$ {")


def slug(text: str) -> str:
    """A text as an id: its words in lower case, joined by hyphens.

    >>> slug("Dose (in mg)")
    'dose-in-mg'
    """
    return "-".join(re.findall(r"\w+", text.lower()))


def unique(names: Iterable[str]) -> list[str]:
    """The names, where a repeated name gets a numeric suffix.

    >>> unique(["a", "a-2", "a"])
    ['a', 'a-2', 'a-3']
    """
    result: list[str] = []
    for name in names:
        number, candidate = 2, name
        while candidate in result:
            number, candidate = number + 1, f"{name}-{number}"
        result.append(candidate)
    return result


def binary_item(name: str, weight: int | float, criterion: str) -> dict[str, Any]:
    """An item whose criterion a critic judges as met or not, as plain data."""
    return {
        "id": name,
        "weight": weight,
        "judge": {"criterion": criterion, "labels": {"no": 0, "yes": 1}},
    }
