"""Types of datasets, recognized by their column names as TRL defines them."""

from collections.abc import Collection, Mapping
from typing import Literal

DataType = Literal[
    "stepwise supervision", "unpaired preference", "preference", "prompt-completion", "language modeling", "prompt-only"
]

DATA_TYPE_COLUMNS: tuple[tuple[DataType, tuple[str, ...]], ...] = (
    ("stepwise supervision", ("completions", "labels")),
    ("unpaired preference", ("completion", "label")),
    ("preference", ("chosen", "rejected")),
    ("prompt-completion", ("prompt", "completion")),
    ("language modeling", ("messages",)),
    ("language modeling", ("text",)),
    ("prompt-only", ("prompt",)),
)
"""The columns that each type requires, the most specific type first."""


def detect_data_type(columns: Collection[str], names: Mapping[str, str] | None = None) -> DataType | None:
    """The first type whose required columns are all present; None if there is none.

    ``names`` maps a standard column name to the name that the data uses: {"prompt": "question"}.

    >>> detect_data_type(["prompt", "completion", "label"]), detect_data_type(["question"], {"prompt": "question"})
    ('unpaired preference', 'prompt-only')
    """
    aliases = names or {}
    for data_type, required in DATA_TYPE_COLUMNS:
        if all(aliases.get(column, column) in columns for column in required):
            return data_type
    return None
