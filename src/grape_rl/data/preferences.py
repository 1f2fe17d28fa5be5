"""Preferences: a prompt with a chosen and a rejected response, from data or made of tasks, as text and as tokens."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from random import Random
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from grape_rl.data.chat import Tokenizer, TruncationStats, completion_tokens, prompt_tokens
from grape_rl.data.conversation import template_arguments
from grape_rl.data.rows import with_prompts
from grape_rl.schema import did_you_mean
from grape_rl.types import Sequences

Row = dict[str, Any]


@dataclass(frozen=True)
class Pair:
    """A preference in tokens, and the responses' rewards (NaN where the data does not tell)."""

    prompt: Int[Tensor, " p"]
    chosen: Int[Tensor, " t"]
    rejected: Int[Tensor, " u"]
    chosen_reward: float = math.nan
    rejected_reward: float = math.nan


def with_preferences(
    rows: Sequence[Mapping[str, Any]],
    prompt: str = "prompt",
    chosen: str = "chosen",
    rejected: str = "rejected",
    system: str | None = None,
    source: str = "data",
) -> list[Row]:
    """The rows with a ``prompt``, a ``chosen`` and a ``rejected`` made of the columns so named; the other columns stay.

    TRL's preference datasets load unchanged, plain or conversational. Without a column for the prompt (or with one of
    plain text beside whole conversations) the prompt is what the two responses have in common at their start: whole
    messages, or text, less a space at its end, which goes with what follows.

    Raises:
        ValueError: a row without a chosen or a rejected response, with two that are the same, or with no prompt; and
            as ``with_prompts``, for either response.

    >>> with_preferences([{"chosen": "1+1= 2", "rejected": "1+1= 3"}])
    [{'chosen': ' 2', 'rejected': ' 3', 'prompt': '1+1='}]
    """
    whole: list[Row] = []
    for index, row in enumerate(rows):
        for column in (chosen, rejected):
            if column not in row:
                raise ValueError(
                    f"{source}: row {index} has no column {column!r}: a preference needs a chosen and a rejected "
                    f"response; it has {', '.join(map(repr, row)) or 'none'}{did_you_mean(column, row)}"
                )
        if row[chosen] == row[rejected]:
            raise ValueError(f"{source}: row {index}: {chosen!r} and {rejected!r} are the same: nothing is preferred")
        told = prompt in row and not (isinstance(row[prompt], str) and isinstance(row[chosen], list))
        whole.append({**row} if told else _parted(row, prompt, chosen, rejected, f"{source}: row {index}"))
    better = with_prompts(whole, prompt, chosen, system, source)
    worse = with_prompts(whole, prompt, rejected, system, source)
    return [
        {**row, "prompt": b["prompt"], "chosen": b["completion"], "rejected": w["completion"]}
        for row, b, w in zip(whole, better, worse, strict=True)
    ]


def synthesize_preferences(rows: Sequence[Row], wrong: float, styles: Sequence[str], seed: int) -> list[Row]:
    """The rows with a ``chosen`` and a ``rejected`` response: the row's ``answer`` in the first style, and a worse one.

    A share ``wrong`` of the rejected responses, drawn at random, gives another answer of the same task in the first
    style; the others give the right answer in another style. The chosen response has a ``chosen_reward`` of 1; the
    ``rejected_reward`` is 0 for a wrong answer and ½ for another style.

    Raises:
        ValueError: one style and a rejected response that should have another, a style without ``{answer}``, a row
            without an answer, or a task whose rows all have the same one.
    """
    if bad := [style for style in styles if "{answer}" not in style]:
        raise ValueError(f"data.teacher.styles: {bad[0]!r} has no {{answer}} in it")
    if len(styles) < 2 and wrong < 1:
        raise ValueError(
            "data.teacher: a right answer is rejected for its style, and styles has only one: name two or more, the "
            "preferred one first, or set wrong to 1, so that every rejected answer is a wrong one"
        )
    random = Random(f"pairs {seed}")
    answers: dict[Any, list[str]] = {}
    for index, row in enumerate(rows):
        if row.get("answer") is None:
            raise ValueError(f"row {index} (task {row.get('task')!r}) has no single answer to prefer")
        answers.setdefault(row.get("task"), []).append(row["answer"])
    if alike := [task for task, found in answers.items() if len(set(found)) < 2 and wrong > 0]:
        raise ValueError(f"task {alike[0]!r}: all of its rows have the same answer: none is a wrong one")
    made: list[Row] = []
    for row in rows:
        mistaken, answer, style = random.random() < wrong, row["answer"], styles[0]
        if mistaken:
            while answer == row["answer"]:
                answer = random.choice(answers[row.get("task")])
        else:
            style = random.choice(styles[1:])
        best, worse = styles[0].replace("{answer}", row["answer"]), style.replace("{answer}", answer)
        rewards = {"chosen_reward": 1.0, "rejected_reward": 0.0 if mistaken else 0.5}
        made.append({**row, "chosen": best, "rejected": worse, **rewards})
    return made


