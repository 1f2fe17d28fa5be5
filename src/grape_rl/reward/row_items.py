"""Items that a data row holds itself, graded in addition to the items of its category."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field, PrivateAttr, field_validator, model_validator

from grape_rl.reward.check.lookup import lookup_value, lookups
from grape_rl.reward.formats import FORMATS
from grape_rl.reward.item import Item
from grape_rl.schema import Strict, nearest, validated

PREFIX = "row/"
"""Prefix of the ids of rows' items in verdicts, which keeps them apart from the category's items."""


class RowItems(Strict):
    """The column that holds a row's own items (``from``, a lookup), and their ``format``.

    The rules for items of the file apply: ``allow`` permits code, and file names are relative to the rubric's folder.
    """

    column: str = Field(alias="from")
    format: str = "grape"

    _context: dict[str, Any] = PrivateAttr()
    _read: dict[str, tuple[Item, ...]] = PrivateAttr(default_factory=dict[str, tuple[Item, ...]])

    @field_validator("column")
    @classmethod
    def _one_lookup(cls, column: str) -> str:
        if lookups(column) != (column,):
            raise ValueError(f"{column!r} should be a single lookup, such as ${{row.rubrics}}")
        return column

    @field_validator("format")
    @classmethod
    def _known_format(cls, format: str) -> str:
        if format not in FORMATS:
            raise ValueError(f"unknown format {format!r}{nearest(format, FORMATS)}")
        return format

    @model_validator(mode="after")
    def _store_context(self, info: Any) -> "RowItems":  # a pydantic.ValidationInfo, which beartype cannot check
        self._context = {**info.context, "of_row": True}
        return self

    def of(self, row: Mapping[str, Any]) -> tuple[Item, ...]:
        """The row's own items. Equal values of the column are parsed once.

        Raises:
            ValueError: the column is missing, is not in the format, or holds an invalid item.
        """
        value = lookup_value(self.column, row)
        key = json.dumps(value, default=repr)
        if key not in self._read:
            try:
                entries = FORMATS[self.format](value)
            except ValueError as error:
                raise ValueError(f"{self.column}: {error}") from None
            self._read[key] = tuple(self._items(entries))
        return self._read[key]

    @property
    def read(self) -> Iterator[Item]:
        """The items of all rows read so far."""
        return (item for items in self._read.values() for item in items)

    def _items(self, entries: list[dict[str, Any]]) -> Iterator[Item]:
        seen: set[str] = set()
        for number, entry in enumerate(entries):
            name = f"item {PREFIX + str(entry['id'])!r}" if "id" in entry else f"{self.column}[{number}]"
            item = validated(Item, entry, name, self._context)
            if item.id in seen:
                raise ValueError(f"{name}: duplicate id in this row")
            seen.add(item.id)
            yield item.model_copy(update={"id": PREFIX + item.id})
