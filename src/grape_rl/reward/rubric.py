"""The rubric: a file that says, for each category of prompt, what a good response is, item by item."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from grape_rl.reward.checks import Check, check_lookups
from grape_rl.reward.critic.item import Judge
from grape_rl.reward.lookup import looked_up
from grape_rl.reward.model_item import RewardModelItem
from grape_rl.reward.strict import Strict, parsed, validated

Name = Annotated[str, Field(min_length=1)]
Constant = str | int | float | bool


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"should be a number but is the boolean {value}")
    return value


def _choices(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


class Item(Strict):
    """One thing to grade, in [0, 1]: by a program (``check``), a critic (``judge``), or a reward model.

    A negative ``weight`` makes it a pitfall. Where a ``gate`` scores 0, the other items of positive weight count 0. A
    ``monitor`` is graded and reported, and no part of the reward.
    """

    id: Name
    weight: Annotated[float, BeforeValidator(_number)] = 1.0
    gate: Annotated[bool, Field(strict=True)] = False
    role: Literal["reward", "monitor"] = "reward"
    check: Check | None = None
    judge: Judge | None = None
    reward_model: RewardModelItem | None = None

    @model_validator(mode="after")
    def _sensible(self) -> "Item":
        if sum(map(bool, (self.check, self.judge, self.reward_model))) != 1:
            raise ValueError("needs exactly one of check, judge and reward_model")
        if self.weight == 0:
            raise ValueError("weight 0 has no effect: use 'role: monitor' to grade an item without rewarding it")
        if self.gate and (self.weight < 0 or self.role == "monitor"):
            raise ValueError("a gate needs a positive weight and the role 'reward'")
        return self

    @property
    def grader(self) -> str:
        """Who grades it, in a word."""
        return self.check.type if self.check else "judge" if self.judge else "reward_model"

    @property
    def lookups(self) -> tuple[str, ...]:
        """The look-ups in its texts, as written."""
        return check_lookups(self.check) if self.check else self.judge.lookups if self.judge else ()


class Category(Strict):
    """The items for the rows whose columns equal ``when`` (a list there means any of; no ``when`` means every row)."""

    when: dict[Name, Annotated[tuple[Constant, ...], BeforeValidator(_choices)]] = Field(default_factory=dict)
    items: tuple[Item, ...]

    @model_validator(mode="after")
    def _distinct(self) -> "Category":
        ids = [item.id for item in self.items]
        twice = next((name for name in ids if ids.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"the item {twice!r} is there twice")
        if not self.rewarded:
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


class Rubric(Strict):
    """Categories of prompt, each with its items. A row belongs to exactly one."""

    version: Annotated[Literal["grape-rubric/1"], Field(alias="schema")]
    categories: Annotated[dict[Name, Category], Field(min_length=1)]


def load_rubric(path: str | Path, allow: Collection[str] = ()) -> Rubric:
    """The rubric of a YAML or JSON file.

    A rubric may come from a stranger. The Python files beside it and the modules that its ``python`` checks name are
    imported only if ``allow`` names them (``"checks.py"``, ``"package.module"``).

    Raises:
        ValueError: the file does not say what a rubric says; one line, with every fault and its place.
    """
    path = Path(path)
    context = {"folder": path.parent, "allow": frozenset(allow)}
    return validated(Rubric, parsed(path), str(path), context)


def category_name(rubric: Rubric, row: Mapping[str, Any]) -> str:
    """The category that a row belongs to.

    Raises:
        ValueError: there is none, or more than one.
    """
    found = [name for name, category in rubric.categories.items() if category.matches(row)]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"the row {_shown(row)} belongs to more than one category: {', '.join(found)}")
    wanted = "; ".join(f"{name} (when {_condition(category)})" for name, category in rubric.categories.items())
    raise ValueError(f"the row {_shown(row)} belongs to no category of: {wanted}")


def check_rows(rubric: Rubric, rows: Sequence[Mapping[str, Any]]) -> None:
    """That the rubric can grade these rows: each has one category, and the columns that its items look up.

    Raises:
        ValueError: the first row where that is not so, with the item and the look-up.
    """
    for index, row in enumerate(rows):
        try:
            name = category_name(rubric, row)
        except ValueError as error:
            raise ValueError(f"row {index}: {error}") from None
        for item in rubric.categories[name].items:
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