def tokenize_pairs(
    rows: Sequence[Row],
    tokenizer: Tokenizer,
    end: tuple[int, ...],
    max_length: int,
    reward_columns: tuple[str, str] = ("chosen_reward", "rejected_reward"),
    source: str = "data",
) -> tuple[list[Pair], TruncationStats]:
    """The rows' ``prompt``, ``chosen`` and ``rejected`` as tokens, the prompt with either at most ``max_length``.

    A response that does not fit loses its end; a row whose prompt leaves no room for one, or whose responses are the
    same as far as they fit, is left out. The counts are of pairs.

    Raises:
        ValueError: no pair is left, a reward that is no finite number, and as ``prompt_tokens`` and
            ``completion_tokens``, naming the row.
    """
    kept: list[Pair] = []
    truncated = 0
    for index, row in enumerate(rows):
        where = f"{source}: row {index}"
        given = template_arguments(row, where)
        prompt = prompt_tokens(tokenizer, row["prompt"], where, given)
        room = max_length - len(prompt)
        whole = [
            completion_tokens(tokenizer, row["prompt"], row[key], end, where, given) for key in ("chosen", "rejected")
        ]
        chosen, rejected = (tokens[: max(0, room)].clone() for tokens in whole)
        if room > 0 and not torch.equal(chosen, rejected):
            truncated += any(len(tokens) > room for tokens in whole)
            rewards = [_reward(row.get(column), f"{where}: {column!r}") for column in reward_columns]
            kept.append(Pair(prompt, chosen, rejected, *rewards))
    if not kept:
        raise ValueError(
            f"{source}: none of the {len(rows)} pairs differs within the {max_length} tokens of max_length; raise it"
        )
    tokens = sum(len(pair.chosen) + len(pair.rejected) for pair in kept)
    return kept, TruncationStats(len(rows), truncated, len(rows) - len(kept), tokens)


def collate_pairs(pairs: Sequence[Pair]) -> Sequences:
    """The pairs as one batch: each prompt once, the chosen responses in the first half of the rows, in order.

    Padding on the right is 0 and masked.

    Raises:
        ValueError: there are no pairs.
    """
    if not pairs:
        raise ValueError("no pairs to stack")
    responses = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    return Sequences(
        prompts=tuple(pair.prompt for pair in pairs),
        tokens=pad_sequence(responses, batch_first=True),
        mask=pad_sequence([torch.ones_like(tokens, dtype=torch.bool) for tokens in responses], batch_first=True),
        group=torch.arange(len(pairs)).repeat(2),
    )


def _parted(row: Mapping[str, Any], prompt: str, chosen: str, rejected: str, where: str) -> Row:
    """The row with the beginning that both responses share as its prompt."""
    a, b = row[chosen], row[rejected]
    alike = takewhile(lambda both: both[0] == both[1], zip(a, b, strict=False))
    if isinstance(a, str) and isinstance(b, str):
        shared: Any = "".join(letter for letter, _ in alike)
        shared = shared[:-1] if shared.endswith(" ") else shared
    elif isinstance(a, list) and isinstance(b, list):
        shared = [message for message, _ in alike]
    else:
        raise ValueError(f"{where}: {chosen!r} and {rejected!r} must both be plain text or both be messages")
    if not shared:
        raise ValueError(
            f"{where}: there is no column {prompt!r}, and {chosen!r} and {rejected!r} do not begin alike, so that "
            f"there is no prompt{did_you_mean(prompt, row)}"
        )
    return {**row, chosen: a[len(shared) :], rejected: b[len(shared) :], prompt: shared}


def _reward(value: Any, what: str) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{what} must be a finite number; got {value!r:.80}")
    return float(value)
