"""Pairs for a reward model: whole responses with their end, and the margin by which one should win."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from grape_rl.data.chat import Tokenizer, TruncationStats, completion_tokens, prompt_tokens
from grape_rl.data.preferences import Pair


@dataclass(frozen=True)
class PairWithMargin:
    """A pair in tokens, and how much higher the chosen response's score should be than the other's."""

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
    """The rows as pairs in tokens, each with its margin. ``columns``: of the margin, and of the two rewards.

    margin_from: "column": what the margin's column says, and 0 where no row has it; "rewards": the chosen response's
    reward less the other's; "none": 0. A pair of which either response is over ``max_length`` with its prompt is left
    out and not cut: a response without its end is another response. So is one whose two responses have the same tokens.

    Raises:
        ValueError: as ``prompt_tokens`` and ``completion_tokens``; a margin that is missing or no number; no pair left.
    """
    margins = [_margin(row, columns, margin_from, f"{source}: row {i}") for i, row in enumerate(rows)]
    told = [not math.isnan(margin) for margin in margins]
    if any(told) and not all(told):
        raise ValueError(
            f"{source}: row {told.index(False)} has no {columns[0]!r}, and others have: give every row one, or set "
            "options.margin_from to none"
        )
    kept: list[PairWithMargin] = []
    for index, (row, margin) in enumerate(zip(rows, margins, strict=True)):
        where = f"{source}: row {index}"
        prompt = prompt_tokens(tokenizer, row["prompt"], where)
        chosen, rejected = (
            completion_tokens(tokenizer, row["prompt"], row[key], end, where) for key in ("chosen", "rejected")
        )
        if len(prompt) + max(len(chosen), len(rejected)) <= max_length and not torch.equal(chosen, rejected):
            kept.append(PairWithMargin(Pair(prompt, chosen, rejected), margin if told[0] else 0.0))
    if not kept:
        raise ValueError(
            f"{source}: none of the {len(rows)} pairs differs and fits into the {max_length} tokens of max_length"
        )
    tokens = sum(len(each.pair.chosen) + len(each.pair.rejected) for each in kept)
    return kept, TruncationStats(len(rows), 0, len(rows) - len(kept), tokens)


def _margin(row: Mapping[str, Any], columns: tuple[str, str, str], margin_from: str, where: str) -> float:
    """The pair's margin; NaN where the row has no column for it."""
    if margin_from == "none":
        return 0.0
    margin, chosen, rejected = (_number(row.get(column), f"{where}: {column!r}") for column in columns)
    if margin_from == "column":
        return margin
    if math.isnan(chosen - rejected):
        raise ValueError(
            f"{where}: options.margin_from is rewards, which needs the columns {columns[1]!r} and {columns[2]!r}; "
            f"it has {', '.join(map(repr, row))}"
        )
    return chosen - rejected


def _number(value: Any, what: str) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{what} must be a finite number; got {value!r:.80}")
    return float(value)
