"""Labels: single responses, each labeled desirable or undesirable, read from data."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel

from grape_rl.config.config import Config
from grape_rl.data.chat import collate_examples
from grape_rl.data.labels import (
    LabeledResponse,
    mismatched_completions,
    tokenize_labeled_responses,
    unpair,
    with_labels,
)
from grape_rl.model.forward import ForwardContext
from grape_rl.model.reference_logprobs import LogprobFunction
from grape_rl.reward.scores import ItemSummary
from grape_rl.setup.reference import cached_reference
from grape_rl.setup.rows import Row, read_split, row_origins, with_prompt
from grape_rl.setup.setup import Setup, StartWarnings
from grape_rl.sources.drawing import draw_examples
from grape_rl.sources.preferences import as_preferences
from grape_rl.sources.requirement import DataRequirement, check_columns
from grape_rl.sources.source import ForwardPasses, HeldOutItems, Source
from grape_rl.training.experience import ExperienceSource
from grape_rl.training.labels import LabelExperience, label_logprobs, label_metrics
from grape_rl.training.objective import LABEL_FIELDS
from grape_rl.types import LabelBatch, Sequences

MAX_BALANCE = 4 / 3
"""KTO's paper advises a weight of all desirable responses of 1 to 4/3 times that of all undesirable ones."""


@dataclass(frozen=True)
class Labels(Source):
    """Responses are read from data, each with a label. A pair counts as a desirable and an undesirable response."""

    requirement: ClassVar[DataRequirement] = DataRequirement(
        "labeled responses (prompt, completion, label) or pairs (prompt, chosen, rejected)",
        (("prompt", "completion", "label"), ("chosen", "rejected")),
        ("unpaired preference",),
    )
    unit: ClassVar[str] = "labeled responses"

    @property
    def loss_fields(self) -> frozenset[str]:
        """Fields of a labeled response."""
        return frozenset(LABEL_FIELDS)

    def rows(self, config: Config, options: Mapping[str, Any]) -> tuple[list[Row], list[Row]]:
        """Training rows and held-out rows: with a ``completion`` and a ``label``, or a ``chosen`` and a ``rejected``.

        Pairs stay together here, so that a held-out prompt gets one graded response. They become two examples later.
        """
        data = config.data
        train, test = read_split(config)
        origin, test_origin = row_origins(data)
        check_columns(config, self.requirement, train, origin)
        check_columns(config, self.requirement, test, test_origin)
        if data.tasks or (data.chosen in train[0] and not {data.completion, data.label} <= train[0].keys()):
            return as_preferences(config, train, test)
        train = with_prompt(data, train, data.prompt, data.completion, origin)
        test = with_prompt(data, test, data.prompt, data.completion, test_origin)
        return with_labels(train, data.label, origin), with_labels(test, data.label, test_origin)

    def batches(self, setup: Setup) -> Callable[[int], Sequences]:
        """The responses of each step."""
        examples, _ = encode_labels(setup, setup.train_rows, "data")
        return lambda step: _stack(draw_examples(examples, setup.config, step))

    def experiences(self, setup: Setup) -> tuple[ExperienceSource, StartWarnings]:
        """The labeled responses of each step, with the reference's log-probs.

        The log-probs come from a cache, unless the loss reads mismatched responses, which depend on the batch.
        """
        examples, warnings = encode_labels(setup, setup.train_rows, "data")
        warnings += _balance_warnings(setup, examples)
        mismatch = _mismatch_limit(setup)

        def source(reference: LogprobFunction) -> ExperienceSource:
            return lambda step: experience_from_labels(draw_examples(examples, setup.config, step), reference, mismatch)

        if mismatch is not None:
            return source(_logprobs(setup, setup.reference)), warnings

        def stack(rows: Sequence[int]) -> Sequences:
            return _stack([examples[i] for i in rows])

        return cached_reference(setup, len(examples), stack, _logprobs(setup, setup.start.model), source), warnings

    def held_out(self, setup: Setup) -> HeldOutItems:
        """Accuracy and margin on the held-out labels."""
        examples, _ = encode_labels(setup, setup.test_rows, "held-out data")
        test = experience_from_labels(examples, _logprobs(setup, setup.start.model), mismatch=None)
        return lambda: summarize_labels(setup.policy.model, test, setup.forward())

    def forward_passes(self, setup: Setup, sequences: Sequences) -> ForwardPasses:
        """Three passes for mismatched responses (two by the reference, one by the policy), one for the mean gain."""
        reads = setup.objective.reads
        reads_mismatched = "mismatched_gain" in reads
        passes = 3 * reads_mismatched + ("mean_gain" in reads)
        return ForwardPasses(sequences, (sequences,) * passes, int(reads_mismatched))


