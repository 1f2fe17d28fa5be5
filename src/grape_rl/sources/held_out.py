"""Held-out results: responses to prompts that training never saw, graded item by item."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from grape_rl.data.chat import Example, collate_examples
from grape_rl.model.forward import ForwardContext
from grape_rl.model.reference_logprobs import reference_logprobs
from grape_rl.reward.scores import ItemSummary, Scorer, item_table
from grape_rl.rollout.collect import Sampler
from grape_rl.rollout.decoded_responses import Prefetch, Prompt, decode_responses, prefetch_callback
from grape_rl.rollout.records import json_number, rollout_metrics
from grape_rl.training.labels import LabelExperience, label_logprobs, label_metrics
from grape_rl.training.pairs import PairExperience, pair_logprobs, pair_loss_inputs, pair_metrics

NUMBERS = ("reward", "length", "truncated")
"""What ``HeldOut`` says of all responses together."""


@dataclass(frozen=True)
class HeldOut:
    """Results on held-out prompts: the mean reward, each item's mean, and how long responses are.

    A run that samples no held-out responses has 0 of them, NaN in their place, and the items of its preferences or
    demonstrations.
    """

    responses: int
    reward: float
    length: float
    truncated: float
    items: tuple[ItemSummary, ...]

    def mean(self, item: str) -> float:
        """The item's mean score, averaged over the categories that have it; NaN if none does."""
        means = [each.mean for each in self.items if each.item == item]
        return math.fsum(means) / len(means) if means else math.nan

    def as_json(self) -> dict[str, Any]:
        """The same as plain data, null for what is missing."""
        # Not by asdict: of a Counter it makes one that counts the pairs.
        items = [vars(item) | {"mean": json_number(item.mean), "missing": dict(item.missing)} for item in self.items]
        return vars(self) | {name: json_number(getattr(self, name)) for name in NUMBERS} | {"items": items}


def read_held_out(path: Path) -> dict[int, HeldOut]:
    """The results by step of a file that maps each step to its ``as_json``; none if there is no such file."""
    told = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    found: dict[int, HeldOut] = {}
    for step, each in told.items():
        items = tuple(ItemSummary(**item | {"mean": _number(item["mean"])}) for item in each["items"])
        found[int(step)] = HeldOut(**each | {name: _number(each[name]) for name in NUMBERS} | {"items": items})
    return found


def held_out(
    prompts: Sequence[Prompt],
    sampler: Sampler,
    scorer: Scorer,
    tokenizer: Any,
    samples: int,
    seed: int,
    version: int,
    ahead: Prefetch | None = None,
) -> HeldOut:
    """``samples`` responses to each prompt, graded. The same ``seed`` draws with the same random numbers each time."""
    ended = prefetch_callback(prompts, samples, tokenizer, ahead) if ahead else None
    rollout = sampler([p.tokens for p in prompts], samples, seed, version, ended)
    scores = scorer(decode_responses(rollout, prompts, tokenizer), rollout.group)
    told = rollout_metrics(rollout, scores)
    return HeldOut(len(rollout.tokens), told["reward"], told["length"], told["truncated"], item_table(scores))


def held_out_pairs(
    model: nn.Module,
    experience: PairExperience,
    forward: ForwardContext,
) -> tuple[ItemSummary, ...]:
    """How the policy stands to held-out preferences, as items of a category "preferences".

    ``accuracy`` and ``margin`` are those of the rewards that it implies against the reference (log π itself without
    one); ``likelier`` is the share of pairs whose chosen response it gives the higher probability.
    """
    logp = pair_logprobs(model, experience.sequences, forward)
    fields = pair_loss_inputs(logp, experience.batch)
    told = pair_metrics(fields)
    told["likelier"] = ((fields["chosen_logp"] - fields["rejected_logp"]).sign() + 1) / 2
    return tuple(
        ItemSummary("preferences", name, len(told[name]), float(told[name].mean()), {})
        for name in ("accuracy", "likelier", "margin")
    )


def held_out_labels(
    model: nn.Module,
    experience: LabelExperience,
    forward: ForwardContext,
) -> tuple[ItemSummary, ...]:
    """How the policy stands to held-out labels, as items of a category "labels": those of ``label_metrics``."""
    batch = experience.batch
    logp = label_logprobs(model, experience.sequences, forward)
    told = label_metrics((logp - batch.reference_logp).masked_fill(~batch.mask, 0).sum(dim=1), batch.desirable)
    return tuple(ItemSummary("labels", name, len(batch.desirable), value, {}) for name, value in told.items())


def held_out_demonstrations(
    model: nn.Module,
    examples: Sequence[Example],
    forward: ForwardContext,
) -> tuple[ItemSummary, ...]:
    """How likely the policy makes held-out demonstrations, as items of a category "demonstrations".

    ``nll`` is −log π a token learned (nats), over all of them alike; ``perplexity`` is exp(nll).
    """
    sequences = collate_examples(examples)
    logp = reference_logprobs(model, forward)(sequences)
    nll = -float(logp[sequences.mask].double().mean())
    told = {"nll": nll, "perplexity": math.exp(min(nll, 700.0))}
    return tuple(ItemSummary("demonstrations", name, len(examples), value, {}) for name, value in told.items())


def _number(value: float | None) -> float:
    return math.nan if value is None else value
