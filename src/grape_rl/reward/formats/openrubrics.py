"""OpenRubrics rubrics: text with one numbered item per line, which ends in ``[Hard Rule]`` or ``[Principle]``."""

import re
from typing import Any

from grape_rl.reward.formats.parsing import binary_item, literal

WEIGHTS = {"hard rule": 3, "principle": 1}
"""The weight of each kind of item. OpenRubrics has no weights; these are our choice."""

_LINE = re.compile(
    r"\s*(?:(?:\d+[.)]|[-*•])\s+)?(?P<text>.*?)\s*\*{0,2}\[(?P<kind>hard rule|principle)\]\*{0,2}[.\s]*", re.IGNORECASE
)


def openrubrics_items(value: Any) -> list[dict[str, Any]]:
    """The items of an OpenRubrics rubric, one per line. A hard rule weighs 3 and a principle 1 (see ``WEIGHTS``).

    Raises:
        ValueError: the value is not text, or a line does not end in one of the two marks.

    >>> [item["id"] for item in openrubrics_items("1. Has five lines. [Hard Rule]\\n2. Is kind. [Principle]")]
    ['hard-rule-1', 'principle-2']
    """
    lines = value if isinstance(value, list) else value.splitlines() if isinstance(value, str) else None
    if lines is None or not all(isinstance(line, str) for line in lines):
        raise ValueError(f"should be text with one item per line but is {value!r:.80}")
    items: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise ValueError(f"line {number} does not end in [Hard Rule] or [Principle]: {line.strip()!r:.80}")
        if not match["text"]:
            raise ValueError(f"line {number} has no criterion: {line.strip()!r:.80}")
        kind = match["kind"].lower()
        name = f"{kind.replace(' ', '-')}-{len(items) + 1}"
        items.append(binary_item(name, WEIGHTS[kind], literal(match["text"])))
    if not items:
        raise ValueError("has no items")
    return items
