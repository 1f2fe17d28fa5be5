"""Tokens of conversations, as a chat template writes them, and the mask of the tokens that the assistant wrote."""

import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from grape_rl.data.chat_template import apply_chat_template, continuation_ids, render
from grape_rl.data.messages import Messages

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer
else:  # transformers is slow to import, and a tokenizer is passed in
    Tokenizer = Any

GENERATION_MARK = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
"""The tag by which some chat templates mark the text of the assistant."""


class TemplateMismatchError(ValueError):
    """The chat template writes the text before an answer, or the answer, differently once more messages follow."""


def answer_tokens(
    tokenizer: Tokenizer, prompt: Messages, answer: Messages, where: str, template_kwargs: Mapping[str, Any]
) -> list[int]:
    """The tokens that the template writes for the answer (and after it), to follow the tokens of the prompt.

    Raises:
        ValueError: as ``render``; ``TemplateMismatchError`` if the text of the prompt changes once the answer follows.
    """
    before = render(tokenizer, prompt, where, template_kwargs, as_prompt=True)
    whole = render(tokenizer, joined_messages(prompt, answer), where, template_kwargs)
    if not whole.startswith(before):
        raise TemplateMismatchError(
            f"{where}: the chat template writes the prompt differently once an answer follows: "
            f"{describe_difference(before, whole)}; set model.chat_template or data.chat_template_kwargs, or use "
            "plain-text rows"
        )
    return continuation_ids(tokenizer, before, whole)


def joined_messages(prompt: Messages, answer: Messages) -> Messages:
    """The conversation of a prompt and its answer. An assistant message at the end of the prompt begins the answer."""
    if prompt[-1]["role"] != "assistant" or answer[0]["role"] != "assistant":
        return [*prompt, *answer]
    content = (prompt[-1].get("content") or "") + (answer[0].get("content") or "")
    return [*prompt[:-1], {**prompt[-1], **answer[0], "content": content}, *answer[1:]]


def learned_turns(messages: Messages, first: int, where: str) -> list[int]:
    """Indices of the assistant's messages that are learned, from ``first`` on: all but those of ``weight`` 0.

    Raises:
        ValueError: the conversation has no assistant message, a weight is neither 0 nor 1, or all weights are 0.
    """
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns:
        raise ValueError(f"{where}: the conversation has no assistant message, so there is nothing to learn")
    weights = {i: messages[i].get("weight", 1) for i in turns}
    if odd := [i for i, weight in weights.items() if weight not in (0, 1)]:
        raise ValueError(f"{where}: message {odd[0]} has weight {weights[odd[0]]!r}; a weight is 1 (learned) or 0")
    learned = [i for i in turns if i >= first and weights[i]]
    if not learned:
        raise ValueError(f"{where}: every assistant message has weight 0, so there is nothing to learn")
    return learned


def conversation_tokens(
    tokenizer: Tokenizer, messages: Messages, end: tuple[int, ...], where: str, template_kwargs: Mapping[str, Any],
    first: int = 0,
) -> tuple[list[int], list[bool]]:  # fmt: skip
    """A conversation's tokens, and the loss mask: True for each learned message up to its end token.

    Learned are the ``learned_turns`` from message ``first`` on. The template's own ``{% generation %}`` marks delimit
    them. In a template without marks, a message spans from the end of the prompt for it to the end of the conversation
    up to it, compared as text. A message ends at its first end token, which belongs to it. If the template writes none
    after the last message, ``end[0]`` is appended.

    Raises:
        ValueError: no message is learned, or one begins the conversation; the number of marked spans differs from the
            number of assistant messages; and as ``render``. ``TemplateMismatchError`` if a message cannot be
            identified without marks.
    """
    turns = learned_turns(messages, first, where)
    # The span [start, stop) of each learned message, from the template's marks or by comparing prefixes.
    if GENERATION_MARK.search(
        tokenizer.get_chat_template(None, template_kwargs.get("tools")) if tokenizer.chat_template else ""
    ):
        tokens, spans = _marked_spans(tokenizer, messages, where, template_kwargs)
        spans = [spans[turn] for turn in turns]
    else:
        whole = render(tokenizer, messages, where, template_kwargs)
        edges = [_text_span(tokenizer, messages, turn, whole, where, template_kwargs) for turn in turns]
        tokens, index = _tokens_between(tokenizer, whole, [edge for span in edges for edge in span])
        spans = [(index[start], index[stop]) for start, stop in edges]
    spans = [(start, _turn_end(tokenizer, tokens, start, stop, end)) for start, stop in spans]
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


def describe_difference(prefix: str, text: str) -> str:
    """A description of the first difference between ``prefix`` and ``text``, which should begin with it."""
    first = _common_length(prefix, text)
    return f"{prefix[first : first + 40]!r} alone, {text[first : first + 40]!r} in the whole, from character {first} on"


