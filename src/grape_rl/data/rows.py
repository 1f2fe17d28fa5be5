"""Data rows: read from a file or the Hugging Face Hub, and brought to one form, ``prompt`` and ``completion``."""

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from grape_rl.data.messages import text_or_messages, with_system_prompt
from grape_rl.schema import did_you_mean

LanguageModelingColumn = Literal["messages", "text"]
"""What a row can be that has no prompt and completion apart."""


def read_rows(source: str | Path, split: str = "train", limit: int | None = None) -> list[dict[str, Any]]:
    """The rows of a dataset, at most the first ``limit`` of them.

    ``source`` is a ``.jsonl``, ``.json`` (a list of objects), ``.parquet`` or ``.csv`` file; or else a dataset of the
    Hugging Face Hub, ``openai/gsm8k``, with its configuration after a colon where it has several:
    ``openai/gsm8k:main``. ``split`` is a split of a Hub dataset; a file has none.

    Raises:
        ValueError: no such file or dataset, a file that does not parse (with its line), or no rows.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"{source}: limit is {limit}; at least one row must be read")
    path = Path(source).expanduser()
    if path.is_file():
        if split != "train":
            raise ValueError(f"{source}: a file has no splits, and split {split!r} was asked for; leave it out")
        read = READERS.get(path.suffix.lower())
        if read is None:
            raise ValueError(f"{source}: unknown kind of file; {', '.join(READERS)} can be read")
        found = _file_rows(path, read, limit)
    elif path.is_dir():
        raise ValueError(f"{source}: a folder; name one file in it")
    elif path.suffix.lower() in READERS or str(source).startswith(("/", ".", "~")):
        raise ValueError(f"{source}: no such file{_nearest_file(path)}")
    else:
        found = _hub_rows(str(source), split, limit)
    if not found:
        raise ValueError(f"{source}: no rows")
    for index, row in enumerate(found):
        for column, value in row.items():
            if broken := _half_character(value):
                raise ValueError(
                    f"{source}: row {index}: column {column!r} has half a character in it ({broken}, a surrogate): "
                    "it is no text; mend or remove it"
                )
    return found


def require_columns(rows: Sequence[Mapping[str, Any]], columns: Iterable[str], source: str | Path = "data") -> None:
    """Check that every row has the columns.

    Raises:
        ValueError: a row lacks one; the message names it, those present, and the nearest of them.
    """
    columns = tuple(columns)
    for index, row in enumerate(rows):
        for column in columns:
            if column not in row:
                raise ValueError(
                    f"{source}: row {index} has no column {column!r}; it has "
                    f"{', '.join(map(repr, row)) or 'none'}{did_you_mean(column, row)}"
                )


def with_prompts(
    rows: Sequence[Mapping[str, Any]],
    prompt: str,
    completion: str | None = None,
    system: str | None = None,
    source: str | Path = "data",
) -> list[dict[str, Any]]:
    """The rows with a ``prompt`` (and a ``completion``) made of the columns so named; the other columns stay.

    Both are either plain text or messages, lists of ``{"role": …, "content": …}`` (text, or parts of text): TRL's
    prompt-only and prompt-completion datasets load unchanged. A conversational completion is one assistant message.
    ``system`` goes in front of every prompt: as a system message, or as text and a blank line.

    Raises:
        ValueError: a column is missing; a prompt or completion is empty, of another type, or plain where the other is
            conversational; a prompt that ends with the assistant; ``system`` beside a system message of the row's own.

    >>> with_prompts([{"question": "1 + 1?", "answer": "2"}], "question", system="Be brief.")
    [{'question': '1 + 1?', 'answer': '2', 'prompt': 'Be brief.\\n\\n1 + 1?'}]
    """
    require_columns(rows, [prompt] if completion is None else [prompt, completion], source)
    made: list[dict[str, Any]] = []
    for index, row in enumerate(rows):
        where = f"{source}: row {index}"
        asked = text_or_messages(row[prompt], f"{where}: the prompt ({prompt!r})")
        new = dict(row)
        if completion is not None:
            answer = text_or_messages(row[completion], f"{where}: the completion ({completion!r})")
            if isinstance(asked, str) != isinstance(answer, str):
                kinds = ("plain text", "messages") if isinstance(asked, str) else ("messages", "plain text")
                raise ValueError(f"{where}: the prompt is {kinds[0]} and the completion {kinds[1]}; make both one kind")
            if not isinstance(answer, str) and [message["role"] for message in answer] != ["assistant"]:
                raise ValueError(
                    f"{where}: the completion must be one assistant message; move the others to the prompt"
                )
            new["completion"] = answer
        if not isinstance(asked, str) and asked[-1]["role"] == "assistant":
            raise ValueError(f"{where}: the prompt ends with the assistant's message; it must end with what it answers")
        new["prompt"] = asked if system is None else with_system_prompt(asked, system, where)
        made.append(new)
    return made


def with_language_modeling(
    rows: Sequence[Mapping[str, Any]],
    column: str,
    kind: LanguageModelingColumn,
    system: str | None = None,
    source: str | Path = "data",
) -> list[dict[str, Any]]:
    """The rows with the column so named as ``messages``, a whole conversation, or as ``text``; the others stay.

    TRL's language-modeling datasets load unchanged. ``system`` goes in front of a conversation. Its ``prompt`` is
    what comes before the last message of the assistant's.

    Raises:
        ValueError: a row without the column, or with something else in it; ``system`` before text that has no prompt.
    """
    require_columns(rows, [column], source)
    made: list[dict[str, Any]] = []
    for index, row in enumerate(rows):
        where = f"{source}: row {index}"
        found = text_or_messages(row[column], f"{where}: the {kind} ({column!r})")
        if isinstance(found, str) != (kind == "text"):
            other = "messages" if kind == "text" else "plain text"
            raise ValueError(f"{where}: the {kind} ({column!r}) should be {kind}, and is {other}")
        if system is not None:
            if kind == "text":
                raise ValueError(f"{where}: text has no prompt for `system` to stand before; leave it out")
            found = with_system_prompt(found, system, where)
        new = {**row, kind: found}
        if not isinstance(found, str):
            last = max((i for i, message in enumerate(found) if message["role"] == "assistant"), default=len(found))
            new["prompt"] = found[:last]
        made.append(new)
    return made


def _hub_rows(source: str, split: str, limit: int | None) -> list[dict[str, Any]]:
    name, _, configuration = source.partition(":")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?(:[^/:]+)?", source):
        raise ValueError(f"{source}: neither a file nor the name of a dataset of the Hugging Face Hub (owner/name)")
    import datasets

    try:
        found = datasets.load_dataset(name, configuration or None, split=split)
        return [dict(row) for row in islice(found, limit)]
    except Exception as error:  # of many kinds: network, access, no such dataset, configuration or split
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{source}: no such file, and its split {split!r} cannot be read from the Hugging Face Hub: "
            f"{type(error).__name__}: {reason}"
        ) from error


def _half_character(value: Any) -> str:
    """The first code unit in a value's text that is none by itself: JSON can spell one, and no tokenizer reads it."""
    if isinstance(value, str):
        half = None if value.isascii() else re.search("[\ud800-\udfff]", value)
        return f"\\u{ord(half[0]):04x}" if half else ""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((broken for part in parts if (broken := _half_character(part))), "")


