"""OpenRubrics' rubrics: a text with a numbered line an item, which ends in ``[Hard Rule]`` or ``[Principle]``."""

import re
from typing import Any

from grape_rl.reward.formats.parsing import judged, literal

WEIGHTS = {"hard rule": 3, "principle": 1}
"""What an item of each kind weighs. That is our choice: OpenRubrics has no weights."""

_LINE = re.compile(
    r"\s*(?:(?:\d+[.)]|[-*•])\s+)?(?P<text>.*?)\s*\*{0,2}\[(?P<kind>hard rule|principle)\]\*{0,2}[.\s]*", re.IGNORECASE
)


def items(told: Any) -> list[dict[str, Any]]:
    """The items, one a line: a hard rule weighs 3 and a principle 1 (see ``WEIGHTS``).

    Raises:
        ValueError: it is no text, or a line does not end in one of the two marks.

    >>> [item["id"] for item in items("1. Has five lines. [Hard Rule]\\n2. Is kind. [Principle]")]
    ['hard-rule-1', 'principle-2']
    """
    lines = told if isinstance(told, list) else told.splitlines() if isinstance(told, str) else None
    if lines is None or not all(isinstance(line, str) for line in lines):
        raise ValueError(f"should be text with a line an item, and is {told!r:.80}")
    found: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise ValueError(f"line {number} does not end in [Hard Rule] or [Principle]: {line.strip()!r:.80}")
        if not match["text"]:
            raise ValueError(f"line {number} says nothing to judge: {line.strip()!r:.80}")
        kind = match["kind"].lower()
        name = f"{kind.replace(' ', '-')}-{len(found) + 1}"
        found.append(judged(name, WEIGHTS[kind], literal(match["text"])))
    if not found:
        raise ValueError("has no line with an item")
    return found
