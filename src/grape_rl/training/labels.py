"""Updates from labeled responses: single responses, each desirable or undesirable.

The ``gain`` of a response is its log-prob minus the reference's, in nats: its implied reward without the factor beta.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from grape_rl.model.forward import ForwardContext
from grape_rl.model.logprobs import compute_logprobs, microbatches, select_rows
from grape_rl.model.reference_logprobs import microbatched_logprobs
from grape_rl.training.objective import Objective, example_loss, loss_metrics
from grape_rl.training.optimizer import clipped_step
from grape_rl.training.pairs import add_sums, to_numbers
from grape_rl.training.update import UpdateSettings
from grape_rl.types import LabelBatch, Sequences


@dataclass(frozen=True)
class LabelExperience:
    """Training data of one step: labeled responses.

    Attributes:
        sequences: the responses with their prompts.
        batch: the fields that the loss reads.
        metrics: numbers for the log.
        mismatched: the batch's responses, each after the prompt of another response; None if the method does not read
            them, or if all prompts are equal.
        mismatched_reference_logp: their log-probs under the reference.
        warnings: keys and messages for the log.
        records: empty, since nothing is sampled.
        memory: numbers for the next step, by name.
    """

    sequences: Sequences
    batch: LabelBatch
    metrics: dict[str, float]
    mismatched: Sequences | None = None
    mismatched_reference_logp: Float[Tensor, "m u"] | None = None
    warnings: tuple[tuple[str, str], ...] = ()
    records: tuple[dict[str, Any], ...] = ()
    memory: Mapping[str, float] = field(default_factory=dict[str, float])


def label_logprobs(model: nn.Module, sequences: Sequences, forward: ForwardContext) -> Float[Tensor, "b t"]:
    """Log-probs of responses on the CPU, without gradients."""
    parts = microbatches(sequences, forward.tokens_per_microbatch)
    return microbatched_logprobs(parts, model, sequences, forward)


def label_gradient(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    experience: LabelExperience,
    objective: Objective,
    settings: UpdateSettings,
    memory: dict[str, Any],
) -> dict[str, float]:
    """One optimizer step on the mean loss over the responses, with gradient accumulation over micro-batches.

    The gradient does not depend on the micro-batches. Fields over the whole batch, the mean gain of mismatched
    responses (0 without any) and the mean gain of all responses so far, are computed before, without gradients. The
    sums for the latter are in ``memory``.

    Raises:
        RuntimeError: the gradient is not finite. The weights are unchanged.
    """
    # Fields over the whole batch.
    batch, sequences = experience.batch, experience.sequences
    count = len(batch.mask)
    batch_fields: dict[str, Tensor] = {}
    if "mismatched_gain" in objective.reads:
        batch_fields["mismatched_gain"] = _mismatched_gain(model, experience, settings)
    if "mean_gain" in objective.reads:
        logp = label_logprobs(model, sequences, settings.forward)
        batch_fields["mean_gain"] = _running_mean_gain(_gains(logp, batch.reference_logp, batch.mask), memory)

    # Forward and backward passes.
    gains: list[tuple[Tensor, Tensor]] = []
    sums: dict[str, Tensor] = {}
    optimizer.zero_grad(set_to_none=True)
    for rows in microbatches(sequences, settings.forward.tokens_per_microbatch):
        with settings.forward.precision():
            outputs = compute_logprobs(model, select_rows(sequences, rows), settings.forward.temperature)
        logp, width = outputs.logp, outputs.logp.shape[1]
        mask, reference_logp = batch.mask[rows, :width].to(logp.device), batch.reference_logp[rows, :width].to(logp)
        part = LabelBatch(mask, reference_logp, batch.desirable[rows].to(logp.device))
        fields = label_loss_inputs(logp, part) | {name: value.to(logp) for name, value in batch_fields.items()}
        loss, terms = example_loss(objective, fields, count)
        loss.backward()
        entropy = outputs.entropy.detach().masked_fill(~mask, 0).sum()
        sums = add_sums(sums, loss_metrics(loss, terms) | {"entropy": entropy})
        gains.append((rows, (fields["response_logp"] - fields["reference_response_logp"]).detach()))

    metrics = to_numbers({**sums, **batch_fields})
    metrics["entropy"] /= float(batch.mask.sum())
    gain = torch.zeros(count, dtype=torch.float64)
    gain[torch.cat([rows for rows, _ in gains])] = torch.cat([part for _, part in gains]).double().cpu()
    metrics |= label_metrics(gain, batch.desirable)
    return metrics | clipped_step(model, optimizer, settings.max_grad_norm)


def label_loss_inputs(logp: Float[Tensor, "b t"], batch: LabelBatch) -> dict[str, Tensor]:
    """The ``LABEL_FIELDS`` that belong to single responses, by name."""
    mask = batch.mask
    return {
        "response_logp": logp.masked_fill(~mask, 0).sum(dim=1),
        "reference_response_logp": batch.reference_logp.to(logp).masked_fill(~mask, 0).sum(dim=1),
        "response_length": mask.sum(dim=1).to(logp.dtype),
        "desirable": batch.desirable,
    }


def label_metrics(gain: Float[Tensor, " b"], desirable: Bool[Tensor, " b"]) -> dict[str, float]:
    """Mean gain of desirable and of undesirable responses (NaN without any), their difference, and the accuracy.

    ``accuracy`` is the area under the ROC curve: the share of all pairs of a desirable and an undesirable response in
    which the desirable one has the higher gain. A tie counts ½.
    """
    positive, negative = gain[desirable], gain[~desirable]
    high, low = (float(part.mean()) if len(part) else math.nan for part in (positive, negative))
    ranked = ((positive[:, None] - negative[None]).sign() + 1) / 2
    accuracy = float(ranked.mean()) if ranked.numel() else math.nan
    return {"accuracy": accuracy, "margin": high - low, "desirable_reward": high, "undesirable_reward": low}


def _gains(logp: Float[Tensor, "b t"], reference_logp: Float[Tensor, "b t"], mask: Tensor) -> Float[Tensor, " b"]:
    return (logp - reference_logp.to(logp)).masked_fill(~mask, 0).sum(dim=1)


def _mismatched_gain(model: nn.Module, experience: LabelExperience, settings: UpdateSettings) -> Float[Tensor, ""]:
    sequences, reference_logp = experience.mismatched, experience.mismatched_reference_logp
    if sequences is None or reference_logp is None:
        return torch.zeros(())
    logp = label_logprobs(model, sequences, settings.forward)
    return _gains(logp, reference_logp, sequences.mask).mean()


def _running_mean_gain(gain: Float[Tensor, " b"], memory: dict[str, Any]) -> Float[Tensor, ""]:
    """The mean gain of all responses so far, including these. The sum and the count are in ``memory``."""
    total = memory.setdefault("gain_sum", torch.zeros((), dtype=torch.float64)).add_(gain.double().sum())
    count = memory.setdefault("gain_count", torch.zeros((), dtype=torch.float64)).add_(len(gain))
    return (total / count).to(gain.dtype)