def encode_labels(setup: Setup, rows: Sequence[Row], origin: str) -> tuple[list[LabeledResponse], StartWarnings]:
    """The rows as labeled responses in tokens, with warnings of truncated responses and of prompts left out."""
    policy, limit = setup.policy, _limit(setup)
    single = rows if {"completion", "label"} <= rows[0].keys() else unpair(rows)
    examples, counts = tokenize_labeled_responses(single, policy.tokenizer, policy.end_tokens, limit, origin)
    warnings: StartWarnings = []
    if counts.truncated:
        warnings.append(("cut", f"{counts.truncated} of {counts.rows} responses are truncated to {limit} tokens"))
    if counts.dropped:
        warnings.append(("left_out", f"{counts.dropped} of {counts.rows} prompts fill {limit} tokens alone: left out"))
    return examples, warnings


def experience_from_labels(
    examples: Sequence[LabeledResponse], reference: LogprobFunction, mismatch: int | None
) -> LabelExperience:
    """Labeled responses as one batch.

    ``mismatch`` is the maximum length in tokens of a mismatched response, one after another row's prompt, with that
    prompt; None for a loss that reads none.
    """
    sequences = _stack(examples)
    desirable = torch.tensor([example.desirable for example in examples])
    others = None if mismatch is None else mismatched_completions([example.example for example in examples], mismatch)
    metrics = {
        "length": float(sequences.mask.sum(dim=1).float().mean()),
        "desirable_share": float(desirable.float().mean()),
        "tokens": float(sequences.mask.sum() + sum(len(prompt) for prompt in sequences.prompts)),
    }
    one_prompt = ("one_prompt", "all responses of the step have the same prompt, so none can be mismatched")
    return LabelExperience(
        sequences,
        LabelBatch(sequences.mask, reference(sequences), desirable),
        metrics,
        others,
        None if others is None else reference(others),
        (one_prompt,) if others is None and mismatch is not None else (),
    )


def summarize_labels(model: nn.Module, experience: LabelExperience, forward: ForwardContext) -> tuple[ItemSummary, ...]:
    """Results on held-out labels, as items of the category "labels": the metrics of ``label_metrics``."""
    batch = experience.batch
    logp = label_logprobs(model, experience.sequences, forward)
    gain = (logp - batch.reference_logp).masked_fill(~batch.mask, 0).sum(dim=1)
    metrics = label_metrics(gain, batch.desirable)
    return tuple(ItemSummary("labels", name, len(batch.desirable), mean, {}) for name, mean in metrics.items())


def _balance_warnings(setup: Setup, examples: Sequence[LabeledResponse]) -> Iterator[tuple[str, str]]:
    """A warning if all labels are equal, or if their weights are out of the balance that KTO's paper advises."""
    good = sum(example.desirable for example in examples)
    bad = len(examples) - good
    if not good or not bad:
        label, other = ("desirable", "undesirable") if good else ("undesirable", "desirable")
        yield "one_label", f"all {len(examples)} responses are {label}: there is no {other} response to compare with"
        return
    if not {"desirable_weight", "undesirable_weight"} <= setup.options.keys():
        return  # a method of the user's own, whose loss has no weights
    up, down = setup.options["desirable_weight"], setup.options["undesirable_weight"]
    balance = good * up / (bad * down) if bad * down else float("inf")
    if not 1 <= balance <= MAX_BALANCE:
        low = bad * down / good
        yield (
            "unbalanced",
            f"{good} desirable responses of weight {up:g} and {bad} undesirable ones of weight {down:g} have a balance "
            f"of {balance:.3g} to 1, but KTO's paper advises 1 to 4/3: set options.desirable_weight between {low:.3g} "
            f"and {low * MAX_BALANCE:.3g}",
        )


def _stack(examples: Sequence[LabeledResponse]) -> Sequences:
    return collate_examples([example.example for example in examples])


def _logprobs(setup: Setup, model: PreTrainedModel) -> LogprobFunction:
    return partial(label_logprobs, model, forward=setup.forward())


def _mismatch_limit(setup: Setup) -> int | None:
    """The maximum length of a mismatched response with its prompt in tokens; None for a loss that reads none."""
    return _limit(setup) if "mismatched_gain" in setup.objective.reads else None


def _limit(setup: Setup) -> int:
    return min(setup.config.data.max_length, setup.policy.context)
