"""What all formats read alike: entries, their texts and weights, and the names that items get."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any


def entries(told: Any, kind: str) -> list[Mapping[str, Any]]:
    """The entries of a rubric that is a list of keys with values.

    Raises:
        ValueError: it is none, or empty.
    """
    if not isinstance(told, list) or not told:
        raise ValueError(f"should be a list of {kind}, and is {told!r:.80}")
    for index, entry in enumerate(told):
        if not isinstance(entry, Mapping):
            raise ValueError(f"[{index}]: should be keys with values, and is {entry!r:.80}")
    return told


def field_text(entry: Mapping[str, Any], key: str, where: str = "") -> str:
    """The text under a key, with no look-up in it.

    Raises:
        ValueError: there is none.
    """
    told = entry.get(key)
    if not isinstance(told, str) or not told.strip():
        raise ValueError(f"{where}{key} should be text, and is {'missing' if key not in entry else repr(told)[:80]}")
    return literal(told.strip())


def field_weight(entry: Mapping[str, Any], key: str, where: str) -> int | float:
    """The weight under a key.

    Raises:
        ValueError: it is no number, or 0.
    """
    told = entry.get(key)
    if isinstance(told, bool) or not isinstance(told, int | float) or not math.isfinite(told):
        raise ValueError(
            f"{where}{key} should be a number, and is {'missing' if key not in entry else repr(told)[:80]}"
        )
    if told == 0:
        raise ValueError(f"{where}{key} is 0, which has no effect: remove the entry, or give it a weight")
    return told


def literal(text: str) -> str:
    """Text of strangers, in which nothing is a look-up: a space parts ``$`` and ``{`` (to LaTeX, the same).

    >>> literal("${x}$")
    '$ {x}$'
    """
    return text.replace("${", "$ {")


def slug(text: str) -> str:
    """A text as an id: lower-case words with hyphens between them.

    >>> slug("Dose (in mg)")
    'dose-in-mg'
    """
    return "-".join(re.findall(r"\w+", text.lower()))


def unique(names: Iterable[str]) -> list[str]:
    """The names, with a number behind each that was there before.

    >>> unique(["a", "a-2", "a"])
    ['a', 'a-2', 'a-3']
    """
    found: list[str] = []
    for name in names:
        number, each = 2, name
        while each in found:
            number, each = number + 1, f"{name}-{number}"
        found.append(each)
    return found


def judged(name: str, weight: int | float, criterion: str) -> dict[str, Any]:
    """An item that is met or not."""
    return {
        "id": name,
        "weight": weight,
        "judge": {"criterion": criterion, "labels": {"no": 0, "yes": 1}},
    }
