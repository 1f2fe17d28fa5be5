"""Learning from labels: single responses, each desirable or not. Where they come from, and how they change the policy.

``gain`` is a response's log-prob less the reference's, in nats: the reward that the policy implies, but for ``beta``.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from grape_rl.data.chat import collate_examples
from grape_rl.data.labels import LabeledResponse, mismatched_completions
from grape_rl.model.forward import ForwardContext
from grape_rl.model.logprobs import compute_logprobs, microbatches, select_rows
from grape_rl.rollout.source import drawn_rows
from grape_rl.training.objective import Objective, pair_loss
from grape_rl.training.optimizer import clipped_step
from grape_rl.training.pairs import Reference, added, logprobs_in, told_at_once
from grape_rl.training.update import UpdateSettings
from grape_rl.types import Labeled, Sequences


@dataclass(frozen=True)
class LabelExperience:
    """What one step learns from: responses, what the objective sees of them, and what the log says.

    ``mismatched`` are the batch's responses behind prompts that are not their own, with ``mismatched_reference_logp``;
    None where the method does not look at them, or the batch has only one prompt.
    """

    sequences: Sequences
    batch: Labeled
    metrics: dict[str, float]
    mismatched: Sequences | None = None
    mismatched_reference_logp: Float[Tensor, "m u"] | None = None
    warnings: tuple[tuple[str, str], ...] = ()
    records: tuple[dict[str, object], ...] = ()


def labels(
    found: Sequence[LabeledResponse], reference: Reference, rows_per_step: int, seed: int, mismatch: int | None
) -> Callable[[int], LabelExperience]:
    """A source of labeled responses read from data. ``mismatch``: as ``label_experience``."""

    def source(step: int) -> LabelExperience:
        drawn = [found[i] for i in drawn_rows(len(found), rows_per_step, step, seed)]
        return label_experience(drawn, reference, mismatch)

    return source


def label_experience(found: Sequence[LabeledResponse], reference: Reference, mismatch: int | None) -> LabelExperience:
    """The responses as one batch, with mismatched ones of at most ``mismatch`` tokens if that is a number."""
    examples = [each.example for each in found]
    sequences = collate_examples(examples)
    desirable = torch.tensor([each.desirable for each in found])
    others = None if mismatch is None else mismatched_completions(examples, mismatch)
    metrics = {
        "length": float(sequences.mask.sum(dim=1).float().mean()),
        "desirable": float(desirable.float().mean()),
        "tokens": float(sequences.mask.sum() + sum(len(p) for p in sequences.prompts)),
    }
    alone = ("one_prompt", "all responses of the step have the same prompt: there is no other to set them against")
    return LabelExperience(
        sequences,
        Labeled(sequences.mask, reference(sequences), desirable),
        metrics,
        others,
        None if others is None else reference(others),
        (alone,) if others is None and mismatch is not None else (),
    )


def label_logprobs(
    model: nn.Module,
    sequences: Sequences,
    forward: ForwardContext,
) -> Float[Tensor, "b t"]:
    """The log-probs of responses without their graph."""
    parts = microbatches(sequences, forward.tokens_per_microbatch)
    return logprobs_in(parts, model, sequences, forward)


def label_gradient(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    experience: LabelExperience,
    objective: Objective,
    settings: UpdateSettings,
    memory: dict[str, Any],
) -> dict[str, float]:
    """One optimizer step by the mean loss over the responses: the same however they are cut into micro-batches.

    What a loss reads of the whole batch, the mean gain of mismatched responses (0 where there are none) or of all
    responses so far, is taken once before, without a graph. The latter is remembered in ``memory``.

    Raises:
        RuntimeError: a gradient that is not finite, before it moves the weights.
    """
    batch, sequences = experience.batch, experience.sequences
    count = len(batch.mask)
    whole: dict[str, Tensor] = {}
    if "mismatched_gain" in objective.reads:
        whole["mismatched_gain"] = _mismatched_gain(model, experience, settings)
    if "mean_gain" in objective.reads:
        logp = label_logprobs(model, sequences, settings.forward)
        whole["mean_gain"] = _mean_so_far(_gains(logp, batch.reference_logp, batch.mask), memory)
    gains: list[tuple[Tensor, Tensor]] = []
    sums: dict[str, Tensor] = {}
    optimizer.zero_grad(set_to_none=True)
    for rows in microbatches(sequences, settings.forward.tokens_per_microbatch):
        with settings.forward.precision():
            outputs = compute_logprobs(model, select_rows(sequences, rows), settings.forward.temperature)
        logp, width = outputs.logp, outputs.logp.shape[1]
        mask, reference_logp = batch.mask[rows, :width].to(logp.device), batch.reference_logp[rows, :width].to(logp)
        seen = Labeled(mask, reference_logp, batch.desirable[rows].to(logp.device))
        fields = label_fields(logp, seen) | {name: value.to(logp) for name, value in whole.items()}
        share, terms = pair_loss(objective, fields, count)
        share.backward()
        entropy = outputs.entropy.detach().masked_fill(~mask, 0).sum()
        sums = added(sums, {"loss": share.detach(), **(terms if len(terms) > 1 else {}), "entropy": entropy})
        gains.append((rows, (fields["response_logp"] - fields["reference_response_logp"]).detach()))
    told = told_at_once({**sums, **whole})
    told["entropy"] /= float(batch.mask.sum())
    gain = torch.zeros(count, dtype=torch.float64)
    gain[torch.cat([rows for rows, _ in gains])] = torch.cat([part for _, part in gains]).double().cpu()
    told |= label_metrics(gain, batch.desirable)
    return told | {"grad_norm": clipped_step(model, optimizer, settings.max_grad_norm)}


def label_fields(logp: Float[Tensor, "b t"], labeled: Labeled) -> dict[str, Tensor]:
    """What a loss per response may read of the response itself, by its name."""
    mask = labeled.mask
    return {
        "response_logp": logp.masked_fill(~mask, 0).sum(dim=1),
        "reference_response_logp": labeled.reference_logp.to(logp).masked_fill(~mask, 0).sum(dim=1),
        "response_length": mask.sum(dim=1).to(logp.dtype),
        "desirable": labeled.desirable,
    }


def label_metrics(gain: Float[Tensor, " b"], desirable: Bool[Tensor, " b"]) -> dict[str, float]:
    """How desirable and undesirable responses stand: the mean gain of each (NaN if there is none), and their distance.

    ``accuracy`` is the share of all pairs of a desirable with an undesirable response in which the former has the
    higher gain, a tie being ½: the area under the ROC curve, which needs no threshold.
    """
    good, bad = gain[desirable], gain[~desirable]
    up, down = (float(part.mean()) if len(part) else math.nan for part in (good, bad))
    right = ((good[:, None] - bad[None]).sign() + 1) / 2
    accuracy = float(right.mean()) if right.numel() else math.nan
    return {"accuracy": accuracy, "margin": up - down, "desirable_reward": up, "undesirable_reward": down}


def _gains(logp: Float[Tensor, "b t"], reference_logp: Float[Tensor, "b t"], mask: Tensor) -> Float[Tensor, " b"]:
    return (logp - reference_logp.to(logp)).masked_fill(~mask, 0).sum(dim=1)


def _mismatched_gain(model: nn.Module, experience: LabelExperience, settings: UpdateSettings) -> Float[Tensor, ""]:
    others, theirs = experience.mismatched, experience.mismatched_reference_logp
    if others is None or theirs is None:
        return torch.zeros(())
    logp = label_logprobs(model, others, settings.forward)
    return _gains(logp, theirs, others.mask).mean()


def _mean_so_far(gain: Float[Tensor, " b"], memory: dict[str, Any]) -> Float[Tensor, ""]:
    """The mean gain of all responses seen up to now, these included."""
    total = memory.setdefault("gain_sum", torch.zeros((), dtype=torch.float64)).add_(gain.double().sum())
    count = memory.setdefault("gain_count", torch.zeros((), dtype=torch.float64)).add_(len(gain))
    return (total / count).to(gain.dtype)
