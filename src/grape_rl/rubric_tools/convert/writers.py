"""Writers: functions that write a rubric's items in the format of a public dataset."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grape_rl.reward.critic.judge import Judge
from grape_rl.reward.formats import openrubrics
from grape_rl.reward.item import Item


@dataclass(frozen=True)
class Writer:
    """The writer of one format.

    Attributes:
        obstacle: item → why the format cannot represent it; "" if it can.
        write: representable items, with their lookups filled in → the rubric.
    """

    obstacle: Callable[[Item], str]
    write: Callable[[Sequence[Item]], Any]


def fill_lookups(item: Item, row: Mapping[str, Any]) -> Item:
    """The item, with the lookups of its criterion and reference replaced by the row's values.

    Raises:
        ValueError: the row lacks a column.
    """
    if not item.judge:
        return item
    judge = item.judge.for_row(row)
    texts = {name: str(text) for name in ("criterion", "reference") if (text := getattr(judge, name)) is not None}
    return item.model_copy(update={"judge": judge.model_copy(update=texts)})


def _binary_obstacle(item: Item) -> str:
    """The reason why an item is not a plain criterion that is met or not."""
    if not item.judge:
        return f"is graded by {item.grader}, not by a critic"
    if item.role == "monitor":
        return "is a monitor"
    if item.gate:
        return "is a gate"
    if item.judge.anchors:
        return "has anchors"
    if sorted(item.judge.labels.values()) != [0, 1]:
        return "has labels other than one with score 0 and one with score 1"
    if item.judge.reference is not None:
        return "is judged with a reference"
    return ""


def _rar_obstacle(item: Item) -> str:
    return _binary_obstacle(item) or ("" if item.weight.is_integer() else "has a weight that is not an integer")


def _openrubrics_obstacle(item: Item) -> str:
    known = set(openrubrics.WEIGHTS.values())
    return _binary_obstacle(item) or ("" if item.weight in known else "has a weight other than 3 (hard rule) or 1")


def _biggen_obstacle(item: Item) -> str:
    if not item.judge:
        return f"is graded by {item.grader}, not by a critic"
    if item.role == "monitor":
        return "is a monitor"
    if item.weight < 0:
        return "is a pitfall"
    top = len(item.judge.labels)
    scale = {str(score): (score - 1) / (top - 1) for score in range(1, top + 1)}
    if item.judge.labels != scale:
        return "does not have labels 1 to N with equally spaced scores"
    if item.judge.anchors.keys() != scale.keys():
        return "does not have an anchor for each label"
    return ""


def _write_healthbench(items: Sequence[Item]) -> list[dict[str, Any]]:
    return [
        {"criterion": _judge(item).criterion, "points": _number(item.weight), "tags": _tags(item.id, number)}
        for number, item in enumerate(items, 1)
    ]


def _write_rar(items: Sequence[Item]) -> list[dict[str, Any]]:
    return [{"title": item.id, "description": _judge(item).criterion, "weight": _number(item.weight)} for item in items]


def _write_openrubrics(items: Sequence[Item]) -> str:
    kinds = {3: "Hard Rule", 1: "Principle"}
    lines = (f"{' '.join(_judge(item).criterion.split())} [{kinds[int(item.weight)]}]" for item in items)
    return "\n".join(f"{number}. {line}" for number, line in enumerate(lines, 1))


def _write_biggen(items: Sequence[Item]) -> dict[str, Any]:
    if len(items) != 1:
        names = ", ".join(repr(item.id) for item in items) or "none"
        raise ValueError(f"biggen has one criterion per row, but there are {len(items)}: {names}")
    judge = _judge(items[0])
    levels = {f"score{label}_description": judge.anchors[label] for label in judge.labels}
    return {"criteria": judge.criterion, **levels} | ({"reference": judge.reference} if judge.reference else {})


def _write_grape(items: Sequence[Item]) -> list[dict[str, Any]]:
    return [item.model_dump(mode="json", by_alias=True, exclude_defaults=True) for item in items]


def _judge(item: Item) -> Judge:
    assert item.judge  # the obstacle functions reject items without one
    return item.judge


def _number(weight: float) -> int | float:
    return int(weight) if weight.is_integer() else weight


def _tags(name: str, number: int) -> list[str]:
    """The axis tag that an id encodes: ``axis:accuracy`` for ``accuracy-3``, if that is the third item."""
    axis = name.removesuffix(f"-{number}")
    return [f"axis:{axis}"] if axis not in (name, "criterion") else []


WRITERS: Mapping[str, Writer] = {
    "grape": Writer(lambda item: "", _write_grape),
    "healthbench": Writer(_binary_obstacle, _write_healthbench),
    "rar": Writer(_rar_obstacle, _write_rar),
    "openrubrics": Writer(_openrubrics_obstacle, _write_openrubrics),
    "biggen": Writer(_biggen_obstacle, _write_biggen),
}
"""The writer of each format."""
