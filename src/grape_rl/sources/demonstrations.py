"""Demonstrations: prompts with completions to imitate, whole conversations, or texts."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from grape_rl.config.config import Config
from grape_rl.config.data import DataConfig
from grape_rl.data.chat import Example, collate_examples
from grape_rl.data.demonstrations import DemonstrationForm, tokenize_demonstrations
from grape_rl.data.rows import with_language_modeling
from grape_rl.data.teacher import synthesize_demonstrations
from grape_rl.model.forward import ForwardContext
from grape_rl.model.logprobs import row_lengths
from grape_rl.model.reference_logprobs import reference_logprobs
from grape_rl.reward.scores import ItemSummary
from grape_rl.rollout.experience import TokenExperience
from grape_rl.schema import did_you_mean
from grape_rl.setup.rows import Row, read_split, row_origins, with_prompt
from grape_rl.setup.setup import Setup, StartWarnings
from grape_rl.sources.drawing import draw_examples
from grape_rl.sources.requirement import DataRequirement, check_columns
from grape_rl.sources.source import HeldOutItems, Source
from grape_rl.training.experience import ExperienceSource
from grape_rl.training.objective import TOKEN_FIELDS, VALUE_FIELDS
from grape_rl.types import Sequences, TokenBatch

MAX_NLL = 700.0
"""exp of a larger number is infinite."""


@dataclass(frozen=True)
class Demonstrations(Source):
    """Demonstrations are read from data. Every token to learn has advantage 1, so that −A · logp is SFT's loss."""

    requirement: ClassVar[DataRequirement] = DataRequirement(
        "demonstrations (prompt and completion, or messages, or text)",
        (("prompt", "completion"), ("messages",), ("text",)),
        ("prompt-completion", "language modeling"),
    )
    unit: ClassVar[str] = "demonstrations"

    @property
    def loss_fields(self) -> frozenset[str]:
        """Fields of a token, without those of a value function."""
        return frozenset(TOKEN_FIELDS) - frozenset(VALUE_FIELDS)

    def check(self, config: Config, options: Mapping[str, Any]) -> None:
        """Check that held-out rows can be evaluated: those of tasks have no completion, so they need a grader."""
        super().check(config, options)
        if config.data.held_out_rows and config.data.tasks and not config.reward.is_set:
            raise ValueError(
                "data: held_out_rows of tasks are evaluated by grading: set reward.rubric, reward.function or "
                "reward.model"
            )

    def rows(self, config: Config, options: Mapping[str, Any]) -> tuple[list[Row], list[Row]]:
        """Training rows and held-out rows as demonstrations. Held-out rows that are graded need only prompts."""
        data = config.data
        train, test = read_split(config)
        origin, test_origin = row_origins(data)
        check_columns(config, self.requirement, train, origin)
        if data.tasks:
            train = synthesize_demonstrations(train, data.teacher.wrong, data.teacher.styles, config.seed)
            test = with_prompt(data, test, "prompt", None, test_origin) if test else []
            return with_prompt(data, train, "prompt", "completion", origin), test
        graded = config.reward.is_set
        test = _demonstration_rows(data, test, test_origin, graded) if test else []
        if graded and test and not all(row.get("prompt") for row in test):
            raise ValueError(f"{test_origin}: held-out rows are graded, so each needs a prompt, but some have none")
        return _demonstration_rows(data, train, origin), test

    def batches(self, setup: Setup) -> Callable[[int], Sequences]:
        """The demonstrations of each step."""
        demonstrations, _ = encode_demonstrations(setup, setup.train_rows, "data")
        return lambda step: collate_examples(draw_examples(demonstrations, setup.config, step))

    def experiences(self, setup: Setup) -> tuple[ExperienceSource, StartWarnings]:
        """The demonstrations of each step, with warnings of truncated rows and of rows left out."""
        demonstrations, warnings = encode_demonstrations(setup, setup.train_rows, "data")
        return lambda step: experience_from_demonstrations(draw_examples(demonstrations, setup.config, step)), warnings

    def held_out(self, setup: Setup) -> HeldOutItems | None:
        """Loss and perplexity of the held-out demonstrations; None if a row has only a prompt."""
        if not all({"completion", "messages", "text"} & row.keys() for row in setup.test_rows):
            return None
        demonstrations, _ = encode_demonstrations(setup, setup.test_rows, "held-out data")
        return lambda: summarize_demonstrations(setup.policy.model, demonstrations, setup.forward())


