"""Rubric files: categories of prompts, each with the items that its responses are graded on."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from grape_rl.reward.check.lookup import lookup_value
from grape_rl.reward.classify import UNCLASSIFIED, Classify
from grape_rl.reward.item import Item, NonEmptyText
from grape_rl.reward.judge_defaults import RubricHeader
from grape_rl.reward.row_items import PREFIX, RowItems
from grape_rl.schema import Strict, parsed, validated

Constant = str | int | float | bool


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


class Category(Strict):
    """The items for the rows whose columns equal ``when``.

    Attributes:
        about: a description of these prompts, for a critic that classifies.
        when: column → value, or a list of alternative values. An empty ``when`` matches every row.
        row_items: where each row holds items of its own, graded in addition to ``items``.
    """

    about: NonEmptyText | None = None
    when: dict[NonEmptyText, Annotated[tuple[Constant, ...], BeforeValidator(_as_tuple)]] = Field(default_factory=dict)
    row_items: RowItems | None = None
    items: tuple[Item, ...] = ()

    @model_validator(mode="after")
    def _valid_items(self) -> "Category":
        ids = [item.id for item in self.items]
        duplicate = next((name for name in ids if ids.count(name) > 1), None)
        if duplicate is not None:
            raise ValueError(f"duplicate item {duplicate!r}")
        if self.row_items and (reserved := [name for name in ids if f"{name}/".startswith(PREFIX)]):
            raise ValueError(f"item {reserved[0]!r}: this id is reserved for the rows' own items")
        if not self.rewarded and not self.row_items:
            raise ValueError("no rewarded item: at least one item must have the role 'reward'")
        return self

    @property
    def rewarded(self) -> tuple[Item, ...]:
        """The items that count in the reward, monitors excluded."""
        return tuple(item for item in self.items if item.role == "reward")

    def matches(self, row: Mapping[str, Any]) -> bool:
        """True if a row belongs to this category by its columns."""
        return all(
            any(_equal(row[column], value) for value in values) if column in row else False
            for column, values in self.when.items()
        )


class Rubric(RubricHeader):
    """Categories of prompts, each with its items.

    A row belongs to exactly one category: by its columns, or as ``classify`` decides. ``defaults`` holds the settings
    that every ``judge`` inherits.
    """

    version: Annotated[Literal["grape-rubric/1"], Field(alias="schema")]
    classify: Classify | None = None
    categories: Annotated[dict[NonEmptyText, Category], Field(min_length=1)]

    @model_validator(mode="after")
    def _valid_classify(self) -> "Rubric":
        if self.classify is None:
            return self
        for name, category in self.categories.items():
            if category.when:
                raise ValueError(
                    f"category {name!r} has a 'when', but 'classify' assigns its prompts: remove one of them"
                )
            if self.classify.critic and not category.about:
                raise ValueError(f"category {name!r} needs an 'about': the description that the critic classifies by")
        if UNCLASSIFIED in self.categories:
            raise ValueError(f"a category cannot be named {UNCLASSIFIED!r}: prompts that no critic can classify are")
        if self.classify.critic and len(self.categories) < 2:
            raise ValueError("classify needs two categories or more to choose from")
        return self

    @property
    def about(self) -> dict[str, str]:
        """Each category's description, by name."""
        return {name: category.about or "" for name, category in self.categories.items()}

    @property
    def known_items(self) -> Iterator[tuple[str, Item]]:
        """Every item with the name of its category: those of the file, and those of the rows read so far."""
        for name, category in self.categories.items():
            for item in (*category.items, *(category.row_items.read if category.row_items else ())):
                yield name, item


def load_rubric(path: str | Path, allow: Collection[str] = ()) -> Rubric:
    """Load a rubric from a YAML or JSON file.

    A rubric may come from a stranger. Python files next to it, and modules that its ``python`` checks name, are
    imported only if ``allow`` lists them (``"checks.py"``, ``"package.module"``).

    Raises:
        ValueError: the file is not a valid rubric; one line with every error and its place.
    """
    return rubric_from_data(parsed(Path(path)), path, allow)


