"""Linting of rubrics: likely mistakes in a valid rubric, each with its place and a remedy."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import yaml

from grape_rl.reward.item import Item
from grape_rl.reward.rubric import Category, Rubric, category_name
from grape_rl.rubric_tools.lint.meaning import Meaning, names_fault, parse_criterion
from grape_rl.rubric_tools.lint.wording import second_demand

MAX_WEIGHT_RATIO = 1000.0
"""The largest weight over the smallest; beyond it, the smallest has practically no effect."""

_NO = frozenset({"no", "none", "absent", "never", "false"})


@dataclass(frozen=True)
class Finding:
    """A likely mistake: its place in the rubric, and a message with the remedy."""

    place: str
    message: str


@dataclass(frozen=True)
class ItemSet:
    """Items that are graded together, on the rows of a category or on one row.

    Attributes:
        items: all items.
        new: the items that no earlier set contains.
        open: True if each row adds items of its own.
    """

    place: str
    items: tuple[Item, ...]
    new: tuple[Item, ...]
    open: bool = False


def lint(rubric: Rubric, rows: Sequence[Mapping[str, Any]] | None = None) -> list[Finding]:
    """Likely mistakes in a rubric, in the file's order. With ``rows``, also in how it applies to them."""
    findings: list[Finding] = []
    if rubric.classify is None:
        findings += _lint_categories(rubric)
    for item_set in item_sets(rubric, rows):
        for item in item_set.new:
            findings += _lint_item(f"{item_set.place}, item {item.id!r}", item)
        findings += _lint_item_set(item_set)
    if rows is not None:
        findings += _lint_data(rubric, rows)
    return list(dict.fromkeys(findings))


def item_sets(rubric: Rubric, rows: Sequence[Mapping[str, Any]] | None = None) -> Iterator[ItemSet]:
    """The items of each category, then for each row with items of its own, those with the category's.

    A row that cannot be graded is skipped: ``check_rows`` reports it.
    """
    for name, category in rubric.categories.items():
        yield ItemSet(f"category {name!r}", category.items, category.items, category.row_items is not None)
    seen: set[tuple[str, int]] = set()
    for index, row in enumerate(rows or ()):
        for name in _possible_categories(rubric, row):
            category = rubric.categories[name]
            own = _own_items(category, row)
            if own and (name, id(own)) not in seen:  # rows with equal rubrics share one tuple of items
                seen.add((name, id(own)))
                yield ItemSet(f"row {index}", category.items + own, own)


def _own_items(category: Category, row: Mapping[str, Any]) -> tuple[Item, ...]:
    try:
        return category.row_items.of(row) if category.row_items else ()
    except ValueError:
        return ()


def _possible_categories(rubric: Rubric, row: Mapping[str, Any]) -> list[str]:
    """The category of a row; all categories if a critic classifies; none if the row is invalid."""
    if rubric.classify and rubric.classify.critic:
        return list(rubric.categories)
    try:
        return [category_name(rubric, row)]
    except ValueError:
        return []


def bare_words(path: Path) -> list[Finding]:
    """Values of ``when`` that are written as words, such as ``no``, but that YAML reads as booleans."""
    if path.suffix == ".json":
        return []
    root = yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader)
    findings: list[Finding] = []
    for name, category in _nodes(_nodes(root).get("categories")).items():
        for column, node in _nodes(_nodes(category).get("when")).items():
            for value in node.value if isinstance(node, yaml.SequenceNode) else [node]:
                if value.tag.endswith(":bool") and value.value.lower() in ("yes", "no", "on", "off"):
                    boolean = value.value.lower() in ("yes", "on")
                    message = f"YAML reads the unquoted {value.value} as {boolean}: put it in quotes if it is text"
                    findings.append(Finding(f"category {name!r}, when {column}", message))
    return findings


def _lint_item(place: str, item: Item) -> Iterator[Finding]:
    judge = item.judge
    if judge is None:
        return
    # Anchors describe the levels of a criterion with several parts as one scale, which cannot be split.
    if not judge.anchors and (second := second_demand(judge.criterion)):
        yield Finding(place, f"asks for two things ({second!r}) but gets one verdict: split it into two items")
    if len(judge.anchors) == 1:
        label = next(iter(judge.anchors))
        yield Finding(place, f"only the label {label!r} has an anchor: add anchors for the other labels, or remove it")
    best = max(judge.labels, key=lambda name: judge.labels[name])
    affirmed = best.lower() not in _NO and not judge.anchors and parse_criterion(judge.criterion).affirms
    if item.weight > 0 and affirmed and names_fault(item.id):
        yield Finding(place, "is named for a fault, but its weight rewards it: make the weight negative, or rename it")


