"""Tokens of conversations, as a chat template writes them, and the mask of the tokens that the assistant wrote."""

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from grape_rl.data.messages import Messages

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer
else:  # transformers is slow to import, and a tokenizer is passed in
    Tokenizer = Any

GENERATION_MARK = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
"""The tag by which some chat templates mark the text of the assistant."""


def template_arguments(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The row's arguments to the chat template besides its messages: ``tools`` and ``chat_template_kwargs``.

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


def apply_chat_template(
    tokenizer: Tokenizer, messages: Messages, where: str, template_kwargs: Mapping[str, Any], **options: Any
) -> dict[str, list[int]]:
    """The tokenizer's chat template applied to the messages: ``input_ids``, and the masks that ``options`` request.

    Raises:
        ValueError: there is no chat template, or it rejects the messages.
    """
    if not tokenizer.chat_template:
        raise ValueError(
            f"{where}: the prompt is a list of messages, but the tokenizer has no chat template; "
            "use plain text, or set the tokenizer's chat_template"
        )
    from jinja2 import TemplateError

    try:
        encoding: Any = tokenizer.apply_chat_template(
            messages, tokenize=True, return_dict=True, **template_kwargs, **options
        )
        return dict(encoding)
    except (TemplateError, TypeError) as error:
        raise ValueError(f"{where}: the chat template rejects the messages: {error}") from error


def conversation_tokens(
    tokenizer: Tokenizer, messages: Messages, end: tuple[int, ...], where: str, template_kwargs: Mapping[str, Any]
) -> tuple[list[int], list[bool]]:
    """A conversation's tokens, and the loss mask: True for each assistant message up to its end token.

    The template's own ``{% generation %}`` marks delimit the assistant's messages. In a template without them, a
    message spans from the end of the prompt for it to the end of the conversation up to it. A message ends at its
    first end token, which belongs to it. If the template writes none after the last message, ``end[0]`` is appended.

    Raises:
        ValueError: there is no assistant message, or one begins the conversation; the number of marked spans differs
            from the number of assistant messages; their tokens cannot be identified without marks; and as
            ``apply_chat_template``.
    """
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns:
        raise ValueError(f"{where}: the conversation has no assistant message, so there is nothing to learn")
    # The span [start, stop) of each assistant message, from the template's marks or by comparing prefixes.
    if GENERATION_MARK.search(
        tokenizer.get_chat_template(None, template_kwargs.get("tools")) if tokenizer.chat_template else ""
    ):
        tokens, spans = _marked_spans(tokenizer, messages, len(turns), where, template_kwargs)
        spans = [(start, _turn_end(tokenizer, tokens, start, stop, end)) for start, stop in spans]
    else:
        tokens = apply_chat_template(tokenizer, messages, where, template_kwargs)["input_ids"]
        spans = [_prefix_span(tokenizer, messages, turn, tokens, end, where, template_kwargs) for turn in turns]
    if empty := [turn for turn, (start, stop) in zip(turns, spans, strict=True) if start >= stop]:
        raise ValueError(f"{where}: the chat template writes no tokens for message {empty[0]}, an assistant message")
    # An end token for the last message, unless the template wrote one or more text follows.
    last = spans[-1][1]
    if tokens[last - 1] not in end and all(_blank(tokenizer, token) for token in tokens[last:]):
        tokens, spans[-1] = [*tokens, end[0]], (spans[-1][0], len(tokens) + 1)
    loss_mask = [False] * len(tokens)
    for start, stop in spans:
        loss_mask[start:stop] = [True] * (stop - start)
    return tokens, loss_mask


def with_end_token(tokenizer: Tokenizer, tokens: list[int], end: tuple[int, ...]) -> list[int]:
    """The tokens up to the first end token after the text, or all of them followed by ``end[0]`` if there is none."""
    stop = _turn_end(tokenizer, tokens, 0, len(tokens), end)
    return tokens[:stop] if stop and tokens[stop - 1] in end else [*tokens, end[0]]


def describe_difference(tokenizer: Tokenizer, prefix: list[int], tokens: list[int]) -> str:
    """A description of the first difference between ``prefix`` and ``tokens``, which should begin with it."""
    first = next(
        (i for i, (a, b) in enumerate(zip(prefix, tokens, strict=False)) if a != b), min(len(prefix), len(tokens))
    )
    alone, together = tokenizer.decode(prefix[first : first + 12]), tokenizer.decode(tokens[first : first + 12])
    return f"{alone!r} alone, {together!r} in the whole, from token {first} on"


def _marked_spans(
    tokenizer: Tokenizer, messages: Messages, turns: int, where: str, template_kwargs: Mapping[str, Any]
) -> tuple[list[int], list[tuple[int, int]]]:
    """The conversation's tokens, and the spans that the template marks as the assistant's."""
    encoding = apply_chat_template(tokenizer, messages, where, template_kwargs, return_assistant_tokens_mask=True)
    tokens, marked = encoding["input_ids"], [0, *encoding["assistant_masks"], 0]
    edges = [i for i in range(len(marked) - 1) if marked[i] != marked[i + 1]]
    if len(edges) != 2 * turns:
        raise ValueError(
            f"{where}: the conversation has {turns} assistant messages, but the chat template's {{% generation %}} "
            f"marks {len(edges) // 2} spans of tokens; fix the template"
        )
    return tokens, list(zip(edges[::2], edges[1::2], strict=True))


def _prefix_span(
    tokenizer: Tokenizer, messages: Messages, turn: int, tokens: list[int], end: tuple[int, ...], where: str,
    template_kwargs: Mapping[str, Any],
) -> tuple[int, int]:  # fmt: skip
    """The span of one assistant message: the tokens that follow the prompt for it, up to its end token."""
    if turn == 0:
        raise ValueError(f"{where}: the conversation begins with an assistant message; begin it with a user message")
    prompt = apply_chat_template(tokenizer, messages[:turn], where, template_kwargs, add_generation_prompt=True)
    prefix = prompt["input_ids"]
    answered = apply_chat_template(tokenizer, messages[: turn + 1], where, template_kwargs)["input_ids"]
    stop = _turn_end(tokenizer, answered, len(prefix), len(answered), end)
    for part in (prefix, answered[:stop]):
        if tokens[: len(part)] != part:
            raise ValueError(
                f"{where}: the chat template writes message {turn}, an assistant message, or the text before it "
                f"differently in a longer conversation: {describe_difference(tokenizer, part, tokens)}; so its tokens "
                "cannot be identified: mark them with {% generation %} in the template, or use prompt-completion rows"
            )
    return len(prefix), stop


def _turn_end(tokenizer: Tokenizer, tokens: list[int], start: int, stop: int, end: tuple[int, ...]) -> int:
    """The end of the text in [start, stop): after the first end token that follows the text, or after the text."""
    last = stop
    while last > start and (tokens[last - 1] in end or _blank(tokenizer, tokens[last - 1])):
        last -= 1
    end_positions = (p for p in range(last, min(stop + 1, len(tokens))) if tokens[p] in end)
    return next(end_positions, last - 1) + 1


def _blank(tokenizer: Tokenizer, token: int) -> bool:
    return not str(tokenizer.decode([token])).strip()
