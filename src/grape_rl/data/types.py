"""Which type of data some columns make, by the names that TRL has for them."""

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
"""The columns that make each type, what says more before what says less."""


def detect_data_type(columns: Collection[str], names: Mapping[str, str] | None = None) -> DataType | None:
    """The type of data that the columns make; None where they make none that is known.

    ``names`` says which columns are called otherwise: {"prompt": "question"}.

    >>> data_type(["prompt", "completion", "label"]), data_type(["question"], {"prompt": "question"})
    ('unpaired preference', 'prompt-only')
    """
    called = names or {}
    for made, needed in DATA_TYPE_COLUMNS:
        if all(called.get(each, each) in columns for each in needed):
            return made
    return None