def _lint_item_set(item_set: ItemSet) -> Iterator[Finding]:
    rewarded = [item for item in item_set.items if item.role == "reward"]
    if not rewarded:
        return

    # Gates without an item to gate.
    for item in rewarded:
        others = [other for other in rewarded if other is not item and other.weight > 0]
        if item.gate and not others and not item_set.open:
            place = f"{item_set.place}, item {item.id!r}"
            yield Finding(place, "is a gate, but no other item has a positive weight: remove 'gate'")

    # Pairs of items, unless an earlier set has both.
    new = {id(item) for item in item_set.new}
    meanings = {id(item): parse_criterion(item.judge.criterion) for item in rewarded if item.judge}
    for one, other in combinations(rewarded, 2):
        if (id(one) in new or id(other) in new) and (problem := _pair_problem(one, other, meanings)):
            yield Finding(item_set.place, f"items {_with_weight(one)} and {_with_weight(other)} {problem}")

    # Weights.
    heavy = max(rewarded, key=lambda item: abs(item.weight))
    light = min(rewarded, key=lambda item: abs(item.weight))
    is_new = bool({id(heavy), id(light)} & new)
    if is_new and abs(heavy.weight) > MAX_WEIGHT_RATIO * abs(light.weight):
        message = f"item {_with_weight(light)} has no effect next to item {_with_weight(heavy)}: adjust the weights"
        yield Finding(item_set.place, message)


def _pair_problem(one: Item, other: Item, meanings: Mapping[int, Meaning]) -> str:
    """The problem of two items together; "" if there is none."""
    same_sign = (one.weight > 0) == (other.weight > 0)
    if one.check and one.check == other.check:
        if same_sign:
            return "are the same check, which counts twice: keep one"
        return "are the same check, once rewarded and once penalized: keep one"
    if not one.judge or not other.judge or not meanings[id(one)].about:
        return ""
    left, right = meanings[id(one)], meanings[id(other)]
    if left.about != right.about:
        return ""
    if left.affirms == right.affirms:
        if same_sign:
            return "have the same meaning, which counts twice: keep one"
        return "reward and penalize the same thing: keep one"
    if same_sign:
        return "ask for a thing and its opposite, so that every response meets one of them: keep one"
    return "mirror each other, which counts one thing twice: keep one"


def _with_weight(item: Item) -> str:
    return f"{item.id!r} ({item.weight:g})"


def _lint_categories(rubric: Rubric) -> Iterator[Finding]:
    order = list(rubric.categories)
    for (name, one), (other_name, other) in permutations(rubric.categories.items(), 2):
        covers, covered = _covers(other, one), _covers(one, other)
        place = f"category {name!r}"
        if covers and covered and order.index(name) > order.index(other_name):
            yield Finding(place, f"matches the same rows as {other_name!r}: merge them, or change a 'when' condition")
        elif covers and not covered:
            yield Finding(
                place,
                f"every row that it matches also matches {other_name!r}, but a row needs exactly one category: narrow "
                f"the 'when' of {other_name!r}",
            )


def _covers(wide: Category, narrow: Category) -> bool:
    """True if every row of ``narrow`` also matches ``wide``."""
    return all(
        column in narrow.when and all(_contains(values, value) for value in narrow.when[column])
        for column, values in wide.when.items()
    )


def _contains(values: Sequence[Any], value: Any) -> bool:
    return any(isinstance(value, bool) == isinstance(other, bool) and value == other for other in values)


def _lint_data(rubric: Rubric, rows: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """Likely mistakes that show only in the data."""
    possible = {name for row in rows for name in _possible_categories(rubric, row)}
    for name, category in rubric.categories.items():
        place = f"category {name!r}"
        if name not in possible:
            yield Finding(place, f"never matches: 0 of {len(rows)} rows; check its 'when' condition, or remove it")
        for column, values in category.when.items():
            texts = sorted({row[column] for row in rows if isinstance(row.get(column), str)})
            if any(isinstance(value, bool) for value in values) and texts:
                message = f"is a boolean, but the rows have text there, such as {texts[0]!r}: put it in quotes"
                yield Finding(f"{place}, when {column}", message)


def _nodes(node: Any) -> dict[str, Any]:
    """The value nodes of a YAML mapping, by key."""
    return {key.value: value for key, value in node.value} if isinstance(node, yaml.MappingNode) else {}
