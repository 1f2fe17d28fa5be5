"""Labels: a prompt with one completion that is desirable or not, from data or from pairs, as rows and as tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from grape_rl.data.chat import Example, Tokenizer, TruncationStats, collate_examples, completion_tokens, prompt_tokens
from grape_rl.schema import did_you_mean
from grape_rl.types import Sequences

Row = dict[str, Any]

LABEL_WORDS = {"true": True, "false": False, "1": True, "0": False}
"""How a label may be written where there is only text, as in a CSV file."""


@dataclass(frozen=True)
class LabeledResponse:
    """A prompt and a response in tokens, and whether the response is desirable."""

    example: Example
    desirable: bool


def with_labels(rows: Sequence[Mapping[str, Any]], label: str = "label", source: str = "data") -> list[Row]:
    """The rows with a ``label`` of True or False made of the column so named; the other columns stay.

    Raises:
        ValueError: a row without the column, or with something else in it than true or false (or 1 or 0).

    >>> with_labels([{"good": 1}, {"good": "false"}], "good")
    [{'good': 1, 'label': True}, {'good': 'false', 'label': False}]
    """
    made: list[Row] = []
    for index, row in enumerate(rows):
        if label not in row:
            raise ValueError(
                f"{source}: row {index} has no column {label!r}, which says whether the completion is desirable; it "
                f"has {', '.join(map(repr, row)) or 'none'}{did_you_mean(label, row)}"
            )
        value = row[label]
        written = LABEL_WORDS.get(value.strip().lower()) if isinstance(value, str) else value
        if written not in (True, False) or isinstance(written, float):
            raise ValueError(f"{source}: row {index}: the label ({label!r}) must be true or false; got {value!r:.80}")
        made.append({**row, "label": bool(written)})
    return made


def unpair(rows: Sequence[Row]) -> list[Row]:
    """Rows with a ``prompt``, a ``chosen`` and a ``rejected`` as twice as many, each with one labeled ``completion``.

    >>> unpaired([{"prompt": "1+1=", "chosen": "2", "rejected": "3"}])[1]
    {'prompt': '1+1=', 'completion': '3', 'label': False}
    """
    made: list[Row] = []
    for row in rows:
        rest = {key: value for key, value in row.items() if key not in ("chosen", "rejected")}
        made.append(rest | {"completion": row["chosen"], "label": True})
        made.append(rest | {"completion": row["rejected"], "label": False})
    return made


def tokenize_labeled_responses(
    rows: Sequence[Row], tokenizer: Tokenizer, end: tuple[int, ...], max_length: int, source: str = "data"
) -> tuple[list[LabeledResponse], TruncationStats]:
    """The rows' ``prompt``, ``completion`` and ``label`` in tokens, prompt and completion at most ``max_length``.

    A completion that does not fit loses its end; a row whose prompt leaves no room for one is left out.

    Raises:
        ValueError: no row is left, and as ``prompt_tokens`` and ``completion_tokens``, naming the row.
    """
    kept: list[LabeledResponse] = []
    truncated = 0
    for index, row in enumerate(rows):
        where = f"{source}: row {index}"
        prompt = prompt_tokens(tokenizer, row["prompt"], where)
        completion = completion_tokens(tokenizer, row["prompt"], row["completion"], end, where)
        room = max_length - len(prompt)
        if room > 0:
            truncated += len(completion) > room
            kept.append(LabeledResponse(Example(prompt, completion[:room].clone()), row["label"]))
    if not kept:
        raise ValueError(
            f"{source}: none of the {len(rows)} rows has a response within the {max_length} tokens of max_length; "
            "raise it"
        )
    tokens = sum(len(each.example.completion) for each in kept)
    return kept, TruncationStats(len(rows), truncated, len(rows) - len(kept), tokens)


def mismatched_completions(examples: Sequence[Example], max_length: int) -> Sequences | None:
    """Each prompt with the completion of the next example, counted in a circle, whose prompt is another.

    So no completion stands behind its own prompt, nor behind a twin of that. A completion that does not fit into
    ``max_length`` with the other prompt loses its end. None where all prompts are the same.
    """
    count = len(examples)
    made: list[Example] = []
    for i, example in enumerate(examples):
        others = (examples[(i + step) % count] for step in range(1, count))
        other = next((each for each in others if not torch.equal(each.prompt, example.prompt)), None)
        if other is None:
            return None
        made.append(Example(example.prompt, other.completion[: max_length - len(example.prompt)]))
    return collate_examples(made)