Reader = Callable[[Path], Iterator[dict[str, Any]]]


def _file_rows(path: Path, read: Reader, limit: int | None) -> list[dict[str, Any]]:
    try:
        return list(islice(read(path), limit))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from error


def _jsonl(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig"))
            except ValueError as error:
                raise ValueError(f"{path}:{number}: not JSON: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}:{number}: expected one object {{…}} a line; got {row!r:.80}")
            yield row


def _json(path: Path) -> Iterator[dict[str, Any]]:
    try:
        found = json.loads(path.read_bytes().decode("utf-8-sig"))
    except ValueError as error:
        hint = " (one object a line? name it .jsonl)" if "Extra data" in str(error) else ""
        raise ValueError(f"{path}: not JSON: {error}{hint}") from error
    if not isinstance(found, list):
        raise ValueError(f"{path}: expected a list of objects; got {type(found).__name__}")
    for index, row in enumerate(found):
        if not isinstance(row, dict):
            raise ValueError(f"{path}: row {index}: expected an object {{…}}; got {row!r:.80}")
        yield row


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path}: not Parquet: {' '.join(str(error).split())}") from error


def _csv(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file, strict=True)
        try:
            header = next(lines, [])
            if len(set(header)) < len(header):
                raise ValueError(f"{path}: a column is named twice: {', '.join(header)}")
            for cells in lines:
                if not cells:
                    continue
                if len(cells) != len(header):
                    raise ValueError(f"{path}:{lines.line_num}: {len(cells)} cells under {len(header)} columns")
                yield dict(zip(header, cells, strict=True))
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}:{lines.line_num}: not CSV: {error}") from error


READERS: Mapping[str, Reader] = {".jsonl": _jsonl, ".json": _json, ".parquet": _parquet, ".csv": _csv}


def _nearest_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f": there is no folder {path.parent}"
    return did_you_mean(path.name, sorted(child.name for child in path.parent.iterdir() if child.is_file()))
