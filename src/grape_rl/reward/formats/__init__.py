"""Formats of the rubrics that data rows hold: functions from a column's value to items, as a rubric file has them."""

from collections.abc import Callable, Mapping
from typing import Any

from grape_rl.reward.formats.anchored import anchored_items
from grape_rl.reward.formats.healthbench import healthbench_items
from grape_rl.reward.formats.openrubrics import openrubrics_items
from grape_rl.reward.formats.rar import rar_items

Format = Callable[[Any], list[dict[str, Any]]]
"""The value of a column → its items, as plain data in the form of a rubric file."""


def grape_items(value: Any) -> list[dict[str, Any]]:
    """Items that are already in the form of a rubric file.

    Raises:
        ValueError: the value is not a list of items.
    """
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ValueError(f"should be a list of items but is {value!r:.80}")
    return [dict(item) for item in value]


FORMATS: Mapping[str, Format] = {
    "grape": grape_items,
    "healthbench": healthbench_items,
    "rar": rar_items,
    "openrubrics": openrubrics_items,
    "biggen": anchored_items,
}
"""The formats that ``row_items`` may name."""
