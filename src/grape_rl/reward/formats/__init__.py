"""Formats of the rubrics that data rows bring along: functions from what a row holds to items as a file has them."""

from collections.abc import Callable, Mapping
from typing import Any

from grape_rl.reward.formats import anchored, healthbench, openrubrics, rar

Format = Callable[[Any], list[dict[str, Any]]]
"""What a column holds → the items, each as a rubric file would say it."""


def own(told: Any) -> list[dict[str, Any]]:
    """Items as a rubric file of grape-rl has them.

    Raises:
        ValueError: they are no list of items.
    """
    if not isinstance(told, list) or not all(isinstance(each, dict) for each in told):
        raise ValueError(f"should be a list of items, and is {told!r:.80}")
    return [dict(each) for each in told]


FORMATS: Mapping[str, Format] = {
    "grape": own,
    "healthbench": healthbench.items,
    "rar": rar.items,
    "openrubrics": openrubrics.items,
    "biggen": anchored.items,
}
"""The formats that ``row_items`` may name."""