def _marked_spans(
    tokenizer: Tokenizer, messages: Messages, where: str, template_kwargs: Mapping[str, Any]
) -> tuple[list[int], dict[int, tuple[int, int]]]:
    """The conversation's tokens, and the spans that the template marks as the assistant's, by message."""
    options = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
    encoding = apply_chat_template(tokenizer, messages, where, template_kwargs, **options)
    tokens, marked = list(encoding["input_ids"]), [0, *encoding["assistant_masks"], 0]
    edges = [i for i in range(len(marked) - 1) if marked[i] != marked[i + 1]]
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if len(edges) != 2 * len(turns):
        raise ValueError(
            f"{where}: the conversation has {len(turns)} assistant messages, but the chat template's "
            f"{{% generation %}} marks {len(edges) // 2} spans of tokens; fix the template"
        )
    return tokens, dict(zip(turns, zip(edges[::2], edges[1::2], strict=True), strict=True))


def _text_span(
    tokenizer: Tokenizer, messages: Messages, turn: int, whole: str, where: str, template_kwargs: Mapping[str, Any]
) -> tuple[int, int]:
    """The span of one assistant message in the text of the whole conversation, with the text that ends its turn.

    Raises:
        ValueError: the message begins the conversation; ``TemplateMismatchError`` if the text before the message, the
            message, or the end of its turn is another in the whole conversation.
    """
    if turn == 0:
        raise ValueError(f"{where}: the conversation begins with an assistant message; begin it with a user message")
    before = render(tokenizer, messages[:turn], where, template_kwargs, as_prompt=True)
    answered = render(tokenizer, messages[: turn + 1], where, template_kwargs)
    agreed = _common_length(answered, whole)
    for text, differs in ((before, not whole.startswith(before)), (answered, bool(answered[agreed:].strip()))):
        if differs:
            raise TemplateMismatchError(
                f"{where}: the chat template writes message {turn}, an assistant message, or the text before it "
                f"differently in a longer conversation: {describe_difference(text, whole)}; so its tokens cannot be "
                "identified: mark them with {% generation %} in the template, or use prompt-completion rows"
            )
    return len(before), agreed


def _tokens_between(tokenizer: Tokenizer, text: str, cuts: Sequence[int]) -> tuple[list[int], dict[int, int]]:
    """The tokens of a text without a token that spans a cut, and the index of the first token after each cut.

    ``cuts`` are positions in the text. The text is tokenized as a whole, and again in parts only if a token spans a
    cut. A tokenizer without offsets (a slow one) tokenizes the parts between all cuts.
    """
    spanned = set(cuts)
    if tokenizer.is_fast:
        tokens, offsets = _tokens_and_offsets(tokenizer, text)
        ordered = sorted(spanned)
        spanned = {
            cut
            for start, stop in offsets
            for cut in ordered[bisect_left(ordered, start + 1) : bisect_left(ordered, stop)]
        }
        if not spanned:
            starts = [start for start, _ in offsets]
            return tokens, {cut: bisect_left(starts, cut) for cut in cuts}
    tokens, starts = list[int](), list[int]()
    index: dict[int, int] = {}
    for part_start, part_stop in pairwise([0, *sorted(spanned - {0, len(text)}), len(text)]):
        index[part_start] = len(tokens)
        part, offsets = _tokens_and_offsets(tokenizer, text[part_start:part_stop])
        tokens += part
        starts += [part_start + start for start, _ in offsets]
    index[len(text)] = len(tokens)
    return tokens, {cut: index.get(cut, bisect_left(starts, cut)) for cut in cuts}


def _tokens_and_offsets(tokenizer: Tokenizer, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """The tokens of a text, with the position in the text where each begins and ends; no positions from a slow one."""
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=bool(tokenizer.is_fast))
    return list(encoding["input_ids"]), list(encoding.get("offset_mapping", ()))


def _turn_end(tokenizer: Tokenizer, tokens: list[int], start: int, stop: int, end: tuple[int, ...]) -> int:
    """The end of the text in [start, stop): after the first end token that follows the text, or after the text."""
    last = stop
    while last > start and (tokens[last - 1] in end or _blank(tokenizer, tokens[last - 1])):
        last -= 1
    end_positions = (p for p in range(last, min(stop + 1, len(tokens))) if tokens[p] in end)
    return next(end_positions, last - 1) + 1


def _common_length(a: str, b: str) -> int:
    """The number of characters with which both texts begin."""
    if b.startswith(a):
        return len(a)
    return next((i for i, both in enumerate(zip(a, b, strict=False)) if both[0] != both[1]), min(len(a), len(b)))


def _blank(tokenizer: Tokenizer, token: int) -> bool:
    return not str(tokenizer.decode([token])).strip()