def encode_demonstrations(setup: Setup, rows: Sequence[Row], origin: str) -> tuple[list[Example], StartWarnings]:
    """The rows in tokens, with warnings of truncated rows and of rows left out."""
    data, policy = setup.config.data, setup.policy
    limit = min(data.max_length, policy.context)
    demonstrations, counts = tokenize_demonstrations(
        rows, demonstration_form(data, rows[0]), policy.tokenizer, policy.end_tokens, limit, origin, data.learn
    )
    warnings: StartWarnings = []
    if counts.split:
        warnings.append(
            (
                "split",
                f"{counts.split} of {counts.rows} conversations became one example for each answer, because the chat "
                "template writes earlier turns differently as the conversation grows",
            )
        )
    if counts.truncated:
        warnings.append(("cut", f"{counts.truncated} of {counts.rows} demonstrations are truncated to {limit} tokens"))
    if counts.dropped:
        rows_left_out = f"{counts.dropped} of {counts.rows} demonstrations"
        warnings.append(("left_out", f"{rows_left_out} have nothing to learn within {limit} tokens: left out"))
    return demonstrations, warnings


def experience_from_demonstrations(demonstrations: Sequence[Example]) -> TokenExperience:
    """Demonstrations as one batch: advantage 1 at every token to learn."""
    sequences = collate_examples(demonstrations)
    ones, zeros = sequences.mask.float(), torch.zeros(sequences.mask.shape)
    metrics = {
        "length": float(ones.sum(dim=1).mean()),
        "tokens": float(row_lengths(sequences.mask).sum() + sum(len(prompt) for prompt in sequences.prompts)),
    }
    return TokenExperience(sequences, TokenBatch(sequences.mask, zeros, zeros, ones), metrics)


def summarize_demonstrations(
    model: nn.Module, demonstrations: Sequence[Example], forward: ForwardContext
) -> tuple[ItemSummary, ...]:
    """Likelihood of held-out demonstrations, as items of the category "demonstrations".

    ``nll`` is the mean of −log π (nats) over all tokens to learn; ``perplexity`` is exp(nll).
    """
    sequences = collate_examples(demonstrations)
    logp = reference_logprobs(model, forward)(sequences)
    nll = -float(logp[sequences.mask].double().mean())
    means = {"nll": nll, "perplexity": math.exp(min(nll, MAX_NLL))}
    return tuple(ItemSummary("demonstrations", name, len(demonstrations), mean, {}) for name, mean in means.items())


def demonstration_form(data: DataConfig, row: Mapping[str, Any]) -> DemonstrationForm:
    """The form in which a row is a demonstration, decided by its columns: the one place that decides it.

    A column that the user has named comes first; then a completion, messages, and text. Rows of tasks have completions.
    """
    columns: dict[DemonstrationForm, str] = {
        "completion": data.completion,
        "messages": data.messages,
        "text": data.text,
    }
    present: list[DemonstrationForm] = [form for form, column in columns.items() if column in row]
    if data.prompt not in row and len(present) > 1:
        present = [form for form in present if form != "completion"]
    named: list[DemonstrationForm] = [form for form in present if columns[form] != form]
    if data.tasks or not present:
        return "completion"
    return (named or present)[0]


def _demonstration_rows(data: DataConfig, rows: list[Row], origin: str, prompt_suffices: bool = False) -> list[Row]:
    """The rows with prompt and completion, as whole conversations, or as texts: by the columns of the first row.

    Raises:
        ValueError: the first row has no demonstration, or a later row has other columns.
    """
    first, form = rows[0], demonstration_form(data, rows[0])
    if form != "completion":
        column = data.messages if form == "messages" else data.text
        if data.chat:
            raise ValueError(f"data.chat needs columns of a prompt and a completion; {origin} has {column!r}")
        return with_language_modeling(rows, column, form, data.system, origin)
    if data.completion not in first:
        if prompt_suffices:
            return with_prompt(data, rows, data.prompt, None, origin)
        if data.prompt not in first:
            columns = (data.prompt, data.completion, data.messages, data.text)
            suggestion = next((hint for column in columns if (hint := did_you_mean(column, first))), "")
            raise ValueError(
                f"{origin}: row 0 has no demonstration: {data.prompt!r} with {data.completion!r}, or "
                f"{data.messages!r}, or {data.text!r}; it has {', '.join(map(repr, first)) or 'none'}{suggestion}"
            )
    return with_prompt(data, rows, data.prompt, data.completion, origin)
