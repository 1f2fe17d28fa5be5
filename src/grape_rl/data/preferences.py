"""Preference pairs: a prompt with a chosen and a rejected response, from data or synthesized from tasks."""

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
from grape_rl.data.chat_template import template_arguments
from grape_rl.data.rows import Row, finite_number, with_prompts
from grape_rl.schema import did_you_mean
from grape_rl.types import Sequences


@dataclass(frozen=True)
class Pair:
    """A preference pair in tokens, and the rewards of its responses; NaN if the data has no rewards."""

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
    """The rows with ``prompt``, ``chosen`` and ``rejected`` from the columns with these names; other columns are kept.

    TRL's preference datasets load unchanged, plain or conversational. The prompt is implicit if there is no prompt
    column, or if that is plain text while the responses are whole conversations. An implicit prompt is the longest
    common prefix of the two responses: whole messages, or text without a trailing space, which begins the responses.

    Raises:
        ValueError: a row without a chosen or a rejected response, with two equal responses, or without a prompt; and
            as ``with_prompts``, for either response.

    >>> with_preferences([{"chosen": "1+1= 2", "rejected": "1+1= 3"}])
    [{'chosen': ' 2', 'rejected': ' 3', 'prompt': '1+1='}]
    """
    explicit: list[Row] = []
    for index, row in enumerate(rows):
        for column in (chosen, rejected):
            if column not in row:
                raise ValueError(
                    f"{source}: row {index} has no column {column!r}: a preference needs a chosen and a rejected "
                    f"response; it has {', '.join(map(repr, row)) or 'none'}{did_you_mean(column, row)}"
                )
        if row[chosen] == row[rejected]:
            raise ValueError(f"{source}: row {index}: {chosen!r} and {rejected!r} are equal; remove the row")
        has_prompt = prompt in row and not (isinstance(row[prompt], str) and isinstance(row[chosen], list))
        where = f"{source}: row {index}"
        explicit.append({**row} if has_prompt else _extract_prompt(row, prompt, chosen, rejected, where))
    better = with_prompts(explicit, prompt, chosen, system, source)
    worse = with_prompts(explicit, prompt, rejected, system, source)
    return [
        {**row, "prompt": b["prompt"], "chosen": b["completion"], "rejected": w["completion"]}
        for row, b, w in zip(explicit, better, worse, strict=True)
    ]


def synthesize_preferences(rows: Sequence[Row], wrong: float, styles: Sequence[str], seed: int) -> list[Row]:
    """The rows with a ``chosen`` and a ``rejected`` response, synthesized from the row's ``answer``.

    The chosen response is the answer in the first style. A random fraction ``wrong`` of the rejected responses gives
    another answer of the same task in the first style. The remaining ones give the right answer in another style.
    ``chosen_reward`` is 1; ``rejected_reward`` is 0 for a wrong answer and ½ for another style.

    Raises:
        ValueError: only one style if a rejected response needs another one; a style without ``{answer}``; a row
            without an answer; or a task whose rows all have the same answer.
    """
    if invalid := [style for style in styles if "{answer}" not in style]:
        raise ValueError(f"data.teacher.styles: {invalid[0]!r} does not contain {{answer}}")
    if len(styles) < 2 and wrong < 1:
        raise ValueError(
            "data.teacher: right answers are rejected for their style, but styles has only one; name two or more, the "
            "preferred one first, or set wrong to 1, so that every rejected answer is wrong"
        )
    random = Random(f"pairs {seed}")
    answers: dict[Any, list[str]] = {}
    for index, row in enumerate(rows):
        if row.get("answer") is None:
            raise ValueError(f"row {index} (task {row.get('task')!r}) has no single answer to prefer")
        answers.setdefault(row.get("task"), []).append(row["answer"])
    if constant := [task for task, texts in answers.items() if len(set(texts)) < 2 and wrong > 0]:
        raise ValueError(f"task {constant[0]!r}: all of its rows have the same answer, so there is no wrong answer")
    preferences: list[Row] = []
    for row in rows:
        mistaken, answer, style = random.random() < wrong, row["answer"], styles[0]
        if mistaken:
            while answer == row["answer"]:
                answer = random.choice(answers[row.get("task")])
        else:
            style = random.choice(styles[1:])
        best, worse = styles[0].replace("{answer}", row["answer"]), style.replace("{answer}", answer)
        rewards = {"chosen_reward": 1.0, "rejected_reward": 0.0 if mistaken else 0.5}
        preferences.append({**row, "chosen": best, "rejected": worse, **rewards})
    return preferences


