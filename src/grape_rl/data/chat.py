"""Tokenization of prompts, completions and demonstrations, plain or conversational, with their end tokens."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from grape_rl.data.conversation import (
    apply_chat_template,
    conversation_tokens,
    describe_difference,
    template_arguments,
    with_end_token,
)
from grape_rl.data.messages import Messages
from grape_rl.data.unembedded_tokens import require_embeddings
from grape_rl.types import Sequences

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer
else:  # transformers is slow to import, and a tokenizer is passed in
    Tokenizer = Any


Learn = Literal["completion", "assistant", "all"]
"""The learned part of a demonstration: the completion, every assistant message, or all tokens after the first."""


@dataclass(frozen=True)
class Example:
    """A demonstration in tokens: a prompt and the completion that follows it.

    ``loss_mask`` is True for the completion's tokens that are learned. None means that all of them are.
    """

    prompt: Int[Tensor, " p"]
    completion: Int[Tensor, " t"]
    loss_mask: Bool[Tensor, " t"] | None = None


NO_ARGUMENTS: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class TruncationStats:
    """Counts of the effect of ``max_length`` on a dataset.

    Attributes:
        rows: the rows of the dataset.
        truncated: rows whose completion was truncated on the right.
        dropped: rows without a token to learn within the limit, because the prompt leaves no room, for example.
        tokens: the tokens to learn that are left.
    """

    rows: int
    truncated: int
    dropped: int
    tokens: int


def end_tokens(tokenizer: Tokenizer, generation_config: Any = None) -> tuple[int, ...]:
    """All tokens that end a response: the tokenizer's first, then those of the model's generation configuration.

    Raises:
        ValueError: neither declares an end token, so that no response would ever end.
    """
    declared = [tokenizer.eos_token_id, getattr(generation_config, "eos_token_id", None)]
    flat = [token for ends in declared for token in (ends if isinstance(ends, list | tuple) else [ends])]
    end = tuple(dict.fromkeys(int(token) for token in flat if token is not None))
    if not end:
        raise ValueError("the tokenizer has no end token, so no response would ever end; set its eos_token")
    return end


def prompt_tokens(
    tokenizer: Tokenizer, prompt: str | Messages, where: str = "data", template_kwargs: Mapping[str, Any] = NO_ARGUMENTS
) -> Int[Tensor, " p"]:
    """The tokens of a prompt, to be continued by a response.

    Plain text gets the special tokens that the tokenizer adds in front of it (a begin token, say, unless the text
    begins with one), but no end token after it. Messages are formatted by the chat template with
    ``template_kwargs`` (see ``template_arguments``) and end with the header of the assistant's turn.

    Raises:
        ValueError: messages without a chat template, or a template that rejects them; a prompt without tokens, or with
            a token that has no embedding in the model.
    """
    if isinstance(prompt, str):
        tokens = _with_begin_tokens(tokenizer, prompt)
    else:
        tokens = apply_chat_template(tokenizer, prompt, where, template_kwargs, add_generation_prompt=True)["input_ids"]
    if not tokens:
        raise ValueError(f"{where}: the prompt has no tokens: {prompt!r:.80}")
    return torch.tensor(require_embeddings(tokenizer, tokens, where), dtype=torch.int64)


def completion_tokens(
    tokenizer: Tokenizer, prompt: str | Messages, completion: str | Messages, end: tuple[int, ...],
    where: str = "data", template_kwargs: Mapping[str, Any] = NO_ARGUMENTS,
) -> Int[Tensor, " t"]:  # fmt: skip
    """The tokens that a policy would have to generate after the prompt's tokens, with one end token at the end.

    For messages, these are the tokens of the templated prompt and completion without those of the templated prompt.
    ``end[0]`` is appended if neither the template nor the plain text ends with an end token. Tokens after an end token
    (a template's newline) are removed, since a response ends there.

    Raises:
        ValueError: the prompt is plain text and the completion messages, or the reverse; there is no chat template; the
            template writes the prompt differently once a completion follows, so that no response could continue it as
            in the data; a token has no embedding in the model.
    """
    if isinstance(prompt, str) and isinstance(completion, str):
        prefix = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        both = tokenizer(prompt + completion, add_special_tokens=False)["input_ids"]
        # Tokenized as a continuation of the prompt where tokens split at the seam, since some tokenizers add a leading
        # space to text on its own.
        continues = both[: len(prefix)] == prefix
        tokens = both[len(prefix) :] if continues else tokenizer(completion, add_special_tokens=False)["input_ids"]
    elif isinstance(prompt, list) and isinstance(completion, list):
        templated = apply_chat_template(tokenizer, prompt, where, template_kwargs, add_generation_prompt=True)
        prefix = templated["input_ids"]
        both = apply_chat_template(tokenizer, prompt + completion, where, template_kwargs)["input_ids"]
        if both[: len(prefix)] != prefix:
            raise ValueError(
                f"{where}: the chat template writes the prompt differently once an answer follows: "
                f"{describe_difference(tokenizer, prefix, both)}; use plain-text rows, or fix the template"
            )
        tokens = both[len(prefix) :]
    else:
        raise ValueError(f"{where}: prompt and completion must both be plain text or both be messages")
    tokens = require_embeddings(tokenizer, with_end_token(tokenizer, tokens, end), where)
    return torch.tensor(tokens, dtype=torch.int64)


def demonstration_tokens(
    tokenizer: Tokenizer, row: Mapping[str, Any], end: tuple[int, ...], learn: Learn | None, where: str = "data"
) -> tuple[list[int], list[bool]]:
    """A demonstration's tokens, prompt included, and its loss mask: True for the tokens to learn.

    A row has a ``prompt`` with a ``completion``, a whole conversation as ``messages``, or ``text``. By default the
    learned part is the completion, or every assistant message, or all of the text after its first token, which nothing
    precedes; ``learn`` overrides this. The last learned part ends with an end token.

    Raises:
        ValueError: the row does not have the part that ``learn`` names; and as ``prompt_tokens``,
            ``completion_tokens`` and ``conversation_tokens``.
    """
    # Plain text.
    if "text" in row:
        if learn not in (None, "all"):
            raise ValueError(f"{where}: a row with 'text' has no {learn} to learn; set data.learn to all")
        tokens = with_end_token(tokenizer, _with_begin_tokens(tokenizer, row["text"]), end)
        return tokens, [False] + [True] * (len(tokens) - 1)
    conversational = "messages" in row or isinstance(row["prompt"], list)
    template_kwargs = template_arguments(row, where)
    if "messages" in row and learn == "completion":
        raise ValueError(f"{where}: a conversation has no completion to learn; set data.learn to assistant or all")
    if not conversational and learn == "assistant":
        raise ValueError(f"{where}: plain text has no assistant message to learn; set data.learn to completion or all")
    # The assistant's messages of a conversation.
    if learn == "assistant" or ("messages" in row and learn is None):
        messages = row["messages"] if "messages" in row else row["prompt"] + row["completion"]
        return conversation_tokens(tokenizer, messages, end, where, template_kwargs)
    # All of a conversation.
    if "messages" in row:
        tokens = apply_chat_template(tokenizer, row["messages"], where, template_kwargs)["input_ids"]
        if row["messages"][-1]["role"] == "assistant":
            tokens = with_end_token(tokenizer, tokens, end)
        return tokens, [False] + [True] * (len(tokens) - 1)
    # A completion, with or without its prompt.
    prompt = prompt_tokens(tokenizer, row["prompt"], where, template_kwargs).tolist()
    completion = completion_tokens(tokenizer, row["prompt"], row["completion"], end, where, template_kwargs).tolist()
    prompt_mask = [False] + [learn == "all"] * (len(prompt) - 1)
    return prompt + completion, prompt_mask + [True] * len(completion)


def tokenize_demonstrations(
    rows: Sequence[Mapping[str, Any]], tokenizer: Tokenizer, end: tuple[int, ...], max_length: int,
    source: str = "data", learn: Learn | None = None,
) -> tuple[list[Example], TruncationStats]:  # fmt: skip
    """The rows in tokens, at most ``max_length`` per row, with their loss masks: see ``demonstration_tokens``.

    A longer row is truncated on the right, its end token included. A row is dropped if no token to learn is left. The
    returned statistics count both.

    Raises:
        ValueError: no row has a token to learn; a token has no embedding in the model; and as
            ``demonstration_tokens``, naming the row.
    """
    examples: list[Example] = []
    truncated = 0
    for index, row in enumerate(rows):
        where = f"{source}: row {index}"
        tokens, loss_mask = demonstration_tokens(tokenizer, row, end, learn, where)
        require_embeddings(tokenizer, tokens, where)
        loses_tokens = any(loss_mask[max_length:])
        loss_mask = loss_mask[:max_length]
        if any(loss_mask):
            truncated += loses_tokens
            first, stop = loss_mask.index(True), len(loss_mask) - loss_mask[::-1].index(True)
            prompt, completion = torch.tensor(tokens[:first]), torch.tensor(tokens[first:stop])
            examples.append(Example(prompt, completion, torch.tensor(loss_mask[first:stop])))
    if not examples:
        raise ValueError(
            f"{source}: none of the {len(rows)} rows has a token to learn, because every prompt fills the "
            f"{max_length} tokens of max_length; raise it"
        )
    tokens = sum(int(_loss_mask(example).sum()) for example in examples)
    return examples, TruncationStats(len(rows), truncated, len(rows) - len(examples), tokens)


def collate_examples(examples: Sequence[Example]) -> Sequences:
    """The examples as one batch: one prompt per example, completions padded on the right with 0.

    The mask is True for the tokens that are learned.

    Raises:
        ValueError: there are no examples.
    """
    if not examples:
        raise ValueError("no examples to collate")
    completions = [example.completion for example in examples]
    return Sequences(
        prompts=tuple(example.prompt for example in examples),
        tokens=pad_sequence(completions, batch_first=True),
        mask=pad_sequence([_loss_mask(example) for example in examples], batch_first=True),
        group=torch.arange(len(examples)),
    )


def check_prompt_lengths(
    prompts: Iterable[Int[Tensor, " _"]], limit: int, where: str = "data"
) -> tuple[Int[Tensor, " _"], ...]:
    """The prompts, if none exceeds ``limit`` tokens: the model's context length minus the response length.

    Raises:
        ValueError: a prompt is longer; the message names its row, its length and the limit.
    """
    prompts = tuple(prompts)
    for row, prompt in enumerate(prompts):
        if len(prompt) > limit:
            raise ValueError(
                f"{where}: row {row}: the prompt has {len(prompt)} tokens, but at most {limit} leave room for the "
                "response in the model's context; shorten the prompt, or lower sampling.max_tokens"
            )
    return prompts


def decode_text(tokenizer: Tokenizer, tokens: Int[Tensor, " t"]) -> str:
    """The text of the tokens without special tokens, with all spaces preserved."""
    return str(tokenizer.decode(tokens.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _loss_mask(example: Example) -> Bool[Tensor, " t"]:
    everything = torch.ones_like(example.completion, dtype=torch.bool)
    return everything if example.loss_mask is None else example.loss_mask


def _with_begin_tokens(tokenizer: Tokenizer, text: str) -> list[int]:
    """Plain text with the special tokens that the tokenizer adds before it, each once, and none that it adds after."""
    tokens = tokenizer(text)["input_ids"]
    bare = tokenizer(text, add_special_tokens=False)["input_ids"]
    # An end token spelled in the text itself stays: only one after the whole text was added.
    if tokens[-1:] == [tokenizer.eos_token_id] and tokens[:-1][-len(bare) :] == bare:
        tokens = tokens[:-1]
    begin = tokenizer.bos_token_id
    return tokens[1:] if begin is not None and tokens[:2] == [begin, begin] and bare[:1] == [begin] else tokens
