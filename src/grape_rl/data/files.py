"""Files of data rows: JSON Lines, JSON, Parquet and CSV."""

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

Row = dict[str, Any]
"""A data row: column name → value."""

Reader = Callable[[Path], Iterator[Row]]


def file_rows(path: Path, reader: Reader, limit: int | None) -> list[Row]:
    """The rows of a file, or its first ``limit`` rows.

    Raises:
        ValueError: the file cannot be read, or does not parse.
    """
    try:
        return list(islice(reader(path), limit))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from error


def _jsonl(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig"))
            except ValueError as error:
                raise ValueError(f"{path}:{number}: not JSON: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}:{number}: expected one object {{…}} per line; got {row!r:.80}")
            yield row


def _json(path: Path) -> Iterator[Row]:
    try:
        items = json.loads(path.read_bytes().decode("utf-8-sig"))
    except ValueError as error:
        hint = " (one object per line? rename it to .jsonl)" if "Extra data" in str(error) else ""
        raise ValueError(f"{path}: not JSON: {error}{hint}") from error
    if not isinstance(items, list):
        raise ValueError(f"{path}: expected a list of objects; got {type(items).__name__}")
    for index, row in enumerate(items):
        if not isinstance(row, dict):
            raise ValueError(f"{path}: row {index}: expected an object {{…}}; got {row!r:.80}")
        yield row


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from map(without_padding, batch.to_pylist())
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path}: not Parquet: {' '.join(str(error).split())}") from error


def _csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)  # csv's own limit is 131,072 characters
    lines = csv.reader(_text_lines(path), strict=True)
    try:
        header = next(lines, [])
        if len(set(header)) < len(header):
            raise ValueError(f"{path}: duplicate column names: {', '.join(header)}")
        for cells in lines:
            if not cells:
                continue
            if len(cells) != len(header):
                raise ValueError(f"{path}:{lines.line_num}: {len(cells)} cells for {len(header)} columns")
            yield dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise ValueError(f"{path}:{lines.line_num}: not CSV: {error}") from error


def _text_lines(path: Path) -> Iterator[str]:
    """The lines of a text file with their line breaks.

    Raises:
        ValueError: a line is not UTF-8; the message names it.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}:{number}: not UTF-8: {error}") from error
            yield from io.StringIO(text, newline="")


READERS: Mapping[str, Reader] = {".jsonl": _jsonl, ".json": _json, ".parquet": _parquet, ".csv": _csv}


def without_padding(row: Row) -> Row:
    """The row without null keys inside its columns.

    Arrow tables (Parquet files, Hub datasets) have the same keys in every row: a null pads a row that lacks the key.
    The columns themselves are kept.
    """
    return {column: _without_null(value) for column, value in row.items()}


def _without_null(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_null(part) for part in value]
    return {k: _without_null(v) for k, v in value.items() if v is not None} if isinstance(value, dict) else value
