"""Demonstrations in tokens, with the mask of the tokens to learn."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch

from grape_rl.data.chat import Example, TruncationStats, completion_tokens, prompt_tokens, with_begin_tokens
from grape_rl.data.chat_template import render, template_arguments, token_ids
from grape_rl.data.conversation import (
    TemplateMismatchError,
    conversation_tokens,
    joined_messages,
    learned_turns,
    with_end_token,
)
from grape_rl.data.messages import Messages
from grape_rl.data.unembedded_tokens import require_embeddings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer
else:  # transformers is slow to import, and a tokenizer is passed in
    Tokenizer = Any

Learn = Literal["completion", "assistant", "all"]
"""The learned part of a demonstration: the completion, every assistant message, or all tokens after the first."""

DemonstrationForm = Literal["completion", "messages", "text"]
"""The form of a demonstration: a prompt with a completion, a whole conversation, or plain text."""


def demonstration_tokens(
    tokenizer: Tokenizer, row: Mapping[str, Any], form: DemonstrationForm, end: tuple[int, ...], learn: Learn | None,
    where: str = "data",
) -> tuple[list[int], list[bool]]:  # fmt: skip
    """A demonstration's tokens, prompt included, and its loss mask: True for the tokens to learn.

    A row has a ``prompt`` with a ``completion``, a whole conversation as ``messages``, or ``text``, according to
    ``form``. By default the learned part is the completion (of several messages: the assistant's), or every assistant
    message, or all of the text after its first token, which nothing precedes; ``learn`` overrides this. The last
    learned part ends with an end token.

    Raises:
        ValueError: the row does not have the part that ``learn`` names; and as ``prompt_tokens``,
            ``completion_tokens`` and ``conversation_tokens``.
    """
    # Plain text.
    if form == "text":
        if learn not in (None, "all"):
            raise ValueError(f"{where}: plain text has no {learn} to learn; set data.learn to all")
        tokens = with_end_token(tokenizer, with_begin_tokens(tokenizer, row["text"]), end)
        return tokens, [False] + [True] * (len(tokens) - 1)
    conversational = form == "messages" or isinstance(row["prompt"], list)
    template_kwargs = template_arguments(row, where)
    if form == "messages" and learn == "completion":
        raise ValueError(f"{where}: a conversation has no completion to learn; set data.learn to assistant or all")
    if not conversational and learn == "assistant":
        raise ValueError(f"{where}: plain text has no assistant message to learn; set data.learn to completion or all")
    # A conversation, or a completion of several messages: the assistant's messages, or all of it.
    if conversational and (form == "messages" or learn == "assistant" or len(row["completion"]) > 1):
        messages, first = _conversation(row, form, learn)
        if learn != "all":
            return conversation_tokens(tokenizer, messages, end, where, template_kwargs, first)
        tokens = token_ids(tokenizer, render(tokenizer, messages, where, template_kwargs))
        if messages[-1]["role"] == "assistant":
            tokens = with_end_token(tokenizer, tokens, end)
        return tokens, [False] + [True] * (len(tokens) - 1)
    # A completion, with or without its prompt.
    prompt = prompt_tokens(tokenizer, row["prompt"], where, template_kwargs).tolist()
    completion = completion_tokens(tokenizer, row["prompt"], row["completion"], end, where, template_kwargs).tolist()
    prompt_mask = [False] + [learn == "all"] * (len(prompt) - 1)
    return prompt + completion, prompt_mask + [True] * len(completion)


def answer_rows(
    row: Mapping[str, Any], form: DemonstrationForm, learn: Learn | None, where: str
) -> list[dict[str, Any]]:
    """The conversation of a row as one demonstration for each answer: the messages before it, and the answer.

    This is what the model sees when it answers, for chat templates that write earlier turns differently once more
    messages follow.
    """
    messages, first = _conversation(row, form, learn)
    turns = learned_turns(messages, first, where)
    return [{**row, "prompt": messages[:turn], "completion": [messages[turn]]} for turn in turns]


def tokenize_demonstrations(
    rows: Sequence[Mapping[str, Any]], form: DemonstrationForm, tokenizer: Tokenizer, end: tuple[int, ...],
    max_length: int, source: str = "data", learn: Learn | None = None,
) -> tuple[list[Example], TruncationStats]:  # fmt: skip
    """The rows in tokens, at most ``max_length`` per row, with their loss masks: see ``demonstration_tokens``.

    A longer row is truncated on the right, its end token included. A row is dropped if no token to learn is left. A
    conversation that the chat template writes differently as it grows becomes one example for each answer
    (``answer_rows``). The returned statistics count all three.

    Raises:
        ValueError: no row has a token to learn; a token has no embedding in the model; and as
            ``demonstration_tokens``, naming the row.
    """
    examples: list[Example] = []
    truncated = dropped = split = 0
    for index, row in enumerate(rows):
        where = f"{source}: row {index}"
        try:
            parts = [demonstration_tokens(tokenizer, row, form, end, learn, where)]
        except TemplateMismatchError:
            if learn == "all" or len(answers := answer_rows(row, form, learn, where)) < 2:
                raise
            parts = [demonstration_tokens(tokenizer, answer, "completion", end, None, where) for answer in answers]
            split += 1
        before, loses_tokens = len(examples), False
        for tokens, loss_mask in parts:
            require_embeddings(tokenizer, tokens, where)
            if example := _truncated_example(tokens, loss_mask, max_length):
                loses_tokens |= any(loss_mask[max_length:])
                examples.append(example)
        truncated += loses_tokens
        dropped += len(examples) == before
    if not examples:
        raise ValueError(
            f"{source}: none of the {len(rows)} rows has a token to learn, because every prompt fills the "
            f"{max_length} tokens of max_length; raise it"
        )
    tokens = sum(int(example.learned.sum()) for example in examples)
    return examples, TruncationStats(len(rows), truncated, dropped, tokens, split)


def _truncated_example(tokens: list[int], loss_mask: list[bool], max_length: int) -> Example | None:
    """The tokens up to the last one to learn within ``max_length``; None if there is none."""
    loss_mask = loss_mask[:max_length]
    if not any(loss_mask):
        return None
    first, stop = loss_mask.index(True), len(loss_mask) - loss_mask[::-1].index(True)
    return Example(torch.tensor(tokens[:first]), torch.tensor(tokens[first:stop]), torch.tensor(loss_mask[first:stop]))


def _conversation(row: Mapping[str, Any], form: DemonstrationForm, learn: Learn | None) -> tuple[Messages, int]:
    """The messages of a conversation, or of a prompt with its completion, and the first one that may be learned."""
    if form == "messages":
        return row["messages"], 0
    messages = joined_messages(row["prompt"], row["completion"])
    return messages, 0 if learn == "assistant" else len(messages) - len(row["completion"])
