"""Preference pairs with margins, for training a reward model: whole responses, never truncated."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from grape_rl.data.chat import Tokenizer, TruncationStats, completion_tokens, prompt_tokens
from grape_rl.data.chat_template import template_arguments
from grape_rl.data.preferences import Pair
from grape_rl.data.rows import finite_number


@dataclass(frozen=True)
class PairWithMargin:
    """A pair in tokens, and the margin by which the chosen response's score should exceed the rejected one's."""

    pair: Pair
    margin: float


def tokenize_comparisons(
    rows: Sequence[dict[str, Any]],
    tokenizer: Tokenizer,
    end: tuple[int, ...],
    max_length: int,
    columns: tuple[str, str, str],
    source: str,
    margin_from: Literal["column", "rewards", "none"] = "column",
) -> tuple[list[PairWithMargin], TruncationStats]:
    """The rows as pairs in tokens with their margins. ``columns`` names the margin and the two rewards.

    margin_from: "column": the value of the margin column, or 0 if no row has one; "rewards": the chosen response's
    reward minus the rejected one's; "none": 0. A pair is dropped if either response exceeds ``max_length`` with its
    prompt: a truncated response is a different response. It is also dropped if both responses have the same tokens.

    Raises:
        ValueError: as ``prompt_tokens`` and ``completion_tokens``; a margin that is missing or not a finite number; no
            pair is left.
    """
    # Margins: all rows have one, or none has.
    margins = [_margin(row, columns, margin_from, f"{source}: row {i}") for i, row in enumerate(rows)]
    present = [not math.isnan(margin) for margin in margins]
    if any(present) and not all(present):
        raise ValueError(
            f"{source}: row {present.index(False)} has no {columns[0]!r}, but other rows do: give every row one, or "
            "set options.margin_from to none"
        )
    # Tokens, without pairs that are too long or have equal responses.
    pairs: list[PairWithMargin] = []
    for index, (row, margin) in enumerate(zip(rows, margins, strict=True)):
        where = f"{source}: row {index}"
        arguments = template_arguments(row, where)
        prompt = prompt_tokens(tokenizer, row["prompt"], where, arguments)
        chosen, rejected = (
            completion_tokens(tokenizer, row["prompt"], row[key], end, where, arguments)
            for key in ("chosen", "rejected")
        )
        if len(prompt) + max(len(chosen), len(rejected)) <= max_length and not torch.equal(chosen, rejected):
            pairs.append(PairWithMargin(Pair(prompt, chosen, rejected), margin if present[0] else 0.0))
    if not pairs:
        raise ValueError(
            f"{source}: none of the {len(rows)} pairs differs and fits into the {max_length} tokens of max_length"
        )
    tokens = sum(len(p.pair.chosen) + len(p.pair.rejected) for p in pairs)
    return pairs, TruncationStats(len(rows), 0, len(rows) - len(pairs), tokens)


def _margin(row: Mapping[str, Any], columns: tuple[str, str, str], margin_from: str, where: str) -> float:
    """The pair's margin; NaN if the row has no margin column."""
    if margin_from == "none":
        return 0.0
    margin, chosen, rejected = (finite_number(row.get(column), f"{where}: {column!r}") for column in columns)
    if margin_from == "column":
        return margin
    if math.isnan(chosen - rejected):
        raise ValueError(
            f"{where}: options.margin_from is rewards, which requires the columns {columns[1]!r} and {columns[2]!r}; "
            f"it has {', '.join(map(repr, row))}"
        )
    return chosen - rejected
