"""Conversations: the accepted forms of a cell with text or messages, normalized to one form."""

import json
from collections.abc import Mapping
from typing import Any, TypeGuard

Messages = list[dict[str, Any]]
"""A conversation: one dict with ``role`` and ``content`` per message."""


def text_or_messages(value: Any, what: str) -> str | Messages:
    """The cell as text, or as messages whose content is text. A list of text parts is joined into one text.

    Raises:
        ValueError: the cell is empty, is neither text nor messages, or has content other than text (such as an image).
            The message begins with ``what``.

    >>> text_or_messages([{"role": "user", "content": [{"type": "text", "text": "Hi"}]}], "row 0")
    [{'role': 'user', 'content': 'Hi'}]
    """
    if isinstance(value, str):
        if not value.strip():
            raise ValueError(f"{what} is empty")
        return value
    if isinstance(value, list):
        if not value:
            raise ValueError(f"{what} has no messages")
        for message in value:
            if not _is_message(message):
                raise ValueError(
                    f"{what} must be text, or messages that each have a 'role' and a 'content'; got {message!r:.80}"
                )
        return [_message(message, what) for message in value]
    raise ValueError(f"{what} must be text or a list of messages; got {value!r:.80}")


def _message(message: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The message with its content as one text, and the arguments of its tool calls as objects."""
    # OpenAI's API writes null for the parts that a message does not have.
    present = {key: part for key, part in message.items() if part is not None}
    if isinstance(present.get("tool_calls"), list):
        present["tool_calls"] = [_tool_call(call) for call in present["tool_calls"]]
    parts = present.get("content", "")
    if isinstance(parts, str):
        return present
    wrong = [part for part in parts if not _is_text(part)] if isinstance(parts, list) else [parts]
    if wrong:
        raise ValueError(
            f"{what} has a message whose content is neither text nor a list of parts {{'type': 'text', 'text': …}}: "
            f"{wrong[0]!r:.80}; images and other media are not supported"
        )
    return present | {"content": "".join(part["text"] for part in parts)}


def _is_text(part: Any) -> bool:
    return isinstance(part, dict) and (part.get("type") or "text") == "text" and isinstance(part.get("text"), str)


def call_arguments(call: Any) -> Any:
    """The arguments of a tool call: an object, or JSON in a text; None if it has none."""
    function = call.get("function") if isinstance(call, dict) else None
    return function.get("arguments") if isinstance(function, dict) else None


def with_arguments(call: dict[str, Any], arguments: Any) -> dict[str, Any]:
    """The tool call with other arguments."""
    return {**call, "function": {**call["function"], "arguments": arguments}}


def _tool_call(call: Any) -> Any:
    """The call with its arguments as an object: OpenAI's API writes them as JSON in a text."""
    written = call_arguments(call)
    if not isinstance(written, str):
        return call
    try:
        arguments = json.loads(written)
    except ValueError:
        return call
    return with_arguments(call, arguments) if isinstance(arguments, dict) else call


def _is_message(value: Any) -> TypeGuard[dict[str, Any]]:
    if not isinstance(value, dict):
        return False
    # A message with tool calls may have no content.
    return isinstance(value.get("role"), str) and (value.get("content") is not None or bool(value.get("tool_calls")))


def with_system_prompt(prompt: str | Messages, system: str, where: str) -> str | Messages:
    """The prompt with ``system`` prepended: as a system message, or as text followed by a blank line.

    Raises:
        ValueError: the prompt already has a system message.
    """
    if isinstance(prompt, str):
        return f"{system}\n\n{prompt}"
    if prompt[0]["role"] == "system":
        raise ValueError(f"{where}: the prompt already has a system message; remove it, or do not set `system`")
    return [{"role": "system", "content": system}, *prompt]
