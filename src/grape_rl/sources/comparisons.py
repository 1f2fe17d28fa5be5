"""Comparisons: pairs of responses for a reward model; the chosen response should score higher."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from grape_rl.config.config import Config
from grape_rl.data.comparisons import PairWithMargin, tokenize_comparisons
from grape_rl.data.preferences import collate_pairs
from grape_rl.model.forward import ForwardContext
from grape_rl.model.reward_head import set_step_separator
from grape_rl.reward.scores import ItemSummary
from grape_rl.setup.rows import Row
from grape_rl.setup.setup import Setup, StartWarnings
from grape_rl.sources.drawing import draw_examples
from grape_rl.sources.method_function import MethodFunction
from grape_rl.sources.preferences import PAIR_REQUIREMENT, REWARD_COLUMNS, read_preferences
from grape_rl.sources.requirement import DataRequirement
from grape_rl.sources.source import HeldOutItems, Source
from grape_rl.training.experience import ExperienceSource
from grape_rl.training.objective import COMPARISON_FIELDS
from grape_rl.training.reward_modeling import RewardPairBatch, comparison_loss_inputs, comparison_metrics
from grape_rl.types import Sequences

COMPARISON_INPUTS = frozenset({"rows", "tokenizer", "end", "max_length", "columns", "source"})
"""Inputs of the function that turns rows into comparisons."""


@dataclass(frozen=True)
class Comparisons(Source):
    """Pairs are read from data, as ``Preferences``, but the trained model scores them. ``encode`` makes the tokens."""

    requirement: ClassVar[DataRequirement] = PAIR_REQUIREMENT
    unit: ClassVar[str] = "pairs"
    trains_reward_model: ClassVar[bool] = True

    encode: Callable[..., Any] = tokenize_comparisons

    @property
    def loss_fields(self) -> frozenset[str]:
        """Scores of a pair, and its margin."""
        return frozenset(COMPARISON_FIELDS)

    @property
    def functions(self) -> tuple[MethodFunction, ...]:
        """The function that makes a batch."""
        return (MethodFunction(self.encode, COMPARISON_INPUTS),)

    def rows(self, config: Config, options: Mapping[str, Any]) -> tuple[list[Row], list[Row]]:
        """Training rows and held-out rows, each with a ``prompt``, a ``chosen`` and a ``rejected``."""
        return read_preferences(config)

    def batches(self, setup: Setup) -> Callable[[int], Sequences]:
        """The pairs of each step."""
        examples, _ = self._encode(setup, setup.train_rows, "data")
        return lambda step: experience_from_comparisons(draw_examples(examples, setup.config, step)).sequences

    def experiences(self, setup: Setup) -> tuple[ExperienceSource, StartWarnings]:
        """The pairs of each step with their margins. The model is marked as one that scores whole responses."""
        set_step_separator(setup.policy.model, None)
        examples, warnings = self._encode(setup, setup.train_rows, "data")
        return lambda step: experience_from_comparisons(draw_examples(examples, setup.config, step)), warnings

    def held_out(self, setup: Setup) -> HeldOutItems:
        """Accuracy, margin and score on the held-out pairs."""
        examples, _ = self._encode(setup, setup.test_rows, "held-out data")
        test = experience_from_comparisons(examples)
        return lambda: summarize_comparisons(setup.policy.model, test, setup.forward())

    def _encode(self, setup: Setup, rows: Sequence[Row], origin: str) -> tuple[list[PairWithMargin], StartWarnings]:
        """The rows as pairs in tokens with their margins, with a warning of pairs left out."""
        data, policy = setup.config.data, setup.policy
        limit = min(data.max_length, policy.context)
        columns = ("margin", *REWARD_COLUMNS)
        if data.source:
            columns = (data.margin, data.chosen_reward, data.rejected_reward)
        encode = MethodFunction(self.encode, COMPARISON_INPUTS).bind(setup.options)
        examples, counts = encode(rows, policy.tokenizer, policy.end_tokens, limit, columns, origin)
        message = f"{counts.dropped} of {counts.rows} pairs do not fit into {limit} tokens, or do not differ: left out"
        return examples, [("left_out", message)] if counts.dropped else []


def experience_from_comparisons(examples: Sequence[PairWithMargin]) -> RewardPairBatch:
    """Comparisons as one batch."""
    sequences = collate_pairs([example.pair for example in examples])
    chosen, rejected = sequences.mask.sum(dim=1).float().chunk(2)
    metrics = {
        "chosen_length": float(chosen.mean()),
        "rejected_length": float(rejected.mean()),
        "tokens": float(sequences.mask.sum() + sum(len(prompt) for prompt in sequences.prompts)),
    }
    return RewardPairBatch(sequences, torch.tensor([example.margin for example in examples]), metrics)


@torch.no_grad()
def summarize_comparisons(
    model: nn.Module, experience: RewardPairBatch, forward: ForwardContext
) -> tuple[ItemSummary, ...]:
    """Results on held-out pairs, as items of the category "preferences": accuracy, mean margin and mean score."""
    parts = [comparison_metrics(fields) for fields in comparison_loss_inputs(model, experience, forward)]
    columns = {name: torch.cat([part[name] for part in parts]) for name in ("accuracy", "margin", "reward")}
    return tuple(
        ItemSummary("preferences", name, len(values), float(values.double().mean()), {})
        for name, values in columns.items()
    )
