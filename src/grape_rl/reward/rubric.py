"""The rubric: a file that says, for each category of prompt, what a good response is, item by item."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from grape_rl.reward.classify import UNCLASSIFIED, Classify
from grape_rl.reward.defaults import Headed
from grape_rl.reward.item import Item, Name
from grape_rl.reward.lookup import looked_up
from grape_rl.reward.row_items import PREFIX, RowItems
from grape_rl.schema import Strict, parsed, validated

Constant = str | int | float | bool


def _choices(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


class Category(Strict):
    """The items for the rows whose columns equal ``when`` (a list there means any of; no ``when`` means every row).

    ``about`` says in words which prompts these are. ``row_items`` are items that each row brings along, beside these.
    """

    about: Name | None = None
    when: dict[Name, Annotated[tuple[Constant, ...], BeforeValidator(_choices)]] = Field(default_factory=dict)
    row_items: RowItems | None = None
    items: tuple[Item, ...] = ()

    @model_validator(mode="after")
    def _distinct(self) -> "Category":
        ids = [item.id for item in self.items]
        twice = next((name for name in ids if ids.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"the item {twice!r} is there twice")
        if self.row_items and (taken := [name for name in ids if f"{name}/".startswith(PREFIX)]):
            raise ValueError(f"the item {taken[0]!r} has a name that is kept for the rows' items")
        if not self.rewarded and not self.row_items:
            raise ValueError("no item to reward: there has to be one that is no monitor")
        return self

    @property
    def rewarded(self) -> tuple[Item, ...]:
        """The items that the reward is made of."""
        return tuple(item for item in self.items if item.role == "reward")

    def matches(self, row: Mapping[str, Any]) -> bool:
        """Whether these are the items for a row."""
        return all(
            any(_same(row[column], value) for value in values) if column in row else False
            for column, values in self.when.items()
        )


class Rubric(Headed):
    """Categories of prompt, each with its items. A row belongs to exactly one: by its columns, or as ``classify`` says.

    ``defaults`` holds what its judges say unless they say it themselves.
    """

    version: Annotated[Literal["grape-rubric/1"], Field(alias="schema")]
    classify: Classify | None = None
    categories: Annotated[dict[Name, Category], Field(min_length=1)]

    @model_validator(mode="after")
    def _classifiable(self) -> "Rubric":
        if self.classify is None:
            return self
        for name, category in self.categories.items():
            if category.when:
                raise ValueError(
                    f"category {name!r} has a when, and classify says which prompts are its: leave one out"
                )
            if self.classify.critic and not category.about:
                raise ValueError(f"category {name!r} needs an 'about': the words by which the critic is to know it")
        if UNCLASSIFIED in self.categories:
            raise ValueError(f"no category can be called {UNCLASSIFIED!r}: what the critic cannot classify is")
        if self.classify.critic and len(self.categories) < 2:
            raise ValueError("classify needs two categories or more to choose from")
        return self

    @property
    def about(self) -> dict[str, str]:
        """What each category says it is about."""
        return {name: category.about or "" for name, category in self.categories.items()}

    @property
    def known_items(self) -> Iterator[tuple[str, Item]]:
        """Every item with its category's name: those of the file, and those of the rows that were read so far."""
        for name, category in self.categories.items():
            for item in (*category.items, *(category.row_items.read if category.row_items else ())):
                yield name, item


def load_rubric(path: str | Path, allow: Collection[str] = ()) -> Rubric:
    """The rubric of a YAML or JSON file.

    A rubric may come from a stranger. The Python files beside it and the modules that its ``python`` checks name are
    imported only if ``allow`` names them (``"checks.py"``, ``"package.module"``).

    Raises:
        ValueError: the file does not say what a rubric says; one line, with every fault and its place.
    """
    return rubric_of(parsed(Path(path)), path, allow)


def rubric_of(told: Any, path: str | Path, allow: Collection[str] = ()) -> Rubric:
    """The rubric that the plain data of a file says; ``path`` is the file's, for what lies beside it.

    Raises:
        ValueError: as ``load_rubric``.
    """
    path = Path(path)
    context: dict[str, Any] = {"folder": path.parent, "allow": frozenset(allow), "labels": {}}
    if isinstance(told, Mapping) and told.get("defaults") is not None:
        # Before the items, which are read with it: its own faults are told once, and not with each of them.
        validated(Headed, {"defaults": told["defaults"]}, str(path), context)
        context["judge_defaults"] = told["defaults"].get("judge")
    return validated(Rubric, told, str(path), context)


def category_name(rubric: Rubric, row: Mapping[str, Any]) -> str:
    """The category that a row belongs to, by its columns or as the function says that classifies.

    Raises:
        ValueError: there is none, or more than one; or a critic classifies, who has to be asked.
    """
    if rubric.classify and rubric.classify.critic:
        raise ValueError(f"the critic {rubric.classify.critic!r} classifies: no row says its category by itself")
    if rubric.classify:
        try:
            return rubric.classify.called(row, rubric.categories)
        except ValueError as error:
            raise ValueError(f"the row {_shown(row)}: {error}") from error
    found = [name for name, category in rubric.categories.items() if category.matches(row)]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"the row {_shown(row)} belongs to more than one category: {', '.join(found)}")
    wanted = "; ".join(f"{name} (when {_condition(category)})" for name, category in rubric.categories.items())
    raise ValueError(f"the row {_shown(row)} belongs to no category of: {wanted}")


def items_of(rubric: Rubric, category: str, row: Mapping[str, Any]) -> tuple[Item, ...]:
    """The items that a response to a row's prompt is graded on: its category's, then the row's own.

    Raises:
        ValueError: the row's own are at fault, or there is nothing to reward.
    """
    if category not in rubric.categories:  # unclassified
        return ()
    part = rubric.categories[category]
    if part.row_items is None:
        return part.items
    items = part.items + part.row_items.of(row)
    if not any(item.role == "reward" for item in items):
        raise ValueError(f"no item to reward: neither the category nor {part.row_items.column} has one")
    return items


def check_rows(rubric: Rubric, rows: Sequence[Mapping[str, Any]]) -> None:
    """That the rubric can grade these rows: each has one category, the columns that its items look up, and sound items
    of its own where it brings any. Where a critic classifies, a row may come to be of any category.

    Raises:
        ValueError: the first row where that is not so, with the item and the look-up.
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
                        looked_up(lookup, row)
                    except ValueError as error:
                        raise ValueError(f"row {index}: item {item.id!r} of category {name!r}: {error}") from None


def _same(found: Any, wanted: Constant) -> bool:
    """Equality, with True no number."""
    return isinstance(found, bool) == isinstance(wanted, bool) and found == wanted


def _condition(category: Category) -> str:
    return " and ".join(
        f"{column} is {' or '.join(repr(value) for value in values)}" for column, values in category.when.items()
    )


def _shown(row: Mapping[str, Any]) -> str:
    text = ", ".join(f"{column}={value!r:.40}" for column, value in row.items())
    return f"{{{text[:300]}}}"
