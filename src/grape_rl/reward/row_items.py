"""Items that a data row brings along, beside those of its category in the rubric."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field, PrivateAttr, field_validator, model_validator

from grape_rl.reward.formats import FORMATS
from grape_rl.reward.item import Item
from grape_rl.reward.lookup import looked_up, lookups
from grape_rl.schema import Strict, nearest, validated

PREFIX = "row/"
"""What the ids of rows' items begin with in verdicts, so that none is taken for an item of the category."""


class RowItems(Strict):
    """Where in a row its own items are (``from``, a look-up), and in which ``format``.

    They are read under the same rules as the items of the file: what ``allow`` names, files beside the rubric.
    """

    column: str = Field(alias="from")
    format: str = "grape"

    _context: dict[str, Any] = PrivateAttr()
    _read: dict[str, tuple[Item, ...]] = PrivateAttr(default_factory=dict[str, tuple[Item, ...]])

    @field_validator("column")
    @classmethod
    def _one_lookup(cls, column: str) -> str:
        if lookups(column) != (column,):
            raise ValueError(f"{column!r} should be a look-up and nothing else, such as ${{row.rubrics}}")
        return column

    @field_validator("format")
    @classmethod
    def _known(cls, format: str) -> str:
        if format not in FORMATS:
            raise ValueError(f"unknown format {format!r}{nearest(format, FORMATS)}")
        return format

    @model_validator(mode="after")
    def _kept(self, info: Any) -> "RowItems":  # a pydantic.ValidationInfo, which beartype cannot check
        self._context = {**info.context, "of_row": True}
        return self

    def of(self, row: Mapping[str, Any]) -> tuple[Item, ...]:
        """The row's items. Rows that say the same are read once.

        Raises:
            ValueError: the column is not there, is not in the format, or an item in it is at fault.
        """
        value = looked_up(self.column, row)
        key = json.dumps(value, default=repr)
        if key not in self._read:
            try:
                told = FORMATS[self.format](value)
            except ValueError as error:
                raise ValueError(f"{self.column}: {error}") from None
            self._read[key] = tuple(self._items(told))
        return self._read[key]

    @property
    def read(self) -> Iterator[Item]:
        """The items of all rows so far."""
        return (item for items in self._read.values() for item in items)

    def _items(self, told: list[dict[str, Any]]) -> Iterator[Item]:
        seen: set[str] = set()
        for number, each in enumerate(told):
            name = f"item {PREFIX + str(each['id'])!r}" if "id" in each else f"{self.column}[{number}]"
            item = validated(Item, each, name, self._context)
            if item.id in seen:
                raise ValueError(f"{name}: the id is there twice in this row")
            seen.add(item.id)
            yield item.model_copy(update={"id": PREFIX + item.id})
