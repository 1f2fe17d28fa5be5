"""Pairs for a reward model: whole responses with their end, and the margin by which one should win."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from grape_rl.data.chat import Lengths, Tokenizer
from grape_rl.data.preferences import Pair, pairs


@dataclass(frozen=True)
class Comparison:
    """A pair in tokens, and how much higher the chosen response's score should be than the other's."""

    pair: Pair
    margin: float


def comparisons(
    rows: Sequence[dict[str, Any]],
    tokenizer: Tokenizer,
    end: tuple[int, ...],
    max_length: int,
    columns: tuple[str, str, str],
    source: str,
    margin_from: Literal["column", "rewards", "none"] = "column",
) -> tuple[list[Comparison], Lengths]:
    """The rows as pairs in tokens, each with its margin. ``columns``: of the margin, and of the two rewards.

    margin_from: "column": what the margin's column says, and 0 where no row has it; "rewards": the chosen response's
    reward less the other's; "none": 0. A pair of which either response is over ``max_length`` with its prompt is left
    out and not cut: a response without its end is another response.

    Raises:
        ValueError: as ``pairs``; a margin that is missing or no number; no pair that is short enough.
    """
    made, lengths = pairs(rows, tokenizer, end, 2**30, columns[1:], source)
    if lengths.dropped:
        raise ValueError(f"{source}: {lengths.dropped} of {len(rows)} pairs have the same tokens twice")
    margins = [_margin(row, pair, columns, margin_from, f"{source}: row {i}")
               for i, (row, pair) in enumerate(zip(rows, made, strict=True))]  # fmt: skip
    told = [not math.isnan(value) for value in margins]
    if any(told) and not all(told):
        raise ValueError(
            f"{source}: row {told.index(False)} has no {columns[0]!r}, and others have: give every row one, or set "
            "options.margin_from to none"
        )
    found = [Comparison(pair, value if told[0] else 0.0) for pair, value in zip(made, margins, strict=True)]
    kept = [each for each in found if _length(each.pair) <= max_length]
    if not kept:
        raise ValueError(f"{source}: none of the {len(rows)} pairs fits into the {max_length} tokens of max_length")
    tokens = sum(len(each.pair.chosen) + len(each.pair.rejected) for each in kept)
    return kept, Lengths(len(rows), 0, len(rows) - len(kept), tokens)


def _length(pair: Pair) -> int:
    return len(pair.prompt) + max(len(pair.chosen), len(pair.rejected))


def _margin(row: Mapping[str, Any], pair: Pair, columns: tuple[str, str, str], margin_from: str, where: str) -> float:
    """The pair's margin; NaN where the row has no column for it."""
    if margin_from == "none":
        return 0.0
    if margin_from == "rewards":
        difference = pair.chosen_reward - pair.rejected_reward
        if math.isnan(difference):
            raise ValueError(
                f"{where}: options.margin_from is rewards, which needs the columns {columns[1]!r} and {columns[2]!r}; "
                f"it has {', '.join(map(repr, row))}"
            )
        return difference
    value = row.get(columns[0])
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{where}: {columns[0]!r} must be a finite number; got {value!r:.80}")
    return float(value)
