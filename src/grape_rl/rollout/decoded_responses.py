"""Sampled responses decoded to text, as they are graded: all of a rollout, or each as soon as it is finished."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Int
from torch import Tensor

from grape_rl.data.chat import decode_text
from grape_rl.model.sampler import OnResponse
from grape_rl.types import Finish, Response, Rollout

Prefetch = Callable[[Response], None]
"""Start judging a finished response while the rest of its batch is still being sampled."""


@dataclass(frozen=True)
class Prompt:
    """A prompt to sample from: its tokens, its text for graders, and its data row."""

    tokens: Int[Tensor, " p"]
    text: str
    row: dict[str, Any]


def decode_responses(rollout: Rollout, prompts: Sequence[Prompt], tokenizer: Any) -> list[Response]:
    """The rollout's responses for grading. ``prompts`` are the prompts of its groups."""
    return [
        _decode(prompts[group], rollout.tokens[i][rollout.mask[i]], finish, tokenizer)
        for i, (group, finish) in enumerate(zip(rollout.group.tolist(), rollout.finish, strict=True))
    ]


def prefetch_callback(prompts: Sequence[Prompt], group_size: int, tokenizer: Any, prefetch: Prefetch) -> OnResponse:
    """A callback for the sampler that passes each finished response to ``prefetch``, so that judging overlaps."""

    def on_response(row: int, tokens: Int[Tensor, " t"], finish: Finish) -> None:
        prefetch(_decode(prompts[row // group_size], tokens, finish, tokenizer))

    return on_response


def _decode(prompt: Prompt, tokens: Int[Tensor, " t"], finish: Finish, tokenizer: Any) -> Response:
    return Response(prompt.text, decode_text(tokenizer, tokens), prompt.row, len(tokens), finish)
