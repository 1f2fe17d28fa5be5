"""Where public datasets of rubrics keep what: their rows brought to ours, and back."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grape_rl.data.messages import text_or_messages
from grape_rl.data.rows import Row

REFERENCE = "${row.reference_answer}"


@dataclass(frozen=True)
class Layout:
    """The rows of a dataset.

    ``column`` holds a row's rubric, there and here. ``read`` makes one of our rows of one of theirs, with a ``prompt``,
    and ``written`` one of theirs of ours and its rubric. ``by`` names the column of ours that tells categories apart.
    """

    column: str
    read: Callable[[Row], Row]
    written: Callable[[Row, Any], Row]
    by: str | None = None


def _prompted(prompt: str) -> Callable[[Row], Row]:
    """Reads rows whose prompt is text or messages in one column."""

    def read(row: Row) -> Row:
        name = prompt if prompt in row else "prompt"
        if name not in row:
            raise ValueError(f"has no column {prompt!r}; it has {_listed(row)}")
        return {"prompt": text_or_messages(row[name], name), **_without(row, name)}

    return read


def _plain(prompt: str, column: str) -> Callable[[Row, Any], Row]:
    """Writes rows whose prompt is text."""

    def written(row: Row, rubric: Any) -> Row:
        system, asked = _parts(row["prompt"])
        if system:
            raise ValueError("its prompt has a system message, for which the form has no place")
        return {prompt: asked, **_without(row, "prompt", column), column: rubric}

    return written


def _rar_read(row: Row) -> Row:
    # The two say again what the rubric says.
    return _without(_prompted("question")(row), "rubric_list", "rubric_count")


def _rar_written(row: Row, rubric: Any) -> Row:
    return {"reference_answer": "", **_plain("question", "rubric")(row, rubric), "rubric_count": len(rubric)}


def _healthbench_read(row: Row) -> Row:
    found = _prompted("prompt")(row)
    tags = row.get("example_tags") or []
    themes = [tag.removeprefix("theme:") for tag in tags if isinstance(tag, str) and tag.startswith("theme:")]
    return {**found, "theme": themes[0]} if len(themes) == 1 and "theme" not in row else found


def _healthbench_written(row: Row, rubric: Any) -> Row:
    prompt = row["prompt"]
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    theme = row.get("theme")
    tags = row.get("example_tags") or ([f"theme:{theme}"] if theme else [])
    return {**_without(row, "theme"), "prompt": messages, "rubrics": rubric, "example_tags": tags}


def _biggen_read(row: Row) -> Row:
    if "input" not in row and "prompt" in row:
        found = {"prompt": text_or_messages(row["prompt"], "prompt"), **_without(row, "prompt")}
    else:
        asked, system = row.get("input"), row.get("system_prompt") or ""
        if not isinstance(asked, str) or not isinstance(system, str):
            raise ValueError(f"should have the texts input and system_prompt; it has {_listed(row)}")
        text_or_messages(asked, "input")
        before = [{"role": "system", "content": system}] if system.strip() else []
        messages = [*before, {"role": "user", "content": asked}]
        found = {"prompt": messages, **_without(row, "input", "system_prompt")}
    rubric = found.get("score_rubric")
    if isinstance(rubric, Mapping) and row.get("reference_answer"):
        found["score_rubric"] = {**rubric, "reference": REFERENCE}
    return found


def _biggen_written(row: Row, rubric: Any) -> Row:
    system, asked = _parts(row["prompt"])
    reference = rubric.get("reference", row.get("reference_answer") or "")
    told = {key: value for key, value in rubric.items() if key != "reference"}
    rest = _without(row, "prompt", "score_rubric", "reference_answer")
    return {**rest, "system_prompt": system, "input": asked, "reference_answer": reference, "score_rubric": told}


def _own_written(row: Row, rubric: Any) -> Row:
    return {**row, "items": rubric}


LAYOUTS: Mapping[str, Layout] = {
    "grape": Layout("items", _prompted("prompt"), _own_written),
    "healthbench": Layout("rubrics", _healthbench_read, _healthbench_written, "theme"),
    "rar": Layout("rubric", _rar_read, _rar_written),
    "openrubrics": Layout("rubric", _prompted("instruction"), _plain("instruction", "rubric")),
    "biggen": Layout("score_rubric", _biggen_read, _biggen_written, "capability"),
}
"""The datasets' rows, by the name of their rubrics' form."""


def _parts(prompt: Any) -> tuple[str, str]:
    """The system message ("" if there is none) and the one message of the user's.

    Raises:
        ValueError: the prompt is a longer conversation.
    """
    if isinstance(prompt, str):
        return "", prompt
    roles = [message["role"] for message in prompt]
    if roles not in (["user"], ["system", "user"]):
        raise ValueError(f"its prompt is a conversation ({', '.join(roles)}), for which the form has no place")
    return (prompt[0]["content"] if len(prompt) == 2 else ""), prompt[-1]["content"]


def _without(row: Mapping[str, Any], *names: str) -> Row:
    return {key: value for key, value in row.items() if key not in names}


def _listed(names: Sequence[str] | Mapping[str, Any]) -> str:
    return ", ".join(map(repr, names)) or "none"
