"""The objects of one run."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from grape_rl.config.config import Config
from grape_rl.model.forward import ForwardContext
from grape_rl.model.load import frozen_copy
from grape_rl.model.value_head import PolicyWithValue
from grape_rl.setup.graders import Grader
from grape_rl.setup.policy import Policy
from grape_rl.setup.rows import Row
from grape_rl.training.fit import Warn
from grape_rl.training.objective import Objective

StartWarnings = list[tuple[str, str]]
"""Keys and messages of warnings that are logged before the first step."""


@dataclass(frozen=True)
class Setup:
    """The objects of one run.

    Attributes:
        config: its configuration.
        options: all options of its method, defaults included.
        objective: the method's objective under these options.
        update: the function that updates the weights from a step's experience.
        train_rows: the training rows, with the columns that the method's source reads.
        test_rows: the held-out rows.
        start: the policy at the start of the run.
        policy: the policy that is trained. It differs from ``start`` in a run that is resumed from a checkpoint.
        grader: grades responses; None if nothing is graded.
        value: the value function; None if the method has none.
        memory: state by name that is carried from step to step in addition to the weights: numbers, and the weights of
            a moving reference. It is saved in each checkpoint.
        before_first_step: work that is postponed until every check has passed.
    """

    config: Config
    options: dict[str, Any]
    objective: Objective
    update: Callable[..., dict[str, float]]
    train_rows: list[Row]
    test_rows: list[Row]
    start: Policy
    policy: Policy
    grader: Grader | None = None
    value: nn.Linear | PreTrainedModel | None = None
    memory: dict[str, Any] = field(default_factory=dict[str, Any])
    before_first_step: list[Callable[[Warn], None]] = field(default_factory=list[Callable[[Warn], None]])

    @property
    def trained(self) -> nn.Module:
        """All parameters that learn: the policy, with its value function if it has one."""
        return self.policy.model if self.value is None else PolicyWithValue(self.policy.model, self.value)

    @cached_property
    def reference(self) -> PreTrainedModel:
        """The frozen reference policy, created on first use, which is before training.

        It is a copy of ``start``; or ``start`` itself in a resumed run, whose policy is loaded from a checkpoint.
        """
        if self.start is self.policy:
            return frozen_copy(self.start.model)
        return self.start.model.requires_grad_(False)  # pyright: ignore[reportReturnType]

    def begin(self, warn: Warn) -> None:
        """Do the postponed work, then drop the reference to ``start``, which no step needs."""
        for work in self.before_first_step:
            work(warn)
        self.before_first_step.clear()
        self.__dict__["start"] = self.policy

    def close(self) -> None:
        """Close the critics' connections and cancel pending judgments."""
        if self.grader:
            self.grader.close()

    def forward(self, temperature: float = 1.0) -> ForwardContext:
        """Settings of the run's forward passes at that temperature."""
        return ForwardContext(self.config.tokens_per_microbatch, self.precision, temperature)

    def precision(self) -> AbstractContextManager[Any]:
        """The autocast context of one forward pass.

        Autocast caches copies of the weights until the context ends. A context around several steps would keep using
        the weights of the first.
        """
        return torch.autocast(self.policy.model.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")
