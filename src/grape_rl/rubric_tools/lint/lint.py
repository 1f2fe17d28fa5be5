"""What is likely a mistake in a rubric that can be read: each finding with its place and a remedy."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import yaml

from grape_rl.reward.rubric import Category, Item, Rubric, category_name
from grape_rl.rubric_tools.lint.meaning import Meaning, meaning, names_fault
from grape_rl.rubric_tools.lint.wording import two_things

FURTHEST = 1000.0
"""The largest weight over the smallest that is no slip."""
_NO = frozenset({"no", "none", "absent", "never", "false"})


@dataclass(frozen=True)
class Finding:
    """A place in a rubric, and what is wrong there, with what would be right."""

    place: str
    complaint: str


@dataclass(frozen=True)
class Graded:
    """Items that grade some rows together, of which ``fresh`` are none of an earlier one's.

    ``more`` says that each row has further ones.
    """

    place: str
    items: tuple[Item, ...]
    fresh: tuple[Item, ...]
    more: bool = False


def lint(rubric: Rubric, rows: Sequence[Mapping[str, Any]] | None = None) -> list[Finding]:
    """What is likely a mistake in a rubric, and with ``rows`` in what it makes of them, in the file's order."""
    found: dict[Finding, None] = {}
    if rubric.classify is None:
        found |= dict.fromkeys(_categories(rubric))
    for graded in rubric_items(rubric, rows):
        found |= dict.fromkeys(
            each for item in graded.fresh for each in _item(f"{graded.place}, item {item.id!r}", item)
        )
        found |= dict.fromkeys(_together(graded))
    if rows is not None:
        found |= dict.fromkeys(_against(rubric, rows))
    return list(found)


def rubric_items(rubric: Rubric, rows: Sequence[Mapping[str, Any]] | None = None) -> Iterator[Graded]:
    """The items of each category, and those of each row that brings items along, beside its category's.

    A row that cannot be graded is passed over: ``check_rows`` says why it cannot be.
    """
    for name, category in rubric.categories.items():
        yield Graded(f"category {name!r}", category.items, category.items, category.row_items is not None)
    told: set[tuple[str, int]] = set()
    for index, row in enumerate(rows or ()):
        for name in _may_be(rubric, row):
            category = rubric.categories[name]
            own = _own(category, row)
            if own and (name, id(own)) not in told:  # rows that say the same have the same items
                told.add((name, id(own)))
                yield Graded(f"row {index}", category.items + own, own)


def _own(category: Category, row: Mapping[str, Any]) -> tuple[Item, ...]:
    try:
        return category.row_items.of(row) if category.row_items else ()
    except ValueError:
        return ()


def _may_be(rubric: Rubric, row: Mapping[str, Any]) -> list[str]:
    """The categories that a row may be of: its own, or any where a critic is to say."""
    if rubric.classify and rubric.classify.critic:
        return list(rubric.categories)
    try:
        return [category_name(rubric, row)]
    except ValueError:
        return []


def bare_words(path: Path) -> list[Finding]:
    """The values of ``when`` that YAML reads as booleans though they are written as words, such as ``no``."""
    if path.suffix == ".json":
        return []
    root = yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader)
    found: list[Finding] = []
    for name, category in _pairs(_pairs(root).get("categories")).items():
        for column, node in _pairs(_pairs(category).get("when")).items():
            for value in node.value if isinstance(node, yaml.SequenceNode) else [node]:
                if value.tag.endswith(":bool") and value.value.lower() in ("yes", "no", "on", "off"):
                    read = value.value.lower() in ("yes", "on")
                    complaint = f"YAML reads the bare {value.value} as {read}: put it in quotes if it is text"
                    found.append(Finding(f"category {name!r}, when {column}", complaint))
    return found


def _item(place: str, item: Item) -> Iterator[Finding]:
    judge = item.judge
    if judge is None:
        return
    # Levels that are described make one scale of a criterion with several parts: split, they would describe nothing.
    if not judge.anchors and (second := two_things(judge.criterion)):
        yield Finding(
            place, f"asks for two things ({second!r}), and one verdict cannot tell which was there: make it two items"
        )
    if len(judge.anchors) == 1:
        yield Finding(
            place, f"only the label {next(iter(judge.anchors))!r} has an anchor: describe the others, or none"
        )
    best = max(judge.labels, key=lambda name: judge.labels[name])
    affirmed = best.lower() not in _NO and not judge.anchors and meaning(judge.criterion).affirms
    if item.weight > 0 and affirmed and names_fault(item.id):
        yield Finding(place, "is named for a fault, and its weight rewards it: make the weight negative, or rename it")


