"""Preferences: pairs of a chosen and a rejected response, read from data."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from grape_rl.config.config import Config
from grape_rl.data.preferences import Pair, collate_pairs, synthesize_preferences, tokenize_pairs, with_preferences
from grape_rl.model.forward import ForwardContext
from grape_rl.model.load import frozen_copy
from grape_rl.model.reference_logprobs import LogprobFunction
from grape_rl.reward.scores import ItemSummary
from grape_rl.setup.reference import cached_reference
from grape_rl.setup.rows import Row, as_messages, read_split, row_origins
from grape_rl.setup.setup import Setup, StartWarnings
from grape_rl.sources.drawing import draw_examples
from grape_rl.sources.requirement import DataRequirement, check_columns
from grape_rl.sources.source import ForwardPasses, HeldOutItems, Source
from grape_rl.training.experience import ExperienceSource
from grape_rl.training.moving_reference import moving_reference
from grape_rl.training.objective import DISTRIBUTION_FIELDS, PAIR_FIELDS
from grape_rl.training.pairs import (
    PairExperience,
    pair_logprobs,
    pair_loss_inputs,
    pair_metrics,
    two_pass_pair_gradient,
)
from grape_rl.types import PairBatch, Sequences

PAIR_REQUIREMENT = DataRequirement("pairs (prompt, chosen, rejected)", (("chosen", "rejected"),), ("preference",))
"""Pairs of responses. The prompt may be the common prefix of both."""

REWARD_COLUMNS = ("chosen_reward", "rejected_reward")
"""Columns of the responses' rewards in rows that are generated for tasks."""


@dataclass(frozen=True)
class Preferences(Source):
    """Pairs are read from data: prompts, each with a chosen and a rejected response."""

    requirement: ClassVar[DataRequirement] = PAIR_REQUIREMENT
    unit: ClassVar[str] = "pairs"

    @property
    def loss_fields(self) -> frozenset[str]:
        """Fields of a pair."""
        return frozenset(PAIR_FIELDS)

    def rows(self, config: Config, options: Mapping[str, Any]) -> tuple[list[Row], list[Row]]:
        """Training rows and held-out rows, each with a ``prompt``, a ``chosen`` and a ``rejected``."""
        return read_preferences(config)

    def batches(self, setup: Setup) -> Callable[[int], Sequences]:
        """The pairs of each step."""
        examples, _ = encode_pairs(setup, setup.train_rows, "data")
        return lambda step: collate_pairs(draw_examples(examples, setup.config, step))

    def experiences(self, setup: Setup) -> tuple[ExperienceSource, StartWarnings]:
        """The pairs of each step, with the reference's log-probs if the loss reads them.

        The log-probs come from a cache, unless the update moves the reference or the loss reads its whole
        distributions.
        """
        examples, warnings = encode_pairs(setup, setup.train_rows, "data")

        def source(reference: LogprobFunction | None, model: PreTrainedModel | None = None) -> ExperienceSource:
            return lambda step: experience_from_pairs(draw_examples(examples, setup.config, step), reference, model)

        if not reads_reference(setup):
            return source(None), warnings
        if needs_reference_model(setup):
            return source(*pair_reference(setup)), warnings

        def stack(rows: Sequence[int]) -> Sequences:
            return collate_pairs([examples[i] for i in rows])

        return cached_reference(setup, len(examples), stack, _logprobs(setup, setup.start.model), source), warnings

    def held_out(self, setup: Setup) -> HeldOutItems:
        """Accuracy and margin on the held-out pairs."""
        examples, _ = encode_pairs(setup, setup.test_rows, "held-out data")
        test = experience_from_pairs(examples, _logprobs(setup, setup.start.model) if reads_reference(setup) else None)
        return lambda: summarize_pairs(setup.policy.model, test, setup.forward())

    def forward_passes(self, setup: Setup, sequences: Sequences) -> ForwardPasses:
        """One pass by the reference if it is not cached, and one by the policy if the loss compares pairs."""
        references = int(needs_reference_model(setup))
        passes = references + (setup.update is two_pass_pair_gradient)
        return ForwardPasses(sequences, (sequences,) * passes, references)


