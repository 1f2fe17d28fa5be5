"""Text to tokens and back: prompts, completions and their end, for plain text and for conversations."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from grape_rl.data.rows import Messages
from grape_rl.types import Sequences

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer
else:  # transformers is slow to import, and a tokenizer is passed in
    Tokenizer = Any


@dataclass(frozen=True)
class Example:
    """A demonstration in tokens: a prompt, and the completion to learn, which follows it."""

    prompt: Int[Tensor, " p"]
    completion: Int[Tensor, " t"]


@dataclass(frozen=True)
class Lengths:
    """What became of the rows under a limit of length.

    ``rows`` were given; of ``truncated`` the completion lost its end; ``dropped`` had a prompt that left no room for
    one. ``tokens`` counts the tokens of the completions that are left.
    """

    rows: int
    truncated: int
    dropped: int
    tokens: int


def end_tokens(tokenizer: Tokenizer, generation_config: Any = None) -> tuple[int, ...]:
    """Every token that ends a response: the tokenizer's first, then those of the model's generation configuration.

    Raises:
        ValueError: neither declares one, so that no response would ever end.
    """
    declared = [tokenizer.eos_token_id, getattr(generation_config, "eos_token_id", None)]
    flat = [token for ends in declared for token in (ends if isinstance(ends, list | tuple) else [ends])]
    found = tuple(dict.fromkeys(int(token) for token in flat if token is not None))
    if not found:
        raise ValueError("the tokenizer has no end token: no response would end; set its eos_token")
    return found


def prompt_tokens(tokenizer: Tokenizer, prompt: str | Messages, where: str = "data") -> Int[Tensor, " p"]:
    """The tokens of a prompt, ready for a response to follow.

    Plain text gets the tokenizer's own special tokens (a begin token, say), but not an end token behind it. Messages go
    through the chat template, with the header of the assistant's turn at the end.

    Raises:
        ValueError: messages and no chat template, or a template that refuses them; a prompt of no tokens.
    """
    if isinstance(prompt, str):
        tokens = tokenizer(prompt)["input_ids"]
        bare = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        # An end token that the prompt's own text spells stays: only one behind all the text was added.
        if tokens[-1:] == [tokenizer.eos_token_id] and tokens[:-1][-len(bare) :] == bare:
            tokens = tokens[:-1]
    else:
        tokens = _templated(tokenizer, prompt, where, add_generation_prompt=True)
    if not tokens:
        raise ValueError(f"{where}: the prompt has no tokens: {prompt!r:.80}")
    return torch.tensor(tokens, dtype=torch.int64)


def completion_tokens(
    tokenizer: Tokenizer, prompt: str | Messages, completion: str | Messages, end: tuple[int, ...], where: str = "data"
) -> Int[Tensor, " t"]:
    """The tokens that a policy would have to choose after the prompt's, one end token at the end.

    Messages: what the chat template writes for prompt and completion, less what it writes for the prompt alone. Where
    it writes no end token of its own behind the assistant's text, or plain text spells none, ``end[0]`` is put there;
    what follows an end token (a template's newline) is cut, since no response goes on behind it.

    Raises:
        ValueError: one of prompt and completion is plain and the other messages; no chat template; or a template whose
            text for the prompt does not begin its text for both, so that no response could continue as the data does.
    """
    if isinstance(prompt, str) and isinstance(completion, str):
        head = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        both = tokenizer(prompt + completion, add_special_tokens=False)["input_ids"]
        # As the text's continuation where tokens split there: by itself, some tokenizers would put a space in front.
        follows = both[: len(head)] == head
        tokens = both[len(head) :] if follows else tokenizer(completion, add_special_tokens=False)["input_ids"]
    elif isinstance(prompt, list) and isinstance(completion, list):
        head = _templated(tokenizer, prompt, where, add_generation_prompt=True)
        both = _templated(tokenizer, prompt + completion, where, add_generation_prompt=False)
        if both[: len(head)] != head:
            raise ValueError(
                f"{where}: the chat template writes the prompt otherwise once an answer follows: "
                f"{_apart(tokenizer, head, both)}; give the rows as plain text, or mend the template"
            )
        tokens = both[len(head) :]
    else:
        raise ValueError(f"{where}: prompt and completion must both be plain text or both be messages")
    return torch.tensor(_ended(tokenizer, tokens, end), dtype=torch.int64)


def examples(
    rows: Sequence[Mapping[str, Any]], tokenizer: Tokenizer, end: tuple[int, ...], max_length: int, source: str = "data"
) -> tuple[list[Example], Lengths]:
    """The rows' ``prompt`` and ``completion`` as tokens, prompt and completion together at most ``max_length``.

    A completion that does not fit loses its end; a row whose prompt leaves no room for one is left out. The counts say
    how often, for the caller to tell.

    Raises:
        ValueError: no row has a token to learn, and as ``prompt_tokens`` and ``completion_tokens``, naming the row.
    """
    kept: list[Example] = []
    truncated = 0
    for index, row in enumerate(rows):
        where = f"{source}: row {index}"
        prompt = prompt_tokens(tokenizer, row["prompt"], where)
        completion = completion_tokens(tokenizer, row["prompt"], row["completion"], end, where)
        room = max_length - len(prompt)
        if room > 0:
            truncated += len(completion) > room
            kept.append(Example(prompt, completion[:room].clone()))
    if not kept:
        raise ValueError(
            f"{source}: none of the {len(rows)} rows has a token to learn: every prompt takes up all of the "
            f"{max_length} tokens of max_length; raise it"
        )
    tokens = sum(len(example.completion) for example in kept)
    return kept, Lengths(len(rows), truncated, len(rows) - len(kept), tokens)


def stacked(examples: Sequence[Example]) -> Sequences:
    """The examples as one batch: each with its own prompt, completions padded with 0 on the right, masked there.

    Raises:
        ValueError: there are no examples.
    """
    if not examples:
        raise ValueError("no examples to stack")
    completions = [example.completion for example in examples]
    return Sequences(
        prompts=tuple(example.prompt for example in examples),
        tokens=pad_sequence(completions, batch_first=True),
        mask=pad_sequence([torch.ones_like(tokens, dtype=torch.bool) for tokens in completions], batch_first=True),
        group=torch.arange(len(examples)),
    )


def fitting(prompts: Iterable[Int[Tensor, " _"]], limit: int, where: str = "data") -> tuple[Int[Tensor, " _"], ...]:
    """The prompts, none of them over ``limit`` tokens: the model's context less the tokens of a response.

    Raises:
        ValueError: a prompt is longer; the message names its row, its length and the limit.
    """
    prompts = tuple(prompts)
    for row, prompt in enumerate(prompts):
        if len(prompt) > limit:
            raise ValueError(
                f"{where}: row {row}: the prompt is {len(prompt)} tokens long, and at most {limit} leave "
                "the response its room in the context; shorten it, or ask for shorter responses"
            )
    return prompts


def text(tokenizer: Tokenizer, tokens: Int[Tensor, " t"]) -> str:
    """What the tokens say, without special tokens and with every space as it was written."""
    return str(tokenizer.decode(tokens.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _templated(tokenizer: Tokenizer, messages: Messages, where: str, add_generation_prompt: bool) -> list[int]:
    if not tokenizer.chat_template:
        raise ValueError(
            f"{where}: the prompt is made of messages, and the tokenizer has no chat template; "
            "give plain text, or set the tokenizer's chat_template"
        )
    from jinja2 import TemplateError

    try:
        tokens = tokenizer.apply_chat_template(
            messages, add_generation_prompt=add_generation_prompt, tokenize=True, return_dict=False
        )
    except (TemplateError, TypeError) as error:
        raise ValueError(f"{where}: the chat template refuses the messages: {error}") from error
    return cast(list[int], tokens)


def _ended(tokenizer: Tokenizer, tokens: list[int], end: tuple[int, ...]) -> list[int]:
    """The tokens up to the first end token behind the text, with ``end[0]`` put there where there is none."""
    last = len(tokens)
    while last and (tokens[last - 1] in end or not str(tokenizer.decode([tokens[last - 1]])).strip()):
        last -= 1
    for position in range(last, len(tokens)):
        if tokens[position] in end:
            return tokens[: position + 1]
    return [*tokens, end[0]]


def _apart(tokenizer: Tokenizer, head: list[int], both: list[int]) -> str:
    at = next((i for i, (a, b) in enumerate(zip(head, both, strict=False)) if a != b), min(len(head), len(both)))
    alone, together = tokenizer.decode(head[at : at + 12]), tokenizer.decode(both[at : at + 12])
    return f"{alone!r} alone, {together!r} with it, from token {at} on"
