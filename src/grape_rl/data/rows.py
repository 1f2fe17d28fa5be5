"""Data rows: read from a file or the Hugging Face Hub, and normalized to ``prompt`` and ``completion`` columns."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from grape_rl.data.files import READERS, Row, file_rows, without_padding
from grape_rl.data.messages import Messages, text_or_messages, with_system_prompt
from grape_rl.schema import did_you_mean

LanguageModelingColumn = Literal["messages", "text"]
"""The forms of a demonstration without separate prompt and completion: a whole conversation, or plain text."""


def read_rows(source: str | Path, split: str = "train", limit: int | None = None) -> list[Row]:
    """The rows of a dataset, or its first ``limit`` rows.

    ``source`` is a ``.jsonl``, ``.json`` (a list of objects), ``.parquet`` or ``.csv`` file, or else a dataset of the
    Hugging Face Hub such as ``openai/gsm8k``. A configuration follows a colon: ``openai/gsm8k:main``. ``split`` is a
    split of a Hub dataset; a file has no splits.

    Raises:
        ValueError: there is no such file or dataset; a file does not parse (the message names the line); no rows; or
            text that is not valid Unicode.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"{source}: limit is {limit}; it must be at least 1")
    path = Path(source).expanduser()
    if path.is_file():
        if split != "train":
            raise ValueError(f"{source}: a file has no splits, but split {split!r} was requested; remove the split")
        reader = READERS.get(path.suffix.lower())
        if reader is None:
            raise ValueError(f"{source}: unsupported file type; the supported types are {', '.join(READERS)}")
        rows = file_rows(path, reader, limit)
    elif path.is_dir():
        raise ValueError(f"{source}: is a folder; name a file in it")
    elif path.suffix.lower() in READERS or str(source).startswith(("/", ".", "~")):
        raise ValueError(f"{source}: no such file{_nearest_file(path)}")
    else:
        rows = _hub_rows(str(source), split, limit)
    if not rows:
        raise ValueError(f"{source}: no rows")
    for index, row in enumerate(rows):
        for column, value in row.items():
            if surrogate := _lone_surrogate(value):
                raise ValueError(
                    f"{source}: row {index}: column {column!r} contains a lone surrogate ({surrogate}), which is not "
                    "valid Unicode text; fix or remove the row"
                )
    return rows


def require_columns(rows: Sequence[Mapping[str, Any]], columns: Iterable[str], source: str | Path = "data") -> None:
    """Check that every row has the columns.

    Raises:
        ValueError: a row lacks a column; the message lists the row's columns and the nearest name.
    """
    columns = tuple(columns)
    for index, row in enumerate(rows):
        for column in columns:
            if column not in row:
                raise ValueError(
                    f"{source}: row {index} has no column {column!r}; it has "
                    f"{', '.join(map(repr, row)) or 'none'}{did_you_mean(column, row)}"
                )


def finite_number(value: Any, what: str) -> float:
    """The value of a numeric cell; NaN if it is None or empty.

    Raises:
        ValueError: the value is not a finite number; the message begins with ``what``.
    """
    if value is None:
        return math.nan
    if isinstance(value, str):  # a cell of a CSV file
        try:
            value = float(value) if value.strip() else math.nan
        except ValueError:
            raise ValueError(f"{what} must be a finite number; got {value!r:.80}") from None
        if math.isnan(value):
            return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{what} must be a finite number; got {value!r:.80}")
    return float(value)


def with_prompts(
    rows: Sequence[Mapping[str, Any]],
    prompt: str,
    completion: str | None = None,
    system: str | None = None,
    source: str | Path = "data",
) -> list[Row]:
    """The rows with a ``prompt`` (and a ``completion``) from the columns with these names; other columns are kept.

    Both are either plain text or messages, lists of ``{"role": …, "content": …}`` with text or text parts. TRL's
    prompt-only and prompt-completion datasets load unchanged. A conversational completion is one assistant message, or
    several with the results of tools between them. ``system`` is prepended to every prompt: as a system message, or as
    text followed by a blank line.

    Raises:
        ValueError: a column is missing; a prompt or completion is empty or of another type; one of them is plain text
            and the other messages; ``system`` with a row that already has a system message.

    >>> with_prompts([{"question": "1 + 1?", "answer": "2"}], "question", system="Be brief.")
    [{'question': '1 + 1?', 'answer': '2', 'prompt': 'Be brief.\\n\\n1 + 1?'}]
    """
    require_columns(rows, [prompt] if completion is None else [prompt, completion], source)
    normalized: list[Row] = []
    for index, row in enumerate(rows):
        where = f"{source}: row {index}"
        question = text_or_messages(row[prompt], f"{where}: the prompt ({prompt!r})")
        new = dict(row)
        if completion is not None:
            new["completion"] = _completion(
                row[completion], question, f"{where}: the completion ({completion!r})", where
            )
        new["prompt"] = question if system is None else with_system_prompt(question, system, where)
        normalized.append(new)
    return normalized