def read_preferences(config: Config) -> tuple[list[Row], list[Row]]:
    """Training rows and held-out rows, each with a ``prompt``, a ``chosen`` and a ``rejected``.

    Raises:
        ValueError: the data has other columns, or as ``as_preferences``.
    """
    splits = read_split(config)
    for rows, origin in zip(splits, row_origins(config.data), strict=True):
        check_columns(config, PAIR_REQUIREMENT, rows, origin)
    return as_preferences(config, *splits)


def as_preferences(config: Config, train: list[Row], test: list[Row]) -> tuple[list[Row], list[Row]]:
    """Rows as read, with a ``prompt``, a ``chosen`` and a ``rejected`` each.

    Raises:
        ValueError: as ``with_preferences`` and ``contrasted``.
    """
    data = config.data
    if data.tasks:  # train and test together, so that a task with one held-out row has wrong answers to choose from
        rows = synthesize_preferences([*train, *test], data.teacher.wrong, list(data.teacher.styles), config.seed)
        rows = [_conversation(row, "prompt", "chosen", "rejected") for row in rows] if data.chat else rows
        rows = with_preferences(rows, system=data.system, source="tasks")
        return rows[: len(train)], rows[len(train) :]
    columns = (data.prompt, data.chosen, data.rejected)
    if data.chat:
        train, test = ([_conversation(row, *columns) for row in rows] for rows in (train, test))
    origin, test_origin = row_origins(data)
    return (
        with_preferences(train, *columns, data.system, origin),
        with_preferences(test, *columns, data.system, test_origin),
    )


def encode_pairs(setup: Setup, rows: Sequence[Row], origin: str) -> tuple[list[Pair], StartWarnings]:
    """The rows as pairs in tokens, with warnings of truncated pairs and of pairs left out.

    A loss that reads rewards is evaluated once on all of them, so that rewards it refuses are reported before training.

    Raises:
        ValueError: as ``pairs``, or the loss refuses the rewards.
    """
    data, policy = setup.config.data, setup.policy
    limit = min(data.max_length, policy.context)
    columns = (data.chosen_reward, data.rejected_reward) if data.source else REWARD_COLUMNS
    examples, counts = tokenize_pairs(rows, policy.tokenizer, policy.end_tokens, limit, columns, origin)
    _try_rewards(setup, examples, origin, f"the columns {columns[0]!r} and {columns[1]!r}", rows[0])
    warnings: StartWarnings = []
    if counts.truncated:
        warnings.append(("cut", f"{counts.truncated} of {counts.rows} pairs are truncated to {limit} tokens"))
    if counts.dropped:
        warnings.append(("left_out", f"{counts.dropped} of {counts.rows} pairs are equal in {limit} tokens: left out"))
    return examples, warnings


def experience_from_pairs(
    examples: Sequence[Pair], reference: LogprobFunction | None, reference_model: nn.Module | None = None
) -> PairExperience:
    """Pairs as one batch."""
    rewards = torch.tensor([[pair.chosen_reward, pair.rejected_reward] for pair in examples])
    return experience_from_pair_sequences(collate_pairs(examples), rewards, reference, reference_model)


def experience_from_pair_sequences(
    sequences: Sequences,
    rewards: Float[Tensor, "p 2"],
    reference: LogprobFunction | None,
    reference_model: nn.Module | None = None,
) -> PairExperience:
    """Stacked pairs with the rewards of their responses as one batch. Without a reference, its log-probs are 0."""
    reference_logp = reference(sequences) if reference else torch.zeros(sequences.mask.shape)
    chosen, rejected = sequences.mask.sum(dim=1).float().chunk(2)
    metrics = {
        "chosen_length": float(chosen.mean()),
        "rejected_length": float(rejected.mean()),
        "tokens": float(sequences.mask.sum() + sum(len(prompt) for prompt in sequences.prompts)),
    }
    batch = PairBatch(sequences.mask, reference_logp, rewards[:, 0], rewards[:, 1])
    return PairExperience(sequences, batch, metrics, reference=reference_model)


