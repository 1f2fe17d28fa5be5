"""What a run is set up with, and what each kind of method makes of it."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from grape_rl.config import Config
from grape_rl.methods import Method
from grape_rl.model.forward import ForwardContext
from grape_rl.model.load import frozen_copy
from grape_rl.model.value_head import PolicyWithValue
from grape_rl.reward.canary import Canary
from grape_rl.reward.rubric import Rubric
from grape_rl.reward.scores import ItemSummary, Scorer
from grape_rl.rollout.decoded_responses import Prefetch
from grape_rl.setup.policy import Policy
from grape_rl.setup.rows import Row
from grape_rl.training.experience import ExperienceSource
from grape_rl.training.fit import Warn
from grape_rl.types import Sequences

Told = list[tuple[str, str]]
"""What there is to warn of before the first step: keys and messages."""


@dataclass(frozen=True)
class Grader:
    """Who grades responses: ``scorer`` a batch of them, by the ``rubric`` where there is one.

    Where critics judge, ``ahead`` hears of each response before its batch is whole, ``canaries`` tries the critics on
    responses that say nothing, and ``close`` gives back what they hold.
    """

    scorer: Scorer
    rubric: Rubric | None = None
    ahead: Prefetch | None = None
    canaries: Callable[[], tuple[Canary, ...]] | None = None
    close: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Setup:
    """One run: its method with the options chosen, its rows, the policy it starts from and the policy as it is now.

    The two differ where a run goes on from a checkpoint. ``grader`` is None where nothing is graded, and ``value``
    where no value function learns. ``memory`` is what a step leaves to the next beside the weights, by name: numbers,
    and the weights of a reference that moves. It is kept with each checkpoint. ``first`` is what is left to do before
    the first step, when nothing can be refused any more.
    """

    config: Config
    row: Method
    chosen: dict[str, Any]
    train: list[Row]
    test: list[Row]
    start: Policy
    now: Policy
    grader: Grader | None
    value: nn.Linear | PreTrainedModel | None = None
    memory: dict[str, Any] = field(default_factory=dict[str, Any])
    first: list[Callable[[Warn], None]] = field(default_factory=list[Callable[[Warn], None]])

    @property
    def scorer(self) -> Scorer | None:
        """What grades responses, where they are graded."""
        return self.grader and self.grader.scorer

    @property
    def ahead(self) -> Prefetch | None:
        """Who hears of responses before their batch is whole, where anybody does."""
        return self.grader and self.grader.ahead

    @property
    def trained(self) -> nn.Module:
        """All that learns: the policy, with its value function where it has one."""
        return self.now.model if self.value is None else PolicyWithValue(self.now.model, self.value)

    @cached_property
    def reference(self) -> PreTrainedModel:
        """The reference policy, made when first asked for, which is before training: it never changes.

        A copy of the start; or the start itself, where a run goes on from a checkpoint and so trains another model.
        """
        if self.start is self.now:
            return frozen_copy(self.start.model)
        return self.start.model.requires_grad_(False)  # pyright: ignore[reportReturnType]

    def begin(self, warn: Warn) -> None:
        """Do what is left to do before the first step, and let go of the start, which no step asks for."""
        for each in self.first:
            each(warn)
        self.first.clear()
        self.__dict__["start"] = self.now

    def close(self) -> None:
        """End what runs beside the run: connections to critics, and what they still judge."""
        if self.grader:
            self.grader.close()

    def precision(self) -> AbstractContextManager[Any]:
        """What one forward pass runs in.

        Never more: autocast keeps its copies of the weights until it is left, so that around a whole run it would go
        on with those of the first step.
        """
        return torch.autocast(self.now.model.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")

    def forward(self, temperature: float = 1.0) -> ForwardContext:
        """Settings of the run's forward passes, at the given temperature."""
        return ForwardContext(self.config.tokens_per_microbatch, self.precision, temperature)


@dataclass(frozen=True)
class Kind:
    """What the methods of one kind of source have in common.

    ``rows`` reads the training and the held-out rows. ``source`` makes the source of batches, with what there is to
    warn of. ``held_out`` makes the function that says how the policy, as it is when called, stands to the held-out rows
    (beside the grading of responses to them, which every kind can have); None where there is nothing to say.
    ``scalar``: what is trained is a reward model, which writes nothing that could be graded. ``batches`` tells the
    sequences of a step by its number, without running a model: responses as long as they may become.
    """

    rows: Callable[[Config, Method], tuple[list[Row], list[Row]]]
    source: Callable[[Setup], tuple[ExperienceSource, Told]]
    batches: Callable[[Setup], Callable[[int], Sequences]]
    held_out: Callable[[Setup], Callable[[], tuple[ItemSummary, ...]] | None] | None = None
    scalar: bool = False
