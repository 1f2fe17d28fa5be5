"""Datasets of rubrics brought in, as a rubric file and rows, and rubrics taken out, as rows of a dataset's form."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grape_rl.data.messages import text_or_messages
from grape_rl.reward.formats import FORMATS
from grape_rl.reward.formats.parsing import slug, unique
from grape_rl.reward.row_items import PREFIX
from grape_rl.reward.rubric import Item, Rubric, category_name, items_of
from grape_rl.rubric_tools.convert.layouts import LAYOUTS, Layout, Row
from grape_rl.rubric_tools.convert.writers import WRITERS, filled_in
from grape_rl.schema import nearest, validated


@dataclass(frozen=True)
class Converted:
    """What came of rows: those of the other form, and how often what was left out, and why.

    ``rubric`` is what the rubric file says, where rows were brought in.
    """

    rows: tuple[Row, ...]
    left_out: Mapping[str, int]
    rubric: Mapping[str, Any] | None = None


def layout_of(form: str) -> Layout:
    """Where the rows of a form keep what.

    Raises:
        ValueError: there is no such form.
    """
    if form not in LAYOUTS:
        raise ValueError(f"unknown format {form!r}{nearest(form, LAYOUTS)}")
    return LAYOUTS[form]


def brought_in(found: Sequence[Mapping[str, Any]], form: str, drop: bool = False) -> Converted:
    """Rows of a dataset as rows for a rubric file whose items they bring along.

    Every row's items are read as a run would read them. With ``drop`` a row with a fault is left out.

    Raises:
        ValueError: an unknown form, a row with a fault (if not ``drop``), or none without.
    """
    layout = layout_of(form)
    rows: list[Row] = []
    left_out: Counter[str] = Counter()
    for index, row in enumerate(found):
        try:
            read = layout.read(dict(row))
            for item in row_items(read, layout.column, form):
                filled_in(item, read)
        except ValueError as error:
            if not drop:
                raise ValueError(f"row {index}: {error}") from None
            left_out["rows that cannot be read"] += 1
        else:
            rows.append(read)
    if not rows:
        raise ValueError("no row is left")
    return Converted(tuple(rows), left_out, _rubric(rows, layout, form))


def row_items(row: Mapping[str, Any], column: str, form: str) -> tuple[Item, ...]:
    """The items that a row brings along.

    Raises:
        ValueError: the row has no such column, or what it holds is no rubric of that form.
    """
    if column not in row:
        raise ValueError(f"has no column {column!r} with its rubric; it has {', '.join(map(repr, row)) or 'none'}")
    try:
        told = FORMATS[form](row[column])
    except ValueError as error:
        raise ValueError(f"{column}: {error}") from None
    context = {"folder": Path(), "allow": frozenset[str](), "labels": {}}
    items = tuple(validated(Item, each, f"{column}: [{number}]", context) for number, each in enumerate(told))
    names = Counter(item.id for item in items)
    if twice := [name for name, count in names.items() if count > 1]:
        raise ValueError(f"{column}: the item {twice[0]!r} is there twice")
    if not any(item.role == "reward" for item in items):
        raise ValueError(f"{column}: no item to reward")
    return items


def taken_out(rubric: Rubric, found: Sequence[Mapping[str, Any]], form: str, drop: bool = False) -> Converted:
    """Rows with the items that a rubric has for each, as rows of a dataset's form.

    With ``drop`` an item that the form cannot hold is left out, and a row with no other items.

    Raises:
        ValueError: an unknown form, or (if not ``drop``) an item or a prompt that it cannot hold.
    """
    layout, writer = layout_of(form), WRITERS[form]
    rows: list[Row] = []
    left_out: Counter[str] = Counter()
    for index, (row, items) in enumerate(_graded_by(rubric, found)):
        try:
            kept: list[Item] = []
            for item in items:
                if not (fault := writer.fault(item)):
                    kept.append(filled_in(item, row))
                elif drop:
                    left_out[f"items: {item.id!r} {fault}"] += 1
                else:
                    raise ValueError(f"item {item.id!r} {fault}, which {form} cannot hold; --drop leaves it out")
            if not kept:
                left_out["rows with no other item"] += 1
                continue
            if "prompt" not in row:
                raise ValueError(f"has no column 'prompt'; it has {', '.join(map(repr, row)) or 'none'}")
            told = {**row, "prompt": text_or_messages(row["prompt"], "the prompt")}
            rows.append(layout.written(told, writer.written(kept)))
        except ValueError as error:
            raise ValueError(f"row {index}: {error}") from None
    if not rows:
        raise ValueError("no row is left")
    return Converted(tuple(rows), left_out)


def _graded_by(rubric: Rubric, found: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Row, tuple[Item, ...]]]:
    """Each row with all items that grade it, its own by the names that it has for them, as far as they are free."""
    for index, row in enumerate(found):
        try:
            items = items_of(rubric, category_name(rubric, row), row)
        except ValueError as error:
            raise ValueError(f"row {index}: {error}") from None
        names = unique(item.id.removeprefix(PREFIX) for item in items)
        yield (
            dict(row),
            tuple(item.model_copy(update={"id": name}) for item, name in zip(items, names, strict=True)),
        )


def _rubric(rows: Sequence[Row], layout: Layout, form: str) -> dict[str, Any]:
    """What the rubric file of such rows says: a category for each value of the layout's column, or one for all."""
    brought = {"from": f"${{row.{layout.column}}}", "format": form}
    kinds = list(dict.fromkeys(row.get(layout.by) for row in rows)) if layout.by else [None]
    if not all(isinstance(kind, str) and kind for kind in kinds):
        return {"schema": "grape-rubric/1", "categories": {"all": {"row_items": brought}}}
    names = unique(slug(str(kind)) or "other" for kind in kinds)
    categories = {
        name: {"when": {layout.by: kind}, "row_items": dict(brought)} for name, kind in zip(names, kinds, strict=True)
    }
    return {"schema": "grape-rubric/1", "categories": categories}
