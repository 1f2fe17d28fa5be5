"""HealthBench rubrics: a list of ``{criterion, points, tags}`` with binary criteria."""

from collections.abc import Mapping
from typing import Any

from grape_rl.reward.formats.parsing import binary_item, entries, field_text, field_weight, slug

AXIS = "axis:"


def healthbench_items(value: Any) -> list[dict[str, Any]]:
    """The items of a HealthBench rubric. ``points`` is the weight; negative points are a pitfall.

    Of the tags, only the axis is used: the id is the axis and the entry's number.

    Raises:
        ValueError: an entry has no criterion, no points, or 0 points.

    >>> healthbench_items([{"criterion": "Names the dose.", "points": 5, "tags": ["axis:accuracy"]}])[0]["id"]
    'accuracy-1'
    """
    items: list[dict[str, Any]] = []
    for index, entry in enumerate(entries(value, "{criterion, points, tags}")):
        where = f"[{index}]: "
        weight = field_weight(entry, "points", where)
        items.append(binary_item(f"{_axis(entry, where)}-{index + 1}", weight, field_text(entry, "criterion", where)))
    return items


def _axis(entry: Mapping[str, Any], where: str) -> str:
    tags = entry.get("tags") or []
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise ValueError(f"{where}tags should be a list of strings but is {tags!r:.80}")
    axes = [slug(tag.removeprefix(AXIS)) for tag in tags if tag.startswith(AXIS)]
    return (axes[0] if axes else "") or "criterion"
