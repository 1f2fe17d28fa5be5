"""Training a model that scores: on pairs, one of which should score higher, and on steps, which are right or wrong."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from grape_rl.model.forward import ForwardContext
from grape_rl.model.logprobs import microbatches, select_rows
from grape_rl.model.reward_head import sequence_scores, token_scores
from grape_rl.training.objective import Objective, pair_loss
from grape_rl.training.optimizer import clipped_step
from grape_rl.training.pairs import pair_batches
from grape_rl.training.update import UpdateSettings
from grape_rl.types import Sequences

Fields = dict[str, Tensor]


@dataclass(frozen=True)
class Compared:
    """What one step learns from: pairs as sequences (the chosen responses first), and the margin that each is to have.

    ``warnings`` and ``records`` are empty: nothing is sampled.
    """

    sequences: Sequences
    margin: Float[Tensor, " p"]
    metrics: dict[str, float]
    warnings: tuple[tuple[str, str], ...] = ()
    records: tuple[dict[str, object], ...] = ()
    memory: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True)
class Judged:
    """What one step learns from: solutions as sequences, 1 or 0 at the end of each labeled step, NaN elsewhere."""

    sequences: Sequences
    label: Float[Tensor, "b t"]
    metrics: dict[str, float]
    warnings: tuple[tuple[str, str], ...] = ()
    records: tuple[dict[str, object], ...] = ()
    memory: Mapping[str, float] = field(default_factory=dict[str, float])


def comparison_gradient(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    experience: Compared,
    objective: Objective,
    settings: UpdateSettings,
) -> dict[str, float]:
    """One optimizer step by the mean loss over the pairs: the same however they are cut into micro-batches.

    Raises:
        RuntimeError: a gradient that is not finite, before it moves the weights.
    """
    parts = comparison_fields(model, experience, settings.forward)
    return _descended(model, optimizer, parts, comparison_metrics, len(experience.margin), objective, settings)


def step_gradient(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    experience: Judged,
    objective: Objective,
    settings: UpdateSettings,
) -> dict[str, float]:
    """One optimizer step by the mean loss over the labeled steps of all solutions, however they are cut.

    Raises:
        RuntimeError: a gradient that is not finite, before it moves the weights.
    """
    parts = step_fields(model, experience, settings.forward)
    count = int((~experience.label.isnan()).sum())
    return _descended(model, optimizer, parts, step_metrics, count, objective, settings)


def comparison_fields(model: nn.Module, experience: Compared, forward: ForwardContext) -> Iterator[Fields]:
    """Micro-batch by micro-batch, what a loss may read of pairs: both scores, and the margin."""
    for pairs in pair_batches(experience.sequences, forward.tokens_per_microbatch):
        rows = torch.cat([pairs, pairs + len(experience.margin)])
        with forward.precision():
            chosen, rejected = sequence_scores(model, select_rows(experience.sequences, rows)).chunk(2)
        yield {"chosen_score": chosen, "rejected_score": rejected, "margin": experience.margin[pairs].to(chosen)}


def step_fields(model: nn.Module, experience: Judged, forward: ForwardContext) -> Iterator[Fields]:
    """Micro-batch by micro-batch, what a loss may read of labeled steps: the logit, and the label."""
    for rows in microbatches(experience.sequences, forward.tokens_per_microbatch):
        with forward.precision():
            logit = token_scores(model, select_rows(experience.sequences, rows))
        label = experience.label[rows, : logit.shape[1]].to(logit)
        known = ~label.isnan()
        yield {"step_logit": logit[known], "step_label": label[known]}


def comparison_metrics(fields: Fields) -> dict[str, Tensor]:
    """How each pair stands: which response scores higher (a tie is ½), by how much, and what each scores."""
    chosen, rejected = fields["chosen_score"].detach(), fields["rejected_score"].detach()
    difference = chosen - rejected
    return {
        "accuracy": (difference.sign() + 1) / 2, "margin": difference, "reward": (chosen + rejected) / 2,
        "chosen_reward": chosen, "rejected_reward": rejected,
    }  # fmt: skip


def step_metrics(fields: Fields) -> dict[str, Tensor]:
    """How each step stands: whether it is judged as it is labeled (a logit of 0 is half so), and its probability."""
    logit, label = fields["step_logit"].detach(), fields["step_label"]
    return {"accuracy": ((2 * label - 1) * logit.sign() + 1) / 2, "probability": logit.sigmoid()}


def _descended(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    parts: Iterable[Fields],
    metrics: Callable[[Fields], Mapping[str, Tensor]],
    count: int,
    objective: Objective,
    settings: UpdateSettings,
) -> dict[str, float]:
    """One optimizer step by the mean over ``count`` pairs or steps, and the mean of what there is to tell of them."""
    told: dict[str, float] = {}
    optimizer.zero_grad(set_to_none=True)
    for fields in parts:
        share, terms = pair_loss(objective, fields, count)
        share.backward()
        sums = {"loss": share.detach(), **(terms if len(terms) > 1 else {})}
        sums |= {name: value.sum() / count for name, value in metrics(fields).items()}
        told = {name: told.get(name, 0.0) + float(value) for name, value in sums.items()}
    return told | {"grad_norm": clipped_step(model, optimizer, settings.max_grad_norm)}
