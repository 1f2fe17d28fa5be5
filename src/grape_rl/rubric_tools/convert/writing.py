"""A rubric's items in the forms of public datasets, and what those forms cannot hold."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grape_rl.reward.critic.judge import Judge
from grape_rl.reward.formats import openrubrics
from grape_rl.reward.rubric import Item


@dataclass(frozen=True)
class Writer:
    """How items become a rubric of a dataset.

    ``fault`` says of an item why the form cannot hold it ("" if it can). ``written`` makes the rubric of items that it
    can hold, whose look-ups are filled in.
    """

    fault: Callable[[Item], str]
    written: Callable[[Sequence[Item]], Any]


def filled_in(item: Item, row: Mapping[str, Any]) -> Item:
    """The item with what its criterion and reference look up in a row put into them.

    Raises:
        ValueError: the row has no such column.
    """
    if not item.judge:
        return item
    judge = item.judge.for_row(row)
    texts = {name: str(text) for name in ("criterion", "reference") if (text := getattr(judge, name)) is not None}
    return item.model_copy(update={"judge": judge.model_copy(update=texts)})


def _met_or_not(item: Item) -> str:
    """Why an item is no criterion that is met or not."""
    if not item.judge:
        return f"is graded by {item.grader}, not by a critic"
    if item.role == "monitor":
        return "is a monitor"
    if item.gate:
        return "is a gate"
    if item.judge.anchors:
        return "has anchors"
    if sorted(item.judge.labels.values()) != [0, 1]:
        return "has other labels than one of score 0 and one of 1"
    if item.judge.reference is not None:
        return "is judged with a reference"
    return ""


def _rar_fault(item: Item) -> str:
    return _met_or_not(item) or ("" if item.weight.is_integer() else "has a weight that is no whole number")


def _openrubrics_fault(item: Item) -> str:
    known = set(openrubrics.WEIGHTS.values())
    return _met_or_not(item) or ("" if item.weight in known else "has another weight than 3, a hard rule, or 1")


def _biggen_fault(item: Item) -> str:
    if not item.judge:
        return f"is graded by {item.grader}, not by a critic"
    if item.role == "monitor":
        return "is a monitor"
    if item.weight < 0:
        return "is a pitfall"
    top = len(item.judge.labels)
    scale = {str(score): (score - 1) / (top - 1) for score in range(1, top + 1)}
    if item.judge.labels != scale:
        return "has no labels 1 to N that count the same apart"
    if item.judge.anchors.keys() != scale.keys():
        return "has no anchor for each label"
    return ""


def _healthbench(items: Sequence[Item]) -> list[dict[str, Any]]:
    return [
        {"criterion": _judge(item).criterion, "points": _number(item.weight), "tags": _tags(item.id, number)}
        for number, item in enumerate(items, 1)
    ]


def _rar(items: Sequence[Item]) -> list[dict[str, Any]]:
    return [{"title": item.id, "description": _judge(item).criterion, "weight": _number(item.weight)} for item in items]


def _openrubrics(items: Sequence[Item]) -> str:
    kinds = {3: "Hard Rule", 1: "Principle"}
    lines = (f"{' '.join(_judge(item).criterion.split())} [{kinds[int(item.weight)]}]" for item in items)
    return "\n".join(f"{number}. {line}" for number, line in enumerate(lines, 1))


def _biggen(items: Sequence[Item]) -> dict[str, Any]:
    if len(items) != 1:
        raise ValueError(f"biggen has one criterion a row, and here are {len(items)}: {_named(items)}")
    judge = _judge(items[0])
    levels = {f"score{label}_description": judge.anchors[label] for label in judge.labels}
    return {"criteria": judge.criterion, **levels} | ({"reference": judge.reference} if judge.reference else {})


def _own(items: Sequence[Item]) -> list[dict[str, Any]]:
    return [item.model_dump(mode="json", by_alias=True, exclude_defaults=True) for item in items]


def _judge(item: Item) -> Judge:
    assert item.judge  # what has none was at fault
    return item.judge


def _number(weight: float) -> int | float:
    return int(weight) if weight.is_integer() else weight


def _tags(name: str, number: int) -> list[str]:
    """The axis that an id tells of, as ``accuracy-3`` does of the third item."""
    axis = name.removesuffix(f"-{number}")
    return [f"axis:{axis}"] if axis not in (name, "criterion") else []


def _named(items: Sequence[Item]) -> str:
    return ", ".join(repr(item.id) for item in items) or "none"


WRITERS: Mapping[str, Writer] = {
    "grape": Writer(lambda item: "", _own),
    "healthbench": Writer(_met_or_not, _healthbench),
    "rar": Writer(_rar_fault, _rar),
    "openrubrics": Writer(_openrubrics_fault, _openrubrics),
    "biggen": Writer(_biggen_fault, _biggen),
}
"""How items are written, by the name of the form."""
