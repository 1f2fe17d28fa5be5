"""What a chat template makes of a conversation: its tokens, and which of them the assistant wrote."""

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
"""What a template writes before the text of the assistant's, where it tells."""


def template_arguments(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What a row gives the chat template beside its messages: its ``tools``, and its ``chat_template_kwargs``.

    Nothing where the prompt is plain text.

    Raises:
        ValueError: tools that are no list (nor one in JSON), or arguments without names.
    """
    if isinstance(row.get("prompt"), str):
        return {}
    tools, more = row.get("tools"), row.get("chat_template_kwargs") or {}
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except ValueError as error:
            raise ValueError(f"{where}: 'tools' is text, but not JSON: {error}") from error
    if tools is not None and not isinstance(tools, list):
        raise ValueError(f"{where}: 'tools' must be a list of what the assistant may call; got {tools!r:.80}")
    if not isinstance(more, dict):
        raise ValueError(f"{where}: 'chat_template_kwargs' must be names with values; got {more!r:.80}")
    # Parquet gives each row every key that any row has: one that is None was not there.
    given = {str(name): value for name, value in more.items() if value is not None}
    return given | ({"tools": tools} if tools else {})


def apply_chat_template(
    tokenizer: Tokenizer, messages: Messages, where: str, given: Mapping[str, Any], **how: Any
) -> dict[str, list[int]]:
    """What the chat template writes for the messages: ``input_ids``, and what else was asked for by ``how``.

    Raises:
        ValueError: no chat template, or one that refuses the messages.
    """
    if not tokenizer.chat_template:
        raise ValueError(
            f"{where}: the prompt is made of messages, and the tokenizer has no chat template; "
            "give plain text, or set the tokenizer's chat_template"
        )
    from jinja2 import TemplateError

    try:
        found: Any = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **given, **how)
        return dict(found)
    except (TemplateError, TypeError) as error:
        raise ValueError(f"{where}: the chat template refuses the messages: {error}") from error


def conversation_tokens(
    tokenizer: Tokenizer, messages: Messages, end: tuple[int, ...], where: str, given: Mapping[str, Any]
) -> tuple[list[int], list[bool]]:
    """A conversation's tokens, and which of them are the assistant's: each message of its, to its end token.

    Which these are, the template's own ``{% generation %}`` marks say. Where it has none: what it writes for the
    conversation up to a message of the assistant's, less what it writes as the prompt for that message. A message goes
    no further than its first end token, and has the one right behind it; where the template writes none behind the
    last message, ``end[0]`` is put there.

    Raises:
        ValueError: no message of the assistant's, or one at the very start; a template that marks more or fewer of
            them than there are, or by which they cannot be told apart; and as ``templated``.
    """
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns:
        raise ValueError(f"{where}: no message of the conversation is the assistant's: there is nothing to learn")
    if GENERATION_MARK.search(tokenizer.get_chat_template(None, given.get("tools")) if tokenizer.chat_template else ""):
        tokens, spans = _marked(tokenizer, messages, len(turns), where, given)
        spans = [(start, _turn_end(tokenizer, tokens, start, stop, end)) for start, stop in spans]
    else:
        tokens = apply_chat_template(tokenizer, messages, where, given)["input_ids"]
        spans = [_difference(tokenizer, messages, turn, tokens, end, where, given) for turn in turns]
    if empty := [turn for turn, (start, stop) in zip(turns, spans, strict=True) if start >= stop]:
        raise ValueError(f"{where}: the chat template writes nothing for message {empty[0]}, one of the assistant's")
    last = spans[-1][1]
    if tokens[last - 1] not in end and all(_blank(tokenizer, token) for token in tokens[last:]):
        tokens, spans[-1] = [*tokens, end[0]], (spans[-1][0], len(tokens) + 1)
    learned = [False] * len(tokens)
    for start, stop in spans:
        learned[start:stop] = [True] * (stop - start)
    return tokens, learned


def with_end_token(tokenizer: Tokenizer, tokens: list[int], end: tuple[int, ...]) -> list[int]:
    """The tokens up to the first end token behind the text, with ``end[0]`` put there where there is none."""
    stop = _turn_end(tokenizer, tokens, 0, len(tokens), end)
    return tokens[:stop] if stop and tokens[stop - 1] in end else [*tokens, end[0]]


def describe_difference(tokenizer: Tokenizer, head: list[int], both: list[int]) -> str:
    """Where two lists of tokens that should begin alike do not, in words."""
    at = next((i for i, (a, b) in enumerate(zip(head, both, strict=False)) if a != b), min(len(head), len(both)))
    alone, together = tokenizer.decode(head[at : at + 12]), tokenizer.decode(both[at : at + 12])
    return f"{alone!r} alone, {together!r} with it, from token {at} on"


def _marked(
    tokenizer: Tokenizer, messages: Messages, turns: int, where: str, given: Mapping[str, Any]
) -> tuple[list[int], list[tuple[int, int]]]:
    """The conversation's tokens, and the spans that the template marks as the assistant's."""
    found = apply_chat_template(tokenizer, messages, where, given, return_assistant_tokens_mask=True)
    tokens, marked = found["input_ids"], [0, *found["assistant_masks"], 0]
    edges = [i for i in range(len(marked) - 1) if marked[i] != marked[i + 1]]
    if len(edges) != 2 * turns:
        raise ValueError(
            f"{where}: the conversation has {turns} messages of the assistant's, and the chat template's "
            f"{{% generation %}} marks {len(edges) // 2} stretches of tokens; mend the template"
        )
    return tokens, list(zip(edges[::2], edges[1::2], strict=True))


def _difference(
    tokenizer: Tokenizer, messages: Messages, turn: int, tokens: list[int], end: tuple[int, ...], where: str,
    given: Mapping[str, Any],
) -> tuple[int, int]:  # fmt: skip
    """The span of one message of the assistant's: what stands in the conversation behind the prompt for it."""
    if turn == 0:
        raise ValueError(f"{where}: the conversation begins with the assistant; it must begin with what that answers")
    head = apply_chat_template(tokenizer, messages[:turn], where, given, add_generation_prompt=True)["input_ids"]
    both = apply_chat_template(tokenizer, messages[: turn + 1], where, given)["input_ids"]
    stop = _turn_end(tokenizer, both, len(head), len(both), end)
    for part in (head, both[:stop]):
        if tokens[: len(part)] != part:
            raise ValueError(
                f"{where}: the chat template writes message {turn}, one of the assistant's, or what is before it, "
                f"otherwise where the conversation goes on: {describe_difference(tokenizer, part, tokens)}; so its tokens cannot be "
                "told apart: mark them by {% generation %} in the template, or give rows of prompt and completion"
            )
    return len(head), stop


def _turn_end(tokenizer: Tokenizer, tokens: list[int], start: int, stop: int, end: tuple[int, ...]) -> int:
    """Where the text in [start, stop) ends: behind the first end token that follows it, or else behind itself."""
    last = stop
    while last > start and (tokens[last - 1] in end or _blank(tokenizer, tokens[last - 1])):
        last -= 1
    behind = (p for p in range(last, min(stop + 1, len(tokens))) if tokens[p] in end)
    return next(behind, last - 1) + 1


def _blank(tokenizer: Tokenizer, token: int) -> bool:
    return not str(tokenizer.decode([token])).strip()
