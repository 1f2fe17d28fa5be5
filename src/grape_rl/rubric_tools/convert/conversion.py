"""Conversion of rubric datasets to a rubric file and rows, and of a rubric to rows of a dataset."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grape_rl.data.messages import text_or_messages
from grape_rl.reward.formats import FORMATS
from grape_rl.reward.formats.parsing import slug, unique
from grape_rl.reward.item import Item
from grape_rl.reward.row_items import PREFIX
from grape_rl.reward.rubric import Rubric, category_name, items_of
from grape_rl.rubric_tools.convert.layouts import LAYOUTS, DatasetRow, Layout
from grape_rl.rubric_tools.convert.writers import WRITERS, fill_lookups
from grape_rl.schema import nearest, validated


@dataclass(frozen=True)
class Converted:
    """Converted rows, and counts of the rows or items that were dropped, by reason.

    ``rubric`` is the content of the rubric file for imported rows; None for exported ones.
    """

    rows: tuple[DatasetRow, ...]
    dropped: Mapping[str, int]
    rubric: Mapping[str, Any] | None = None


def layout_of(format: str) -> Layout:
    """The layout of a format's dataset.

    Raises:
        ValueError: there is no such format.
    """
    if format not in LAYOUTS:
        raise ValueError(f"unknown format {format!r}{nearest(format, LAYOUTS)}")
    return LAYOUTS[format]


def import_rows(source_rows: Sequence[Mapping[str, Any]], format: str, drop: bool = False) -> Converted:
    """Convert the rows of a dataset to rows that hold their own items, with a rubric file that reads them.

    Every row's items are validated as in a run. With ``drop``, an invalid row is dropped.

    Raises:
        ValueError: an unknown format, an invalid row (unless ``drop``), or no valid row.
    """
    layout = layout_of(format)
    rows: list[DatasetRow] = []
    dropped: Counter[str] = Counter()
    for index, source_row in enumerate(source_rows):
        try:
            row = layout.read(dict(source_row))
            for item in read_row_items(row, layout.column, format):
                fill_lookups(item, row)
        except ValueError as error:
            if not drop:
                raise ValueError(f"row {index}: {error}") from None
            dropped["invalid rows"] += 1
        else:
            rows.append(row)
    if not rows:
        raise ValueError("no row is left")
    return Converted(tuple(rows), dropped, _rubric(rows, layout, format))


def read_row_items(row: Mapping[str, Any], column: str, format: str) -> tuple[Item, ...]:
    """The items that a row holds in ``column``.

    Raises:
        ValueError: the row has no such column, or its value is not a rubric of that format.
    """
    if column not in row:
        raise ValueError(f"has no column {column!r} with its rubric; it has {', '.join(map(repr, row)) or 'none'}")
    try:
        entries = FORMATS[format](row[column])
    except ValueError as error:
        raise ValueError(f"{column}: {error}") from None
    context = {"folder": Path(), "allow": frozenset[str](), "labels": {}}
    items = tuple(validated(Item, entry, f"{column}: [{number}]", context) for number, entry in enumerate(entries))
    names = Counter(item.id for item in items)
    if duplicates := [name for name, count in names.items() if count > 1]:
        raise ValueError(f"{column}: duplicate item {duplicates[0]!r}")
    if not any(item.role == "reward" for item in items):
        raise ValueError(f"{column}: no rewarded item")
    return items


def export_rows(rubric: Rubric, source_rows: Sequence[Mapping[str, Any]], format: str, drop: bool = False) -> Converted:
    """Convert rows and the items that a rubric grades them on to rows of a dataset.

    With ``drop``, an item that the format cannot represent is dropped, and so is a row without other items.

    Raises:
        ValueError: an unknown format, a prompt that it cannot represent, or (unless ``drop``) such an item.
    """
    layout, writer = layout_of(format), WRITERS[format]
    rows: list[DatasetRow] = []
    dropped: Counter[str] = Counter()
    for index, (row, items) in enumerate(_rows_with_items(rubric, source_rows)):
        try:
            representable: list[Item] = []
            for item in items:
                if not (obstacle := writer.obstacle(item)):
                    representable.append(fill_lookups(item, row))
                elif drop:
                    dropped[f"items: {item.id!r} {obstacle}"] += 1
                else:
                    raise ValueError(
                        f"item {item.id!r} {obstacle}, which {format} cannot represent; use --drop to drop it"
                    )
            if not representable:
                dropped["rows without other items"] += 1
                continue
            if "prompt" not in row:
                raise ValueError(f"has no column 'prompt'; it has {', '.join(map(repr, row)) or 'none'}")
            with_prompt = {**row, "prompt": text_or_messages(row["prompt"], "the prompt")}
            rows.append(layout.write(with_prompt, writer.write(representable)))
        except ValueError as error:
            raise ValueError(f"row {index}: {error}") from None
    if not rows:
        raise ValueError("no row is left")
    return Converted(tuple(rows), dropped)


def _rows_with_items(
    rubric: Rubric, rows: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[DatasetRow, tuple[Item, ...]]]:
    """Each row with all items that grade it. The row's own items lose their prefix where the id stays unique."""
    for index, row in enumerate(rows):
        try:
            items = items_of(rubric, category_name(rubric, row), row)
        except ValueError as error:
            raise ValueError(f"row {index}: {error}") from None
        names = unique(item.id.removeprefix(PREFIX) for item in items)
        yield (
            dict(row),
            tuple(item.model_copy(update={"id": name}) for item, name in zip(items, names, strict=True)),
        )


def _rubric(rows: Sequence[DatasetRow], layout: Layout, format: str) -> dict[str, Any]:
    """The content of the rubric file: a category for each value of the layout's category column, or one for all."""
    row_items = {"from": f"${{row.{layout.column}}}", "format": format}
    column = layout.category_column
    values = list(dict.fromkeys(row.get(column) for row in rows)) if column else [None]
    if not all(isinstance(value, str) and value for value in values):
        return {"schema": "grape-rubric/1", "categories": {"all": {"row_items": row_items}}}
    names = unique(slug(str(value)) or "other" for value in values)
    categories = {
        name: {"when": {column: value}, "row_items": dict(row_items)} for name, value in zip(names, values, strict=True)
    }
    return {"schema": "grape-rubric/1", "categories": categories}