def tokenize_pairs(
    rows: Sequence[Row],
    tokenizer: Tokenizer,
    end: tuple[int, ...],
    max_length: int,
    reward_columns: tuple[str, str] = ("chosen_reward", "rejected_reward"),
    source: str = "data",
) -> tuple[list[Pair], TruncationStats]:
    """The rows' ``prompt``, ``chosen`` and ``rejected`` in tokens; the prompt with either is at most ``max_length``.

    A longer response is truncated on the right. A row is dropped if its prompt leaves no room for a response, or if
    the truncated responses are equal. The statistics count pairs.

    Raises:
        ValueError: no pair is left; a reward that is not a finite number; and as ``prompt_tokens`` and
            ``completion_tokens``, naming the row.
    """
    pairs: list[Pair] = []
    truncated = 0
    for index, row in enumerate(rows):
        where = f"{source}: row {index}"
        template_kwargs = template_arguments(row, where)
        prompt = prompt_tokens(tokenizer, row["prompt"], where, template_kwargs)
        room = max_length - len(prompt)
        responses = [
            completion_tokens(tokenizer, row["prompt"], row[key], end, where, template_kwargs)
            for key in ("chosen", "rejected")
        ]
        chosen, rejected = (tokens[: max(0, room)].clone() for tokens in responses)
        if room > 0 and not torch.equal(chosen, rejected):
            truncated += any(len(tokens) > room for tokens in responses)
            rewards = [finite_number(row.get(column), f"{where}: {column!r}") for column in reward_columns]
            pairs.append(Pair(prompt, chosen, rejected, *rewards))
    if not pairs:
        raise ValueError(
            f"{source}: none of the {len(rows)} pairs differs within the {max_length} tokens of max_length; raise it"
        )
    tokens = sum(len(pair.chosen) + len(pair.rejected) for pair in pairs)
    return pairs, TruncationStats(len(rows), truncated, len(rows) - len(pairs), tokens)


def collate_pairs(pairs: Sequence[Pair]) -> Sequences:
    """The pairs as one batch: each prompt once, the chosen responses in the first half of the rows, in order.

    Responses are padded on the right with 0; the mask is False there.

    Raises:
        ValueError: there are no pairs.
    """
    if not pairs:
        raise ValueError("no pairs to collate")
    responses = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    return Sequences(
        prompts=tuple(pair.prompt for pair in pairs),
        tokens=pad_sequence(responses, batch_first=True),
        mask=pad_sequence([torch.ones_like(tokens, dtype=torch.bool) for tokens in responses], batch_first=True),
        group=torch.arange(len(pairs)).repeat(2),
    )


def _extract_prompt(row: Mapping[str, Any], prompt: str, chosen: str, rejected: str, where: str) -> Row:
    """The row with the longest common prefix of its two responses as its prompt."""
    a, b = row[chosen], row[rejected]
    common = takewhile(lambda both: both[0] == both[1], zip(a, b, strict=False))
    if isinstance(a, str) and isinstance(b, str):
        prefix: Any = "".join(letter for letter, _ in common)
        prefix = prefix[:-1] if prefix.endswith(" ") else prefix
    elif isinstance(a, list) and isinstance(b, list):
        prefix = [message for message, _ in common]
    else:
        raise ValueError(f"{where}: {chosen!r} and {rejected!r} must both be plain text or both be messages")
    if not prefix:
        raise ValueError(
            f"{where}: there is no column {prompt!r}, and {chosen!r} and {rejected!r} have no common prefix that could "
            f"be the prompt{did_you_mean(prompt, row)}"
        )
    return {**row, chosen: a[len(prefix) :], rejected: b[len(prefix) :], prompt: prefix}