def summarize_pairs(model: nn.Module, experience: PairExperience, forward: ForwardContext) -> tuple[ItemSummary, ...]:
    """Results on held-out pairs, as items of the category "preferences".

    ``accuracy`` and ``margin`` are of the implied rewards, log(π/π_ref), or log π without a reference. ``likelier`` is
    the share of pairs whose chosen response is more likely than the rejected one.
    """
    fields = pair_loss_inputs(pair_logprobs(model, experience.sequences, forward), experience.batch)
    metrics = pair_metrics(fields)
    metrics["likelier"] = ((fields["chosen_logp"] - fields["rejected_logp"]).sign() + 1) / 2
    return tuple(
        ItemSummary("preferences", name, len(metrics[name]), float(metrics[name].mean()), {})
        for name in ("accuracy", "likelier", "margin")
    )


def pair_reference(setup: Setup, temperature: float = 1.0) -> tuple[LogprobFunction | None, PreTrainedModel | None]:
    """The reference's log-probs of pairs and the reference model; None without a loss that reads them.

    If the update moves the reference, it is a copy of its own, and its weights are part of the run's memory.
    """
    if not reads_reference(setup):
        return None, None
    if setup.update is not moving_reference:
        return _logprobs(setup, setup.reference, temperature), setup.reference
    model = frozen_copy(setup.start.model)
    setup.memory.update((f"reference.{name}", weight) for name, weight in model.named_parameters())
    return _logprobs(setup, model, temperature), model


def reads_reference(setup: Setup) -> bool:
    """True if the loss of pairs reads anything of the reference."""
    return any(name.startswith("reference_") for name in setup.objective.reads)


def needs_reference_model(setup: Setup) -> bool:
    """True if cached log-probs do not suffice: the update moves the reference, or the loss reads its distributions."""
    reads_distributions = not setup.objective.reads.isdisjoint(DISTRIBUTION_FIELDS)
    return reads_reference(setup) and (setup.update is moving_reference or reads_distributions)


def _try_rewards(setup: Setup, examples: Sequence[Pair], origin: str, columns: str, row: Row) -> None:
    values = torch.tensor([[pair.chosen_reward, pair.rejected_reward] for pair in examples])
    rewards = {"chosen_reward": values[:, 0], "rejected_reward": values[:, 1]}
    for term in setup.objective.terms:
        if not rewards.keys() & set(term.parameters):
            continue
        try:
            term.function(**{name: rewards.get(name, values[:, 0]) for name in term.parameters}, **term.options)
        except ValueError as error:
            raise ValueError(
                f"{origin}: {setup.config.method}: {error} (rewards are read from {columns}; the columns are "
                f"{', '.join(map(repr, row))})"
            ) from error


def _conversation(row: Row, prompt: str, chosen: str, rejected: str) -> Row:
    """The row with its plain prompt and responses as messages. Other faults are left to the code that reads the row.

    Raises:
        ValueError: plain responses without a prompt: their common prefix is not a user message.
    """
    if prompt not in row:
        if any(isinstance(row.get(name), str) for name in (chosen, rejected)):
            raise ValueError(f"data.chat makes messages of plain text, so it needs a column {prompt!r}; there is none")
        return row
    if isinstance(row[prompt], str) and (not row[prompt].strip() or isinstance(row.get(chosen), list)):
        return row
    roles = {prompt: "user", chosen: "assistant", rejected: "assistant"}
    return row | {name: as_messages(row[name], role) for name, role in roles.items() if name in row}


def _logprobs(setup: Setup, model: PreTrainedModel, temperature: float = 1.0) -> LogprobFunction:
    return partial(pair_logprobs, model, forward=setup.forward(temperature))