def _together(graded: Graded) -> Iterator[Finding]:
    rewarded = [item for item in graded.items if item.role == "reward"]
    if not rewarded:
        return
    for item in rewarded:
        others = [other for other in graded.items if other is not item and other.weight > 0 and other.role == "reward"]
        if item.gate and not others and not graded.more:
            place = f"{graded.place}, item {item.id!r}"
            yield Finding(place, "is a gate with no other item of positive weight to hold back: leave gate out")
    fresh = {id(item) for item in graded.fresh}
    senses = {id(item): meaning(item.judge.criterion) for item in rewarded if item.judge}
    for one, other in combinations(rewarded, 2):
        if (id(one) in fresh or id(other) in fresh) and (complaint := _pair(one, other, senses)):
            yield Finding(graded.place, f"items {_weighed(one)} and {_weighed(other)} {complaint}")
    heavy = max(rewarded, key=lambda item: abs(item.weight))
    light = min(rewarded, key=lambda item: abs(item.weight))
    known = not {id(heavy), id(light)} & fresh
    if not known and abs(heavy.weight) > FURTHEST * abs(light.weight):
        complaint = f"against item {_weighed(heavy)}, item {_weighed(light)} counts for nothing: mend the weights"
        yield Finding(graded.place, complaint)


def _pair(one: Item, other: Item, senses: Mapping[int, Meaning]) -> str:
    """What is wrong with two items together."""
    same_sign = (one.weight > 0) == (other.weight > 0)
    if one.check and one.check == other.check:
        return "are the same check: " + ("it counts twice; keep one" if same_sign else "it is rewarded and punished")
    if not one.judge or not other.judge or not senses[id(one)].about:
        return ""
    left, right = senses[id(one)], senses[id(other)]
    if left.about != right.about:
        return ""
    if left.affirms == right.affirms:
        if same_sign:
            return "say the same, which counts twice: keep one"
        return "reward and punish the same thing: keep one"
    if same_sign:
        return "ask for a thing and for its opposite, so that any response gets one of them: keep one"
    return "mirror each other, so that one thing counts twice: keep one"


def _weighed(item: Item) -> str:
    return f"{item.id!r} ({item.weight:g})"


def _categories(rubric: Rubric) -> Iterator[Finding]:
    for (name, one), (other_name, other) in permutations(rubric.categories.items(), 2):
        covers, covered = _covers(other, one), _covers(one, other)
        if covers and covered and list(rubric.categories).index(name) > list(rubric.categories).index(other_name):
            yield Finding(
                f"category {name!r}", f"has the same rows as {other_name!r}: make one of the two, or tell them apart"
            )
        elif covers and not covered:
            remedy = "say in its 'when' which rows it leaves to this one"
            yield Finding(
                f"category {name!r}", f"every row of it is of {other_name!r} too, and so of neither: {remedy}"
            )


def _covers(wide: Category, narrow: Category) -> bool:
    """Whether every row of one category is of the other as well."""
    return all(
        column in narrow.when and all(_among(value, values) for value in narrow.when[column])
        for column, values in wide.when.items()
    )


def _among(value: Any, values: Sequence[Any]) -> bool:
    return any(isinstance(value, bool) == isinstance(each, bool) and value == each for each in values)


def _against(rubric: Rubric, rows: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """What the data shows."""
    possible = {name for row in rows for name in _may_be(rubric, row)}
    for name, category in rubric.categories.items():
        place = f"category {name!r}"
        if name not in possible:
            yield Finding(place, f"no row of the {len(rows)} is of it: mend its 'when', or remove it")
        for column, values in category.when.items():
            told = sorted({row[column] for row in rows if isinstance(row.get(column), str)})
            if any(isinstance(value, bool) for value in values) and told:
                complaint = f"is a boolean, and the rows have text there, such as {told[0]!r}: put it in quotes"
                yield Finding(f"{place}, when {column}", complaint)


def _pairs(node: Any) -> dict[str, Any]:
    """The nodes of a mapping in YAML, by their keys."""
    return {key.value: value for key, value in node.value} if isinstance(node, yaml.MappingNode) else {}
