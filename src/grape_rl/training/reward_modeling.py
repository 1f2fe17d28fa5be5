"""Updates of reward models on pairs of responses, and of process reward models on labeled steps."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from grape_rl.model.forward import ForwardContext
from grape_rl.model.logprobs import microbatches, select_rows
from grape_rl.model.reward_head import sequence_scores, token_scores
from grape_rl.training.objective import Objective, example_loss, loss_metrics
from grape_rl.training.optimizer import clipped_step
from grape_rl.training.pairs import pair_batches
from grape_rl.training.update import UpdateSettings
from grape_rl.types import Sequences


@dataclass(frozen=True)
class RewardPairBatch:
    """Training data of one step for a reward model: pairs of responses.

    Attributes:
        sequences: the chosen responses, then the rejected responses in the same order.
        margin: for each pair, the required difference of the scores.
        metrics: numbers for the log.
        warnings: keys and messages for the log.
        records: empty, since nothing is sampled.
        memory: numbers for the next step, by name.
    """

    sequences: Sequences
    margin: Float[Tensor, " p"]
    metrics: dict[str, float]
    warnings: tuple[tuple[str, str], ...] = ()
    records: tuple[dict[str, Any], ...] = ()
    memory: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True)
class StepLabelBatch:
    """Training data of one step for a process reward model: solutions with labeled steps.

    Attributes:
        sequences: the solutions.
        label: 1 (right) or 0 (wrong) at the last token of each labeled step; NaN elsewhere.
        metrics: numbers for the log.
        warnings: keys and messages for the log.
        records: empty, since nothing is sampled.
        memory: numbers for the next step, by name.
    """

    sequences: Sequences
    label: Float[Tensor, "b t"]
    metrics: dict[str, float]
    warnings: tuple[tuple[str, str], ...] = ()
    records: tuple[dict[str, Any], ...] = ()
    memory: Mapping[str, float] = field(default_factory=dict[str, float])


def comparison_gradient(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    experience: RewardPairBatch,
    objective: Objective,
    settings: UpdateSettings,
) -> dict[str, float]:
    """One optimizer step on the mean loss over the pairs, with gradient accumulation over micro-batches.

    The gradient does not depend on the micro-batches.

    Raises:
        RuntimeError: the gradient is not finite. The weights are unchanged.
    """
    parts = comparison_loss_inputs(model, experience, settings.forward)
    metrics = _accumulate(parts, comparison_metrics, len(experience.margin), objective, optimizer)
    return metrics | clipped_step(model, optimizer, settings.max_grad_norm)


def step_gradient(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    experience: StepLabelBatch,
    objective: Objective,
    settings: UpdateSettings,
) -> dict[str, float]:
    """One optimizer step on the mean loss over the labeled steps, with gradient accumulation over micro-batches.

    The gradient does not depend on the micro-batches.

    Raises:
        RuntimeError: the gradient is not finite. The weights are unchanged.
    """
    parts = step_loss_inputs(model, experience, settings.forward)
    count = int((~experience.label.isnan()).sum())
    metrics = _accumulate(parts, step_metrics, count, objective, optimizer)
    return metrics | clipped_step(model, optimizer, settings.max_grad_norm)


def comparison_loss_inputs(
    model: nn.Module, experience: RewardPairBatch, forward: ForwardContext
) -> Iterator[dict[str, Tensor]]:
    """Fields of a loss per pair, for each micro-batch: both scores, and the required margin."""
    for pairs in pair_batches(experience.sequences, forward.tokens_per_microbatch):
        rows = torch.cat([pairs, pairs + len(experience.margin)])
        with forward.precision():
            chosen, rejected = sequence_scores(model, select_rows(experience.sequences, rows)).chunk(2)
        yield {"chosen_score": chosen, "rejected_score": rejected, "margin": experience.margin[pairs].to(chosen)}


def step_loss_inputs(
    model: nn.Module, experience: StepLabelBatch, forward: ForwardContext
) -> Iterator[dict[str, Tensor]]:
    """Fields of a loss per labeled step, for each micro-batch: the logit, and the label."""
    for rows in microbatches(experience.sequences, forward.tokens_per_microbatch):
        with forward.precision():
            logit = token_scores(model, select_rows(experience.sequences, rows))
        label = experience.label[rows, : logit.shape[1]].to(logit)
        known = ~label.isnan()
        yield {"step_logit": logit[known], "step_label": label[known]}


def comparison_metrics(fields: dict[str, Tensor]) -> dict[str, Tensor]:
    """Metrics of each pair: accuracy (½ for a tie), the margin of the scores, and the scores."""
    chosen, rejected = fields["chosen_score"].detach(), fields["rejected_score"].detach()
    difference = chosen - rejected
    return {
        "accuracy": (difference.sign() + 1) / 2, "margin": difference, "reward": (chosen + rejected) / 2,
        "chosen_reward": chosen, "rejected_reward": rejected,
    }  # fmt: skip


def step_metrics(fields: dict[str, Tensor]) -> dict[str, Tensor]:
    """Metrics of each step: accuracy (½ for a logit of 0), and the probability that it is right."""
    logit, label = fields["step_logit"].detach(), fields["step_label"]
    return {"accuracy": ((2 * label - 1) * logit.sign() + 1) / 2, "probability": logit.sigmoid()}


def _accumulate(
    parts: Iterable[dict[str, Tensor]],
    metrics: Callable[[dict[str, Tensor]], Mapping[str, Tensor]],
    count: int,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
) -> dict[str, float]:
    """Gradient accumulation: the gradient of the mean over ``count`` examples, and the means of their metrics."""
    means: dict[str, float] = {}
    optimizer.zero_grad(set_to_none=True)
    for fields in parts:
        loss, terms = example_loss(objective, fields, count)
        loss.backward()
        part = loss_metrics(loss, terms) | {name: value.sum() / count for name, value in metrics(fields).items()}
        means = {name: means.get(name, 0.0) + float(value) for name, value in part.items()}
    return means
