"""Data rows of a run: read from a file, the Hub or tasks, split, and brought to the columns that sources read."""

from pathlib import Path
from typing import Any

from grape_rl.config.config import Config
from grape_rl.config.data import DataConfig
from grape_rl.data.rows import Row, read_rows, require_columns, with_prompts
from grape_rl.data.tasks import task_split

TASK_ROWS = 2000
"""Training rows that are generated for tasks, unless ``data.rows`` is set."""


def read_split(config: Config) -> tuple[list[Row], list[Row]]:
    """Training rows and held-out rows, with the columns of the file or dataset.

    Raises:
        ValueError: no row is left to train on, or as ``data.rows.rows`` and ``task_split``.
    """
    train, test = _read_split(config)
    if extra := config.data.chat_template_kwargs:
        train, test = (
            [{**row, "chat_template_kwargs": extra | (row.get("chat_template_kwargs") or {})} for row in rows]
            for rows in (train, test)
        )
    return train, test


def _read_split(config: Config) -> tuple[list[Row], list[Row]]:
    """The training rows and held-out rows as they are stored, or as they are generated for tasks."""
    data = config.data
    if data.tasks:
        return task_split(data.tasks, data.rows or TASK_ROWS, data.held_out_rows, config.seed)
    assert data.source is not None
    if data.held_out and data.held_out_rows:
        return _read(data.source, data.rows), _read(data.held_out, data.held_out_rows)
    everything = _read(data.source, data.rows and data.rows + data.held_out_rows)
    test, train = everything[: data.held_out_rows], everything[data.held_out_rows :]
    if not train:
        raise ValueError(f"{data.source}: all of its {len(everything)} rows are held out; none are left to train on")
    return train, test


def row_origins(data: DataConfig) -> tuple[str, str]:
    """Origins of the training rows and of the held-out rows, for error messages."""
    source = data.source or "tasks"
    return source, data.held_out or source


def with_prompt(data: DataConfig, rows: list[Row], prompt: str, completion: str | None, origin: str) -> list[Row]:
    """The rows with a ``prompt`` as text or messages, and a ``completion`` if that column is named.

    Raises:
        ValueError: a column is missing, or a cell is neither text nor messages.
    """
    require_columns(rows, [prompt, *([completion] if completion else [])], origin)
    if not data.chat:
        return with_prompts(rows, prompt, completion, data.system, origin)
    roles = {prompt: "user"} | ({completion: "assistant"} if completion else {})
    chats = [row | {column: as_messages(row[column], role) for column, role in roles.items()} for row in rows]
    return with_prompts(chats, prompt, completion, data.system, origin)


def as_messages(content: Any, role: str) -> Any:
    """Plain text as a conversation of one message; anything else unchanged."""
    return [{"role": role, "content": content}] if isinstance(content, str) and content.strip() else content


def flat_text(content: Any) -> str:
    """Text itself, or the texts of a conversation's messages, one per line."""
    return content if isinstance(content, str) else "\n".join(str(m.get("content") or "") for m in content)


def graders_text(prompt: Any) -> str:
    """The prompt as graders read it: plain text, or a conversation with the role before each message.

    A conversation of one message is its text alone.

    >>> graders_text([{"role": "user", "content": "Hi"}]), graders_text("Hi")
    ('Hi', 'Hi')
    >>> graders_text([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}])
    'user: Hi\\n\\nassistant: Hello!'
    """
    if isinstance(prompt, str) or len(prompt) == 1:
        return flat_text(prompt)
    return "\n\n".join(f"{message['role']}: {message.get('content') or ''}" for message in prompt)


def _read(source: str, limit: int | None) -> list[Row]:
    """The rows of a file, or of the Hub dataset NAME[:CONFIGURATION[:SPLIT]]."""
    name, _, split = source.rpartition(":")
    if ":" in name and not Path(source).exists():
        return read_rows(name.rstrip(":"), split, limit)
    return read_rows(source, limit=limit)
