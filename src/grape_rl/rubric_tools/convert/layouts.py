"""Layouts: the columns of public rubric datasets, and how their rows map to ours and back."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grape_rl.data.messages import text_or_messages

DatasetRow = dict[str, Any]

REFERENCE_LOOKUP = "${row.reference_answer}"
"""The lookup of BiGGen-Bench's reference answer."""


@dataclass(frozen=True)
class Layout:
    """The columns of one dataset.

    Attributes:
        column: the column of a row's rubric, in the dataset and in our rows.
        read: a row of the dataset → our row, with a ``prompt``.
        write: our row and its rubric → a row of the dataset.
        category_column: our column whose values become categories; None for a single category.
    """

    column: str
    read: Callable[[DatasetRow], DatasetRow]
    write: Callable[[DatasetRow, Any], DatasetRow]
    category_column: str | None = None


def _prompt_reader(column: str) -> Callable[[DatasetRow], DatasetRow]:
    """A reader of rows whose prompt is text or messages in one column."""

    def read(row: DatasetRow) -> DatasetRow:
        name = column if column in row else "prompt"
        if name not in row:
            raise ValueError(f"has no column {column!r}; it has {_listed(row)}")
        return {"prompt": text_or_messages(row[name], name), **_without(row, name)}

    return read


def _text_writer(prompt: str, column: str) -> Callable[[DatasetRow, Any], DatasetRow]:
    """A writer of rows whose prompt is text."""

    def write(row: DatasetRow, rubric: Any) -> DatasetRow:
        system, user = _system_and_user(row["prompt"])
        if system:
            raise ValueError("its prompt has a system message, which the format cannot represent")
        return {prompt: user, **_without(row, "prompt", column), column: rubric}

    return write


def _read_rar(row: DatasetRow) -> DatasetRow:
    # These two columns repeat the rubric.
    return _without(_prompt_reader("question")(row), "rubric_list", "rubric_count")


def _write_rar(row: DatasetRow, rubric: Any) -> DatasetRow:
    text_row = _text_writer("question", "rubric")(row, rubric)
    return {"reference_answer": "", **text_row, "rubric_count": len(rubric)}


def _read_healthbench(row: DatasetRow) -> DatasetRow:
    result = _prompt_reader("prompt")(row)
    tags = row.get("example_tags") or []
    themes = [tag.removeprefix("theme:") for tag in tags if isinstance(tag, str) and tag.startswith("theme:")]
    return {**result, "theme": themes[0]} if len(themes) == 1 and "theme" not in row else result


def _write_healthbench(row: DatasetRow, rubric: Any) -> DatasetRow:
    prompt = row["prompt"]
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    theme = row.get("theme")
    tags = row.get("example_tags") or ([f"theme:{theme}"] if theme else [])
    return {**_without(row, "theme"), "prompt": messages, "rubrics": rubric, "example_tags": tags}


def _read_biggen(row: DatasetRow) -> DatasetRow:
    if "input" not in row and "prompt" in row:
        result = {"prompt": text_or_messages(row["prompt"], "prompt"), **_without(row, "prompt")}
    else:
        user, system = row.get("input"), row.get("system_prompt") or ""
        if not isinstance(user, str) or not isinstance(system, str):
            raise ValueError(f"should have the texts input and system_prompt; it has {_listed(row)}")
        text_or_messages(user, "input")
        before = [{"role": "system", "content": system}] if system.strip() else []
        messages = [*before, {"role": "user", "content": user}]
        result = {"prompt": messages, **_without(row, "input", "system_prompt")}
    rubric = result.get("score_rubric")
    if isinstance(rubric, Mapping) and row.get("reference_answer"):
        result["score_rubric"] = {**rubric, "reference": REFERENCE_LOOKUP}
    return result


def _write_biggen(row: DatasetRow, rubric: Any) -> DatasetRow:
    system, user = _system_and_user(row["prompt"])
    reference = rubric.get("reference", row.get("reference_answer") or "")
    score_rubric = {key: value for key, value in rubric.items() if key != "reference"}
    rest = _without(row, "prompt", "score_rubric", "reference_answer")
    return {
        **rest, "system_prompt": system, "input": user, "reference_answer": reference, "score_rubric": score_rubric
    }  # fmt: skip


def _write_grape(row: DatasetRow, rubric: Any) -> DatasetRow:
    return {**row, "items": rubric}


LAYOUTS: Mapping[str, Layout] = {
    "grape": Layout("items", _prompt_reader("prompt"), _write_grape),
    "healthbench": Layout("rubrics", _read_healthbench, _write_healthbench, "theme"),
    "rar": Layout("rubric", _read_rar, _write_rar),
    "openrubrics": Layout("rubric", _prompt_reader("instruction"), _text_writer("instruction", "rubric")),
    "biggen": Layout("score_rubric", _read_biggen, _write_biggen, "capability"),
}
"""The layout of each dataset, by the format of its rubrics."""


def _system_and_user(prompt: Any) -> tuple[str, str]:
    """The system message ("" if there is none) and the only user message.

    Raises:
        ValueError: the prompt has further messages.
    """
    if isinstance(prompt, str):
        return "", prompt
    roles = [message["role"] for message in prompt]
    if roles not in (["user"], ["system", "user"]):
        raise ValueError(f"its prompt is a conversation ({', '.join(roles)}), which the format cannot represent")
    return (prompt[0]["content"] if len(prompt) == 2 else ""), prompt[-1]["content"]


def _without(row: Mapping[str, Any], *names: str) -> DatasetRow:
    return {key: value for key, value in row.items() if key not in names}


def _listed(names: Sequence[str] | Mapping[str, Any]) -> str:
    return ", ".join(map(repr, names)) or "none"
