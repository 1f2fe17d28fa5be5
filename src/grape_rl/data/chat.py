"""Text to tokens and back: prompts, completions and their end, for plain text and for conversations."""

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
"""What of a demonstration is learned: the completion, every message of the assistant's, or all after the first token.
"""


@dataclass(frozen=True)
class Example:
    """A demonstration in tokens: a prompt, and the completion to learn, which follows it.

    ``learned`` is True where a token of the completion is learned: where it is None, all of them are.
    """

    prompt: Int[Tensor, " p"]
    completion: Int[Tensor, " t"]
    learned: Bool[Tensor, " t"] | None = None


NO_ARGUMENTS: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class TruncationStats:
    """What became of the rows under a limit of length.

    ``rows`` were given; of ``truncated`` the completion lost its end; ``dropped`` had nothing to learn within the
    limit, a prompt that left no room, say. ``tokens`` counts the tokens to learn that are left.
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


def prompt_tokens(
    tokenizer: Tokenizer, prompt: str | Messages, where: str = "data", given: Mapping[str, Any] = NO_ARGUMENTS
) -> Int[Tensor, " p"]:
    """The tokens of a prompt, ready for a response to follow.

    Plain text gets the tokenizer's own special tokens (a begin token, say, if it does not begin with it already), but
    not an end token behind it. Messages go through the chat template, with the header of the assistant's turn at the
    end, and with what it is ``given`` beside them (see ``template_arguments``).

    Raises:
        ValueError: messages and no chat template, or a template that refuses them; a prompt of no tokens, or with one
            that the model has no embedding for.
    """
    if isinstance(prompt, str):
        tokens = _begun(tokenizer, prompt)
    else:
        tokens = apply_chat_template(tokenizer, prompt, where, given, add_generation_prompt=True)["input_ids"]
    if not tokens:
        raise ValueError(f"{where}: the prompt has no tokens: {prompt!r:.80}")
    return torch.tensor(require_embeddings(tokenizer, tokens, where), dtype=torch.int64)


def completion_tokens(
    tokenizer: Tokenizer, prompt: str | Messages, completion: str | Messages, end: tuple[int, ...],
    where: str = "data", given: Mapping[str, Any] = NO_ARGUMENTS,
) -> Int[Tensor, " t"]:  # fmt: skip
    """The tokens that a policy would have to choose after the prompt's, one end token at the end.

    Messages: what the chat template writes for prompt and completion, less what it writes for the prompt alone. Where
    it writes no end token of its own behind the assistant's text, or plain text spells none, ``end[0]`` is put there;
    what follows an end token (a template's newline) is cut, since no response goes on behind it.

    Raises:
        ValueError: one of prompt and completion is plain and the other messages; no chat template; or a template whose
            text for the prompt does not begin its text for both, so that no response could continue as the data does;
            a token that the model has no embedding for.
    """
    if isinstance(prompt, str) and isinstance(completion, str):
        head = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        both = tokenizer(prompt + completion, add_special_tokens=False)["input_ids"]
        # As the text's continuation where tokens split there: by itself, some tokenizers would put a space in front.
        follows = both[: len(head)] == head
        tokens = both[len(head) :] if follows else tokenizer(completion, add_special_tokens=False)["input_ids"]
    elif isinstance(prompt, list) and isinstance(completion, list):
        head = apply_chat_template(tokenizer, prompt, where, given, add_generation_prompt=True)["input_ids"]
        both = apply_chat_template(tokenizer, prompt + completion, where, given)["input_ids"]
        if both[: len(head)] != head:
            raise ValueError(
                f"{where}: the chat template writes the prompt otherwise once an answer follows: "
                f"{describe_difference(tokenizer, head, both)}; give the rows as plain text, or mend the template"
            )
        tokens = both[len(head) :]
    else:
        raise ValueError(f"{where}: prompt and completion must both be plain text or both be messages")
    return torch.tensor(require_embeddings(tokenizer, with_end_token(tokenizer, tokens, end), where), dtype=torch.int64)


def demonstration_tokens(
    tokenizer: Tokenizer, row: Mapping[str, Any], end: tuple[int, ...], learn: Learn | None, where: str = "data"
) -> tuple[list[int], list[bool]]:
    """A demonstration's tokens, prompt and all, and which of them are learned.

    A row has a ``prompt`` with a ``completion``, a whole conversation as ``messages``, or ``text``. Unless ``learn``
    says otherwise, the completion is learned, or every message of the assistant's, or all of the text after its first
    token, before which nothing stands. What is learned at last ends with an end token.

    Raises:
        ValueError: ``learn`` asks for what the row has not, and as ``prompt_tokens``, ``completion_tokens`` and
            ``conversation_tokens``.
    """
    if "text" in row:
        if learn not in (None, "all"):
            raise ValueError(f"{where}: all of a text is learned; it has no {learn} to learn alone")
        tokens = with_end_token(tokenizer, _begun(tokenizer, row["text"]), end)
        return tokens, [False] + [True] * (len(tokens) - 1)
    of_messages = "messages" in row or isinstance(row["prompt"], list)
    given = template_arguments(row, where)
    if "messages" in row and learn == "completion":
        raise ValueError(f"{where}: a whole conversation has no completion; learn the assistant's messages, or all")
    if not of_messages and learn == "assistant":
        raise ValueError(f"{where}: plain text has no messages of an assistant's; learn the completion, or all")
    if learn == "assistant" or ("messages" in row and learn is None):
        messages = row["messages"] if "messages" in row else row["prompt"] + row["completion"]
        return conversation_tokens(tokenizer, messages, end, where, given)
    if "messages" in row:
        tokens = apply_chat_template(tokenizer, row["messages"], where, given)["input_ids"]
        tokens = with_end_token(tokenizer, tokens, end) if row["messages"][-1]["role"] == "assistant" else tokens
        return tokens, [False] + [True] * (len(tokens) - 1)
    prompt = prompt_tokens(tokenizer, row["prompt"], where, given).tolist()
    completion = completion_tokens(tokenizer, row["prompt"], row["completion"], end, where, given).tolist()
    asked = [learn == "all"] * len(prompt)
    return prompt + completion, [False, *asked[1:]] + [True] * len(completion)


def tokenize_demonstrations(
    rows: Sequence[Mapping[str, Any]], tokenizer: Tokenizer, end: tuple[int, ...], max_length: int,
    source: str = "data", learn: Learn | None = None,
) -> tuple[list[Example], TruncationStats]:  # fmt: skip
    """The rows as tokens, at most ``max_length`` of each, with what is learned of them: see ``demonstration_tokens``.

    A row that does not fit loses its end, and with it the end token; one that has nothing to learn before that is left
    out. The counts say how often, for the caller to tell.

    Raises:
        ValueError: no row has a token to learn, a token that the model has no embedding for, and as
            ``demonstration_tokens``, naming the row.
    """
    kept: list[Example] = []
    truncated = 0
    for index, row in enumerate(rows):
        where = f"{source}: row {index}"
        tokens, learned = demonstration_tokens(tokenizer, row, end, learn, where)
        require_embeddings(tokenizer, tokens, where)
        lost = any(learned[max_length:])
        learned = learned[:max_length]
        if any(learned):
            truncated += lost
            first, last = learned.index(True), len(learned) - learned[::-1].index(True)
            prompt, completion = torch.tensor(tokens[:first]), torch.tensor(tokens[first:last])
            kept.append(Example(prompt, completion, torch.tensor(learned[first:last])))
    if not kept:
        raise ValueError(
            f"{source}: none of the {len(rows)} rows has a token to learn: every prompt takes up all of the "
            f"{max_length} tokens of max_length; raise it"
        )
    tokens = sum(int(_learned(example).sum()) for example in kept)
    return kept, TruncationStats(len(rows), truncated, len(rows) - len(kept), tokens)


def collate_examples(examples: Sequence[Example]) -> Sequences:
    """The examples as one batch: each with its own prompt, completions padded with 0 on the right.

    The mask is True where a token is learned.

    Raises:
        ValueError: there are no examples.
    """
    if not examples:
        raise ValueError("no examples to stack")
    completions = [example.completion for example in examples]
    return Sequences(
        prompts=tuple(example.prompt for example in examples),
        tokens=pad_sequence(completions, batch_first=True),
        mask=pad_sequence([_learned(example) for example in examples], batch_first=True),
        group=torch.arange(len(examples)),
    )


def check_prompt_lengths(
    prompts: Iterable[Int[Tensor, " _"]], limit: int, where: str = "data"
) -> tuple[Int[Tensor, " _"], ...]:
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


def decode_text(tokenizer: Tokenizer, tokens: Int[Tensor, " t"]) -> str:
    """What the tokens say, without special tokens and with every space as it was written."""
    return str(tokenizer.decode(tokens.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _learned(example: Example) -> Bool[Tensor, " t"]:
    whole = torch.ones_like(example.completion, dtype=torch.bool)
    return whole if example.learned is None else example.learned


def _begun(tokenizer: Tokenizer, text: str) -> list[int]:
    """Plain text with the special tokens that the tokenizer puts before it, each once, and none behind it."""
    tokens = tokenizer(text)["input_ids"]
    bare = tokenizer(text, add_special_tokens=False)["input_ids"]
    # An end token that the text itself spells stays: only one behind all the text was added.
    if tokens[-1:] == [tokenizer.eos_token_id] and tokens[:-1][-len(bare) :] == bare:
        tokens = tokens[:-1]
    begin = tokenizer.bos_token_id
    return tokens[1:] if begin is not None and tokens[:2] == [begin, begin] and bare[:1] == [begin] else tokens
