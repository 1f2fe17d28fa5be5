"""Tokenization of prompts, completions and demonstrations, plain or conversational, with their end tokens."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from grape_rl.data.chat_template import continuation_ids, render, token_ids
from grape_rl.data.conversation import answer_tokens, with_end_token
from grape_rl.data.messages import Messages
from grape_rl.data.unembedded_tokens import require_embeddings
from grape_rl.types import Sequences

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer
else:  # transformers is slow to import, and a tokenizer is passed in
    Tokenizer = Any


@dataclass(frozen=True)
class Example:
    """A demonstration in tokens: a prompt and the completion that follows it.

    ``loss_mask`` is True for the completion's tokens that are learned. None means that all of them are.
    """

    prompt: Int[Tensor, " p"]
    completion: Int[Tensor, " t"]
    loss_mask: Bool[Tensor, " t"] | None = None

    @property
    def learned(self) -> Bool[Tensor, " t"]:
        """True for the completion's tokens that are learned."""
        return torch.ones_like(self.completion, dtype=torch.bool) if self.loss_mask is None else self.loss_mask


NO_ARGUMENTS: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class TruncationStats:
    """Counts of the effect of ``max_length`` on a dataset.

    Attributes:
        rows: the rows of the dataset.
        truncated: rows whose completion was truncated on the right.
        dropped: rows without a token to learn within the limit, because the prompt leaves no room, for example.
        tokens: the tokens to learn that are left.
        split: conversations that became one example for each of their answers.
    """

    rows: int
    truncated: int
    dropped: int
    tokens: int
    split: int = 0


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

    Plain text gets the special tokens that the tokenizer adds in front of it (such as a begin token, unless the
    text begins with one), but no end token after it. Messages are formatted by the chat template with
    ``template_kwargs`` (see ``template_arguments``) and end with the header of the assistant's turn, or with the
    beginning of the answer if the last message is the assistant's.

    Raises:
        ValueError: messages without a chat template, or a template that rejects them; a prompt without tokens, or with
            a token that has no embedding in the model.
    """
    if isinstance(prompt, str):
        tokens = with_begin_tokens(tokenizer, prompt)
    else:
        tokens = token_ids(tokenizer, render(tokenizer, prompt, where, template_kwargs, as_prompt=True))
    if not tokens:
        raise ValueError(f"{where}: the prompt has no tokens: {prompt!r:.80}")
    return torch.tensor(require_embeddings(tokenizer, tokens, where), dtype=torch.int64)


def completion_tokens(
    tokenizer: Tokenizer, prompt: str | Messages, completion: str | Messages, end: tuple[int, ...],
    where: str = "data", template_kwargs: Mapping[str, Any] = NO_ARGUMENTS,
) -> Int[Tensor, " t"]:  # fmt: skip
    """The tokens that a policy would have to generate after the prompt's tokens, with one end token at the end.

    For messages, these are the tokens that the chat template writes after those of the prompt (``answer_tokens``).
    ``end[0]`` is appended if neither the template nor the plain text ends with an end token. Tokens after an end token
    (a template's newline) are removed, since a response ends there.

    Raises:
        ValueError: the prompt is plain text and the completion messages, or the reverse; the completion has several
            messages; there is no chat template; the template writes the prompt differently once a completion follows,
            so that no response could continue it as in the data; a token has no embedding in the model.
    """
    if isinstance(prompt, str) and isinstance(completion, str):
        tokens = continuation_ids(tokenizer, prompt, prompt + completion)
    elif isinstance(prompt, list) and isinstance(completion, list):
        if [message["role"] for message in completion] != ["assistant"]:
            raise ValueError(f"{where}: a response must be one assistant message; only SFT learns from several")
        tokens = answer_tokens(tokenizer, prompt, completion, where, template_kwargs)
    else:
        raise ValueError(f"{where}: prompt and completion must both be plain text or both be messages")
    tokens = require_embeddings(tokenizer, with_end_token(tokenizer, tokens, end), where)
    return torch.tensor(tokens, dtype=torch.int64)


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
        mask=pad_sequence([example.learned for example in examples], batch_first=True),
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


def with_begin_tokens(tokenizer: Tokenizer, text: str) -> list[int]:
    """Plain text with the special tokens that the tokenizer adds before it, each once, and none that it adds after."""
    tokens = tokenizer(text)["input_ids"]
    bare = token_ids(tokenizer, text)
    # An end token spelled in the text itself stays: only one after the whole text was added.
    if tokens[-1:] == [tokenizer.eos_token_id] and tokens[:-1][-len(bare) :] == bare:
        tokens = tokens[:-1]
    begin = tokenizer.bos_token_id
    return tokens[1:] if begin is not None and tokens[:2] == [begin, begin] and bare[:1] == [begin] else tokens
