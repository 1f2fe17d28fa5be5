"""Unpaired preferences: one completion per prompt with a binary label, desirable or not; as rows and as tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from grape_rl.data.chat import Example, Tokenizer, TruncationStats, collate_examples, completion_tokens, prompt_tokens
from grape_rl.data.chat_template import template_arguments
from grape_rl.data.rows import Row
from grape_rl.schema import did_you_mean
from grape_rl.types import Sequences

LABEL_WORDS = {"true": True, "false": False, "1": True, "0": False}
"""The text forms of a label, for formats that have only text, such as CSV."""


@dataclass(frozen=True)
class LabeledResponse:
    """A prompt and a response in tokens; ``desirable`` is the response's label."""

    example: Example
    desirable: bool


def with_labels(rows: Sequence[Mapping[str, Any]], label: str = "label", source: str = "data") -> list[Row]:
    """The rows with a ``label`` of True or False, parsed from the column named ``label``; other columns are kept.

    Raises:
        ValueError: a row without the column, or with a value other than true or false (or 1 or 0).

    >>> with_labels([{"good": 1}, {"good": "false"}], "good")
    [{'good': 1, 'label': True}, {'good': 'false', 'label': False}]
    """
    labeled: list[Row] = []
    for index, row in enumerate(rows):
        if label not in row:
            raise ValueError(
                f"{source}: row {index} has no column {label!r}, the label that marks a completion as desirable; it "
                f"has {', '.join(map(repr, row)) or 'none'}{did_you_mean(label, row)}"
            )
        value = row[label]
        parsed = LABEL_WORDS.get(value.strip().lower()) if isinstance(value, str) else value
        if parsed not in (True, False) or isinstance(parsed, float):
            raise ValueError(f"{source}: row {index}: the label ({label!r}) must be true or false; got {value!r:.80}")
        labeled.append({**row, "label": bool(parsed)})
    return labeled


def unpair(rows: Sequence[Row]) -> list[Row]:
    """Two rows per preference pair: the chosen completion labeled True, and the rejected one labeled False.

    >>> unpair([{"prompt": "1+1=", "chosen": "2", "rejected": "3"}])[1]
    {'prompt': '1+1=', 'completion': '3', 'label': False}
    """
    labeled: list[Row] = []
    for row in rows:
        rest = {key: value for key, value in row.items() if key not in ("chosen", "rejected")}
        labeled.append(rest | {"completion": row["chosen"], "label": True})
        labeled.append(rest | {"completion": row["rejected"], "label": False})
    return labeled


def tokenize_labeled_responses(
    rows: Sequence[Row], tokenizer: Tokenizer, end: tuple[int, ...], max_length: int, source: str = "data"
) -> tuple[list[LabeledResponse], TruncationStats]:
    """The rows' ``prompt``, ``completion`` and ``label`` in tokens, prompt and completion at most ``max_length``.

    A longer completion is truncated on the right. A row is dropped if its prompt leaves no room for a completion.

    Raises:
        ValueError: no row is left; and as ``prompt_tokens`` and ``completion_tokens``, naming the row.
    """
    responses: list[LabeledResponse] = []
    truncated = 0
    for index, row in enumerate(rows):
        where = f"{source}: row {index}"
        arguments = template_arguments(row, where)
        prompt = prompt_tokens(tokenizer, row["prompt"], where, arguments)
        completion = completion_tokens(tokenizer, row["prompt"], row["completion"], end, where, arguments)
        room = max_length - len(prompt)
        if room > 0:
            truncated += len(completion) > room
            responses.append(LabeledResponse(Example(prompt, completion[:room].clone()), row["label"]))
    if not responses:
        raise ValueError(
            f"{source}: none of the {len(rows)} rows has a response within the {max_length} tokens of max_length; "
            "raise it"
        )
    tokens = sum(len(response.example.completion) for response in responses)
    return responses, TruncationStats(len(rows), truncated, len(rows) - len(responses), tokens)


def mismatched_completions(examples: Sequence[Example], max_length: int) -> Sequences | None:
    """Each prompt with the completion of the next example (cyclically) that has another prompt: KTO's KL samples.

    A completion never follows its own prompt or a copy of it. A completion is truncated on the right where it exceeds
    ``max_length`` with its new prompt. None if all prompts are equal.
    """
    count = len(examples)
    mismatched: list[Example] = []
    for i, example in enumerate(examples):
        following = (examples[(i + step) % count] for step in range(1, count))
        other = next((e for e in following if not torch.equal(e.prompt, example.prompt)), None)
        if other is None:
            return None
        mismatched.append(Example(example.prompt, other.completion[: max_length - len(example.prompt)]))
    return collate_examples(mismatched)
