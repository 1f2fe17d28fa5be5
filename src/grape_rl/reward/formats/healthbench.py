"""HealthBench's rubrics: a list of ``{criterion, points, tags}``, where a criterion is met or not."""

from collections.abc import Mapping
from typing import Any

from grape_rl.reward.formats.parsing import entries, field_text, field_weight, judged, slug

AXIS = "axis:"


def items(told: Any) -> list[dict[str, Any]]:
    """The items: ``points`` is the weight, and a negative one a pitfall.

    Of the tags, the axis is kept: it names the item, with the entry's number behind it.

    Raises:
        ValueError: an entry has no criterion, or no points, or 0 of them.

    >>> items([{"criterion": "Names the dose.", "points": 5, "tags": ["axis:accuracy"]}])[0]["id"]
    'accuracy-1'
    """
    found: list[dict[str, Any]] = []
    for index, entry in enumerate(entries(told, "{criterion, points, tags}")):
        where = f"[{index}]: "
        weight = field_weight(entry, "points", where)
        found.append(judged(f"{_axis(entry, where)}-{index + 1}", weight, field_text(entry, "criterion", where)))
    return found


def _axis(entry: Mapping[str, Any], where: str) -> str:
    tags = entry.get("tags") or []
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise ValueError(f"{where}tags should be a list of texts, and is {tags!r:.80}")
    axes = [slug(tag.removeprefix(AXIS)) for tag in tags if tag.startswith(AXIS)]
    return (axes[0] if axes else "") or "criterion"
