"""Held-out results: responses to prompts that training never saw, graded item by item."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from grape_rl.reward.scores import ItemSummary, Scorer, item_table
from grape_rl.training.source import Prompt, Sampler, graded_responses, rollout_metrics


@dataclass(frozen=True)
class HeldOut:
    """Results on held-out prompts: the mean reward, each item's mean, and how long responses are."""

    responses: int
    reward: float
    length: float
    cut_off: float
    items: tuple[ItemSummary, ...]

    def mean(self, item: str) -> float:
        """The item's mean score, averaged over the categories that have it; NaN if none does."""
        means = [each.mean for each in self.items if each.item == item]
        return math.fsum(means) / len(means) if means else math.nan

    def as_json(self) -> dict[str, Any]:
        """The same as plain data, null for what is missing."""
        plain = asdict(self) | {"items": [asdict(i) | {"mean": _null(i.mean)} for i in self.items]}
        return plain | {"reward": _null(self.reward)}


def held_out(
    prompts: Sequence[Prompt], sampler: Sampler, scorer: Scorer, tokenizer: Any, samples: int, seed: int, version: int
) -> HeldOut:
    """``samples`` responses to each prompt, graded. The same ``seed`` draws with the same random numbers each time."""
    rollout = sampler([p.tokens for p in prompts], samples, seed, version)
    scores = scorer(graded_responses(rollout, prompts, tokenizer), rollout.group)
    told = rollout_metrics(rollout, scores)
    return HeldOut(len(rollout.tokens), told["reward"], told["length"], told["cut_off"], item_table(scores))


def _null(value: float) -> float | None:
    return value if math.isfinite(value) else None
