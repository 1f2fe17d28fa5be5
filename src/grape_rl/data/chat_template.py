"""Messages as text, by the chat template of a tokenizer."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from grape_rl.data.messages import Messages, call_arguments, with_arguments

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer
else:  # transformers is slow to import, and a tokenizer is passed in
    Tokenizer = Any


def template_arguments(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The row's arguments to the chat template in addition to its messages: ``tools`` and ``chat_template_kwargs``.

    Empty if the prompt is plain text.

    Raises:
        ValueError: ``tools`` is not a list (or a JSON list), or ``chat_template_kwargs`` is not a dict.
    """
    if isinstance(row.get("prompt"), str):
        return {}
    tools, extra = row.get("tools"), row.get("chat_template_kwargs") or {}
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except ValueError as error:
            raise ValueError(f"{where}: 'tools' is text, but not JSON: {error}") from error
    if tools is not None and not isinstance(tools, list):
        raise ValueError(f"{where}: 'tools' must be a list of tool definitions; got {tools!r:.80}")
    if not isinstance(extra, dict):
        raise ValueError(f"{where}: 'chat_template_kwargs' must map names to values; got {extra!r:.80}")
    # Parquet fills in every key that occurs in any row: a None value means that the key was absent.
    template_kwargs = {str(name): value for name, value in extra.items() if value is not None}
    return template_kwargs | ({"tools": tools} if tools else {})


def render(
    tokenizer: Tokenizer, messages: Messages, where: str, template_kwargs: Mapping[str, Any], as_prompt: bool = False
) -> str:
    """The text of the messages by the tokenizer's chat template.

    ``as_prompt``: up to where the assistant's answer begins, with the header of the assistant's turn. If the last
    message is the assistant's, it is the beginning of the answer, and the text ends with it.

    Raises:
        ValueError: there is no chat template, or it rejects the messages.
    """
    prefilled = as_prompt and messages[-1]["role"] == "assistant"
    options = {
        "tokenize": False,
        "continue_final_message": prefilled,
        "add_generation_prompt": as_prompt and not prefilled,
    }
    return str(apply_chat_template(tokenizer, messages, where, template_kwargs, **options))


def token_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of a text, without special tokens around it."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def continuation_ids(tokenizer: Tokenizer, before: str, whole: str) -> list[int]:
    """The tokens of the part of ``whole`` that follows ``before``, with which it begins.

    If a token of the whole text spans the end of ``before`` (``"\\n\\n"``, where ``before`` ends and the rest begins
    with a line break), the rest is tokenized by itself: after the tokens of ``before``, a policy can't write the
    spanning token. Elsewhere it is not, since some tokenizers add a leading space to a text of its own.
    """
    prefix, tokens = token_ids(tokenizer, before), token_ids(tokenizer, whole)
    return tokens[len(prefix) :] if tokens[: len(prefix)] == prefix else token_ids(tokenizer, whole[len(before) :])


def apply_chat_template(
    tokenizer: Tokenizer, messages: Messages, where: str, template_kwargs: Mapping[str, Any], **options: Any
) -> Any:
    """The tokenizer's chat template applied to the messages: a text, or the tokens and masks that ``options`` request.

    Raises:
        ValueError: there is no chat template, or it rejects the messages.
    """
    if not tokenizer.chat_template:
        raise ValueError(
            f"{where}: the prompt is a list of messages, but the tokenizer has no chat template; "
            "use plain text, or set model.chat_template"
        )
    arguments = [call_arguments(call) for message in messages for call in message.get("tool_calls") or ()]
    objects = [value for value in arguments if isinstance(value, dict)]
    try:
        if objects and _needs_text_arguments(tokenizer, messages, objects, template_kwargs):
            messages = [_with_text_arguments(message) for message in messages]
        return tokenizer.apply_chat_template(messages, **template_kwargs, **options)
    except (TemplateError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{where}: the chat template rejects the messages: {reason:.300}") from error


def _needs_text_arguments(
    tokenizer: Tokenizer, messages: Messages, arguments: Sequence[Any], template_kwargs: Mapping[str, Any]
) -> bool:
    """True if the template joins the arguments of a tool call to a text, so that they must be JSON in a text.

    Such a template fails on an object, or writes Python's form of it: ``{'city': 'Rome'}``.
    """
    try:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False, **template_kwargs))
    except TypeError:
        return True
    return any(str(value) != json.dumps(value) and str(value) in text for value in arguments)


def _with_text_arguments(message: dict[str, Any]) -> dict[str, Any]:
    """The message with the arguments of its tool calls as JSON in a text."""
    if not message.get("tool_calls"):
        return message
    calls = [(call, call_arguments(call)) for call in message["tool_calls"]]
    return message | {
        "tool_calls": [
            with_arguments(call, json.dumps(value, ensure_ascii=False)) if isinstance(value, dict) else call
            for call, value in calls
        ]
    }
