"""Held-out results: responses to prompts that training never saw, graded item by item."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Int
from torch import Tensor

from grape_rl.model.sampler import OnResponse
from grape_rl.reward.scores import ItemSummary, Scorer, item_table
from grape_rl.rollout.decoded_responses import Prefetch, Prompt, decode_responses, prefetch_callback
from grape_rl.rollout.records import json_number, rollout_metrics
from grape_rl.types import Rollout

NUMBERS = ("reward", "length", "truncated")
"""Fields of ``HeldOut`` that are means over all responses."""


@dataclass(frozen=True)
class HeldOut:
    """Results on the held-out rows.

    Without sampled responses, ``responses`` is 0, the means are NaN, and ``items`` are results on held-out data.

    Attributes:
        responses: number of graded responses.
        reward: their mean reward.
        length: their mean length in tokens.
        truncated: the share of responses that reached the maximum length.
        items: the mean score of each item of each category.
    """

    responses: int
    reward: float
    length: float
    truncated: float
    items: tuple[ItemSummary, ...]

    def mean(self, item: str) -> float:
        """The item's mean score, averaged over the categories that have it; NaN if none does."""
        means = [summary.mean for summary in self.items if summary.item == item]
        return math.fsum(means) / len(means) if means else math.nan

    def as_json(self) -> dict[str, Any]:
        """The results as plain data, with null for NaN."""
        # Not by dataclasses.asdict, which makes a Counter of a Counter's pairs.
        items = [
            vars(item)
            | {
                "mean": json_number(item.mean),
                "confidence": json_number(item.confidence),
                "missing": dict(item.missing),
            }
            for item in self.items
        ]
        return vars(self) | {name: json_number(getattr(self, name)) for name in NUMBERS} | {"items": items}


def read_held_out(path: Path) -> dict[int, HeldOut]:
    """The results by step, from a file that maps each step to its ``as_json``; empty if there is no such file."""
    data = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    results: dict[int, HeldOut] = {}
    for step, values in data.items():
        items = tuple(
            ItemSummary(**item | {name: _number(item.get(name, 1.0)) for name in ("mean", "confidence")})
            for item in values["items"]
        )
        results[int(step)] = HeldOut(**values | {name: _number(values[name]) for name in NUMBERS} | {"items": items})
    return results


def evaluate(
    prompts: Sequence[Prompt],
    sample: Callable[[Sequence[Int[Tensor, " _"]], OnResponse | None], Rollout],
    samples: int,
    scorer: Scorer,
    tokenizer: Any,
    prefetch: Prefetch | None = None,
) -> HeldOut:
    """Results of graded responses to held-out prompts.

    Args:
        prompts: the held-out prompts.
        sample: prompts in tokens → ``samples`` responses to each. It calls the given function at the end of each.
        samples: responses per prompt.
        scorer: grades the responses.
        tokenizer: the policy's tokenizer.
        prefetch: starts judging a response before all are sampled.
    """
    ended = prefetch_callback(prompts, samples, tokenizer, prefetch) if prefetch else None
    rollout = sample([prompt.tokens for prompt in prompts], ended)
    scores = scorer(decode_responses(rollout, prompts, tokenizer), rollout.group)
    metrics = rollout_metrics(rollout, scores)
    return HeldOut(len(rollout.tokens), metrics["reward"], metrics["length"], metrics["truncated"], item_table(scores))


def _number(value: float | None) -> float:
    return math.nan if value is None else value
