"""The rows of a run's data as every kind of method reads them."""

from pathlib import Path
from typing import Any

from grape_rl.config import Config, Data
from grape_rl.data.rows import Row, read_rows, require_columns, with_prompts
from grape_rl.data.tasks import task_split

TASK_ROWS = 2000


def split(config: Config) -> tuple[list[Row], list[Row]]:
    """Training rows and held-out rows as the data has them."""
    data = config.data
    wanted = data.held_out_rows
    if data.tasks:
        return task_split(data.tasks, data.rows or TASK_ROWS, wanted, config.seed)
    assert data.source is not None
    if data.held_out and wanted:
        return _read(data.source, data.rows), _read(data.held_out, wanted)
    both = _read(data.source, data.rows and data.rows + wanted)
    train, test = both[wanted:], both[:wanted]
    if not train:
        raise ValueError(f"{data.source}: its {len(both)} rows are all held out; none are left to train on")
    return train, test


def sources(data: Data) -> tuple[str, str]:
    """Where the training rows and the held-out rows come from, for complaints."""
    source = data.source or "tasks"
    return source, data.held_out or source


def prompted(data: Data, found: list[Row], prompt: str, completion: str | None, source: str) -> list[Row]:
    """The rows with their ``prompt``, and where there is a column for it their ``completion``, as text or messages.

    Raises:
        ValueError: a column is not there, or a cell holds neither.
    """
    require_columns(found, [prompt, *([completion] if completion else [])], source)
    if not data.chat:
        return with_prompts(found, prompt, completion, data.system, source)
    roles = {prompt: "user"} | ({completion: "assistant"} if completion else {})
    chats = [row | {name: message(row[name], role) for name, role in roles.items()} for row in found]
    return with_prompts(chats, prompt, completion, data.system, source)


def message(content: Any, role: str) -> Any:
    """Plain text as one message; anything else as it is."""
    return [{"role": role, "content": content}] if isinstance(content, str) and content.strip() else content


def _read(source: str, limit: int | None) -> list[Row]:
    """The rows of a file, or of NAME[:CONFIGURATION[:SPLIT]] of the Hub."""
    name, _, split = source.rpartition(":")
    if ":" in name and not Path(source).exists():
        return read_rows(name.rstrip(":"), split, limit)
    return read_rows(source, limit=limit)


def plain(content: Any) -> str:
    """Text, or a conversation's messages as text."""
    return content if isinstance(content, str) else "\n".join(str(m.get("content") or "") for m in content)


def graders_text(prompt: Any) -> str:
    """A prompt as graders read it: text, or what the messages say, with who says it where there are several.

    >>> graders_text([{"role": "user", "content": "Hi"}]), graders_text("Hi")
    ('Hi', 'Hi')
    >>> graders_text([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}])
    'user: Hi\\n\\nassistant: Hello!'
    """
    if isinstance(prompt, str) or len(prompt) == 1:
        return plain(prompt)
    return "\n\n".join(f"{message['role']}: {message.get('content') or ''}" for message in prompt)