def rubric_from_data(data: Any, path: str | Path, allow: Collection[str] = ()) -> Rubric:
    """The rubric in the parsed content of a file. Other files that it names are relative to the folder of ``path``.

    Raises:
        ValueError: as ``load_rubric``.
    """
    path = Path(path)
    context: dict[str, Any] = {"folder": path.parent, "allow": frozenset(allow), "labels": {}}
    if isinstance(data, Mapping) and data.get("defaults") is not None:
        # Validated before the items, which merge them in: an error in the defaults is reported once, not per item.
        validated(RubricHeader, {"defaults": data["defaults"]}, str(path), context)
        context["judge_defaults"] = data["defaults"].get("judge")
    return validated(Rubric, data, str(path), context)


def category_name(rubric: Rubric, row: Mapping[str, Any]) -> str:
    """The category of a row, by its columns or by the function of ``classify``.

    Raises:
        ValueError: no category matches, more than one does, or only a critic can classify.
    """
    if rubric.classify and rubric.classify.critic:
        raise ValueError(f"the critic {rubric.classify.critic!r} classifies prompts; a row alone has no category")
    if rubric.classify:
        try:
            return rubric.classify.by_function(row, rubric.categories)
        except ValueError as error:
            raise ValueError(f"the row {_shown(row)}: {error}") from error
    matches = [name for name, category in rubric.categories.items() if category.matches(row)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise ValueError(f"the row {_shown(row)} belongs to more than one category: {', '.join(matches)}")
    conditions = "; ".join(f"{name} (when {_condition(category)})" for name, category in rubric.categories.items())
    raise ValueError(f"the row {_shown(row)} belongs to no category; categories: {conditions}")


def items_of(rubric: Rubric, category: str, row: Mapping[str, Any]) -> tuple[Item, ...]:
    """The items that grade the responses to a row: the category's, then the row's own. None if unclassified.

    Raises:
        ValueError: the row's own items are invalid, or no item is rewarded.
    """
    if category not in rubric.categories:  # unclassified
        return ()
    section = rubric.categories[category]
    if section.row_items is None:
        return section.items
    items = section.items + section.row_items.of(row)
    if not any(item.role == "reward" for item in items):
        raise ValueError(f"no rewarded item: neither the category nor {section.row_items.column} has one")
    return items


def check_rows(rubric: Rubric, rows: Sequence[Mapping[str, Any]]) -> None:
    """Raise unless the rubric can grade every row.

    A row needs exactly one category, every column that its items look up, and valid items of its own if it has any.
    If a critic classifies, a row is checked against all categories.

    Raises:
        ValueError: names the first invalid row, with the item and the lookup.
    """
    by_critic = rubric.classify is not None and rubric.classify.critic is not None
    for index, row in enumerate(rows):
        try:
            names = list(rubric.categories) if by_critic else [category_name(rubric, row)]
        except ValueError as error:
            raise ValueError(f"row {index}: {error}") from None
        for name in names:
            try:
                items = items_of(rubric, name, row)
            except ValueError as error:
                raise ValueError(f"row {index}: category {name!r}: {error}") from None
            for item in items:
                for lookup in item.lookups:
                    try:
                        lookup_value(lookup, row)
                    except ValueError as error:
                        raise ValueError(f"row {index}: item {item.id!r} of category {name!r}: {error}") from None


def _equal(value: Any, expected: Constant) -> bool:
    """Equality that never treats a boolean as a number."""
    return isinstance(value, bool) == isinstance(expected, bool) and value == expected


def _condition(category: Category) -> str:
    return " and ".join(
        f"{column} is {' or '.join(repr(value) for value in values)}" for column, values in category.when.items()
    )


def _shown(row: Mapping[str, Any]) -> str:
    text = ", ".join(f"{column}={value!r:.40}" for column, value in row.items())
    return f"{{{text[:300]}}}"
