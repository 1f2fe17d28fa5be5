"""Steps: solutions whose steps are labeled right or wrong, for a process reward model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from grape_rl.config.config import Config
from grape_rl.data.steps import LabeledSolution, collate_solutions, synthesize_steps, tokenize_solutions, with_steps
from grape_rl.model.forward import ForwardContext
from grape_rl.model.reward_head import set_step_separator
from grape_rl.reward.scores import ItemSummary
from grape_rl.setup.rows import Row, read_split, row_origins, with_prompt
from grape_rl.setup.setup import Setup, StartWarnings
from grape_rl.sources.drawing import draw_examples
from grape_rl.sources.method_function import MethodFunction
from grape_rl.sources.requirement import DataRequirement, check_columns
from grape_rl.sources.source import HeldOutItems, Source
from grape_rl.training.experience import ExperienceSource
from grape_rl.training.objective import STEP_FIELDS
from grape_rl.training.reward_modeling import StepLabelBatch, step_loss_inputs, step_metrics
from grape_rl.types import Sequences

SOLUTION_INPUTS = frozenset({"rows", "tokenizer", "max_length", "source"})
"""Inputs of the function that turns rows into labeled solutions."""


@dataclass(frozen=True)
class Steps(Source):
    """Solutions are read from data. Each step has a label and gets a score. ``encode`` tokenizes the solutions."""

    requirement: ClassVar[DataRequirement] = DataRequirement(
        "solutions in steps (prompt, completions, labels)",
        (("prompt", "completions", "labels"),),
        ("stepwise supervision",),
    )
    unit: ClassVar[str] = "solutions"
    trains_reward_model: ClassVar[bool] = True

    encode: Callable[..., Any] = tokenize_solutions

    @property
    def loss_fields(self) -> frozenset[str]:
        """The logit that a step is right, and the step's label."""
        return frozenset(STEP_FIELDS)

    @property
    def functions(self) -> tuple[MethodFunction, ...]:
        """The function that tokenizes the solutions."""
        return (MethodFunction(self.encode, SOLUTION_INPUTS),)

    def rows(self, config: Config, options: Mapping[str, Any]) -> tuple[list[Row], list[Row]]:
        """Training rows and held-out rows, each with a ``prompt``, its ``completions`` (steps) and their ``labels``.

        A training row also has its ``completion``, the steps as one text, for a tokenizer that is built from the data.
        """
        data = config.data
        (train, test), origins = read_split(config), row_origins(data)
        for rows, origin in zip((train, test), origins, strict=True):
            check_columns(config, self.requirement, rows, origin)
        prompt, columns = data.prompt, (data.completions, data.labels)
        if data.tasks:  # train and test together, so that a task with one held-out row has wrong answers to choose from
            rows = synthesize_steps([*train, *test], data.teacher.wrong, config.seed)
            train, test = rows[: len(train)], rows[len(train) :]
            prompt, columns = "prompt", ("completions", "labels")
        train, test = (
            with_prompt(data, with_steps(rows, *columns, origin), prompt, None, origin) if rows else []
            for rows, origin in zip((train, test), origins, strict=True)
        )
        separator = options["separator"]
        return [{**row, "completion": "".join(step + separator for step in row["completions"])} for row in train], test

    def batches(self, setup: Setup) -> Callable[[int], Sequences]:
        """The solutions of each step of the run."""
        examples, _ = self._encode(setup, setup.train_rows, "data")
        return lambda step: experience_from_solutions(draw_examples(examples, setup.config, step)).sequences

    def experiences(self, setup: Setup) -> tuple[ExperienceSource, StartWarnings]:
        """The solutions of each step of the run. The separator of the steps is stored in the model's configuration."""
        set_step_separator(setup.policy.model, setup.options["separator"])
        examples, warnings = self._encode(setup, setup.train_rows, "data")
        return lambda step: experience_from_solutions(draw_examples(examples, setup.config, step)), warnings

    def held_out(self, setup: Setup) -> HeldOutItems:
        """Accuracy on the held-out steps."""
        examples, _ = self._encode(setup, setup.test_rows, "held-out data")
        test = experience_from_solutions(examples)
        return lambda: summarize_steps(setup.policy.model, test, setup.forward())

    def _encode(self, setup: Setup, rows: Sequence[Row], origin: str) -> tuple[list[LabeledSolution], StartWarnings]:
        """The rows as solutions in tokens, with warnings of solutions that lost steps and of those left out."""
        policy = setup.policy
        limit = min(setup.config.data.max_length, policy.context)
        encode = MethodFunction(self.encode, SOLUTION_INPUTS).bind(setup.options)
        examples, counts = encode(rows, policy.tokenizer, limit, origin)
        warnings: StartWarnings = []
        if counts.truncated:
            message = f"{counts.truncated} of {counts.rows} solutions lost the steps beyond {limit} tokens"
            warnings.append(("cut", message))
        if counts.dropped:
            message = f"{counts.dropped} of {counts.rows} solutions have no labeled step in {limit} tokens: left out"
            warnings.append(("left_out", message))
        return examples, warnings


def experience_from_solutions(examples: Sequence[LabeledSolution]) -> StepLabelBatch:
    """Solutions as one batch."""
    sequences, label = collate_solutions(examples)
    metrics = {
        "labeled_steps": float((~label.isnan()).sum()),
        "length": float(sequences.mask.sum(dim=1).float().mean()),
        "tokens": float(sequences.mask.sum() + sum(len(prompt) for prompt in sequences.prompts)),
    }
    return StepLabelBatch(sequences, label, metrics)


@torch.no_grad()
def summarize_steps(model: nn.Module, experience: StepLabelBatch, forward: ForwardContext) -> tuple[ItemSummary, ...]:
    """Accuracy on held-out steps, as items of the category "steps": of all, of the right and of the wrong steps."""
    parts = list(step_loss_inputs(model, experience, forward))
    accuracy = torch.cat([step_metrics(fields)["accuracy"] for fields in parts])
    label = torch.cat([fields["step_label"] for fields in parts])
    groups = {
        "accuracy": accuracy,
        "accuracy_right": accuracy[label == 1],
        "accuracy_wrong": accuracy[label == 0],
    }
    return tuple(
        ItemSummary("steps", name, len(values), float(values.double().mean()), {}) for name, values in groups.items()
    )