def _completion(value: Any, prompt: str | Messages, what: str, where: str) -> str | Messages:
    """The completion in the form of its prompt: plain text, or the assistant's messages with tool results between."""
    answer = text_or_messages(value, what)
    if isinstance(prompt, str) != isinstance(answer, str):
        forms = ("plain text", "messages") if isinstance(prompt, str) else ("messages", "plain text")
        raise ValueError(f"{where}: the prompt is {forms[0]} but the completion is {forms[1]}; use one form for both")
    if not isinstance(answer, str) and {answer[0]["role"], answer[-1]["role"]} != {"assistant"}:
        raise ValueError(
            f"{where}: the completion must begin and end with an assistant message; move other messages to the prompt"
        )
    return answer


def with_language_modeling(
    rows: Sequence[Mapping[str, Any]],
    column: str,
    kind: LanguageModelingColumn,
    system: str | None = None,
    source: str | Path = "data",
) -> list[Row]:
    """The rows with the named column as ``messages`` (a whole conversation) or as ``text``; other columns are kept.

    TRL's language-modeling datasets load unchanged. ``system`` is prepended to a conversation. The ``prompt`` of a
    conversation is everything before its last assistant message.

    Raises:
        ValueError: a row without the column, or with a value of another type; ``system`` with plain text.
    """
    require_columns(rows, [column], source)
    normalized: list[Row] = []
    for index, row in enumerate(rows):
        where = f"{source}: row {index}"
        value = text_or_messages(row[column], f"{where}: the {kind} ({column!r})")
        if isinstance(value, str) != (kind == "text"):
            other = "messages" if kind == "text" else "plain text"
            raise ValueError(f"{where}: the {kind} ({column!r}) must be {kind}, but it is {other}")
        if system is not None:
            if kind == "text":
                raise ValueError(f"{where}: plain text has no prompt to prepend `system` to; do not set `system`")
            value = with_system_prompt(value, system, where)
        new = {**row, kind: value}
        if not isinstance(value, str):
            last = max((i for i, message in enumerate(value) if message["role"] == "assistant"), default=len(value))
            new["prompt"] = value[:last]
        normalized.append(new)
    return normalized


def _hub_rows(source: str, split: str, limit: int | None) -> list[Row]:
    name, _, configuration = source.partition(":")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?(:[^/:]+)?", source):
        raise ValueError(f"{source}: neither a file nor a dataset name on the Hugging Face Hub (owner/name)")
    import datasets

    try:
        dataset = datasets.load_dataset(name, configuration or None, split=split)
        return [without_padding(dict(row)) for row in islice(dataset, limit)]
    except Exception as error:  # many causes: network, access rights, no such dataset, configuration or split
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{source}: no such file, and split {split!r} cannot be loaded from the Hugging Face Hub: "
            f"{type(error).__name__}: {reason}"
        ) from error


def _lone_surrogate(value: Any) -> str:
    """The first unpaired surrogate in the text of a value: JSON can spell one, but no tokenizer accepts it."""
    if isinstance(value, str):
        surrogate = None if value.isascii() else re.search("[\ud800-\udfff]", value)
        return f"\\u{ord(surrogate[0]):04x}" if surrogate else ""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((surrogate for part in parts if (surrogate := _lone_surrogate(part))), "")


def _nearest_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f": there is no folder {path.parent}"
    return did_you_mean(path.name, sorted(child.name for child in path.parent.iterdir() if child.is_file()))
