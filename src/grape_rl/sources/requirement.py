"""Data requirements: the columns that a method learns from, and the error if the data has others."""

from collections.abc import Sequence
from dataclasses import dataclass

from grape_rl.config.config import Config
from grape_rl.data.types import DataType, detect_data_type
from grape_rl.schema import did_you_mean
from grape_rl.setup.rows import Row

RENAMABLE = ("prompt", "completion", "label", "chosen", "rejected", "messages", "text", "completions", "labels")
"""Columns that can have another name in the data, set by ``data.COLUMN``."""


@dataclass(frozen=True)
class DataRequirement:
    """Data that a method learns from.

    Attributes:
        words: a description for help texts and errors.
        columns: alternative sets of columns; one set is enough.
        types: the data types whose natural use this is.
    """

    words: str
    columns: tuple[tuple[str, ...], ...]
    types: tuple[DataType, ...]


class UnsuitableDataError(ValueError):
    """The data is of a type that the method cannot learn from."""

    def __init__(self, message: str, found_type: DataType) -> None:
        super().__init__(message)
        self.found_type: DataType = found_type


def check_columns(config: Config, requirement: DataRequirement, rows: Sequence[Row], origin: str) -> None:
    """Check the columns of the first row against the requirement.

    Some unsuitable columns pass, because the code that reads a column reports more precisely that it is missing: if
    the columns make no known data type, if a part of the requirement is there, if a name is nearly right, or if the
    user has renamed a column.

    Raises:
        UnsuitableDataError: the columns make another type of data.
    """
    if config.data.tasks or not rows:
        return
    names = {column: str(getattr(config.data, column)) for column in RENAMABLE}
    columns = rows[0].keys()
    missing = [[column for column in group if names[column] not in columns] for group in requirement.columns]
    found_type = detect_data_type(columns, names)
    if found_type is None or not all(missing):
        return
    renamed_or_near = any(
        names[column] != column or did_you_mean(names[column], columns) for group in missing for column in group
    )
    required = {column for group in requirement.columns for column in group}
    partial = found_type == "prompt-only" and any(names[column] in columns for column in required - {"prompt"})
    if renamed_or_near or partial:
        return
    raise UnsuitableDataError(
        f"{origin}: {config.method} needs {requirement.words}, but the columns {', '.join(columns)} are "
        f"{found_type} data",
        found_type,
    )
