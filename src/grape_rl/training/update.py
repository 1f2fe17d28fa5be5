"""Policy updates from token-level experience: epochs, minibatches, gradient accumulation and early stopping."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from grape_rl.data.order import derive_seed
from grape_rl.maths.divergence import k3
from grape_rl.maths.noise import embedding_noise
from grape_rl.maths.reduction import token_weight
from grape_rl.model.forward import ForwardContext
from grape_rl.model.logprobs import NoiseFunction, compute_logprobs, microbatches, select_rows
from grape_rl.rollout.experience import TokenExperience
from grape_rl.training.clip_metrics import CLIP_METRICS, count_clipped_tokens
from grape_rl.training.objective import Objective, loss_metrics, token_loss
from grape_rl.training.optimizer import clipped_step
from grape_rl.types import Outputs, TokenBatch


@dataclass(frozen=True)
class UpdateSettings:
    """Settings of an update that are not options of the method.

    Attributes:
        forward: micro-batch size, precision and temperature of the forward passes.
        max_tokens: the longest response in tokens.
        max_grad_norm: gradients are clipped to this norm.
        seed: the run's seed.
    """

    forward: ForwardContext
    max_tokens: int
    max_grad_norm: float
    seed: int


def gradient(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    experience: TokenExperience,
    objective: Objective,
    settings: UpdateSettings,
    step: int,
    epochs: PositiveInt = 1,
    minibatches: PositiveInt = 1,
    step_kl_limit: NonNegativeFloat = 0.0,
) -> dict[str, float]:
    """``epochs`` passes over the experience, each in ``minibatches`` random parts, with one optimizer step per part.

    Gradients are accumulated over micro-batches. The gradient of a minibatch does not depend on its micro-batches,
    because each token's weight is computed over the whole minibatch. Rows without a gradient (advantage 0, if
    every term reads the advantage) skip the forward pass. A minibatch of only such rows makes no optimizer step, since
    momentum would move the weights even at a zero gradient.

    Early stopping: with a ``step_kl_limit`` (nats per token; 0 is no limit), the remaining minibatches are skipped once
    the approximate KL to the behavior policy exceeds the limit, which is logged as ``early_stop_kl``. With a limit, the
    log also has ``optimizer_steps``, the number of steps made.

    Raises:
        RuntimeError: a gradient is not finite. The weights are unchanged.
    """
    history: list[dict[str, float]] = []
    tokens: list[int] = []
    stop: dict[str, float] = {}
    for _, rows in _minibatches(experience, settings, step, epochs, minibatches):
        metrics = accumulate_gradient(model, experience, objective, settings, rows)
        if not metrics:
            continue
        if step_kl_limit and metrics["approx_kl"] > step_kl_limit:
            stop = {"early_stop_kl": metrics["approx_kl"]}
            break
        history.append(metrics | clipped_step(model, optimizer, settings.max_grad_norm))
        tokens.append(int(experience.batch.mask[rows].sum()))
    if step_kl_limit:
        stop["optimizer_steps"] = float(len(history))
    return _mean_metrics(history, tokens) | stop


def noisy_gradient(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    experience: TokenExperience,
    objective: Objective,
    settings: UpdateSettings,
    step: int,
    epochs: PositiveInt = 1,
    minibatches: PositiveInt = 1,
    neftune: NonNegativeFloat = 0.0,
) -> dict[str, float]:
    """``gradient`` with NEFTune: noise of size ``neftune`` on the input embeddings, new for each row and epoch.

    ``epochs`` passes over the experience, each in ``minibatches`` random parts, with one optimizer step per part.

    The noise of a row depends only on the seed, the step, the epoch and the row's index in the experience. So it does
    not depend on the micro-batches, and a resumed run has the noise of an uninterrupted one. At 0 there is none.

    Raises:
        RuntimeError: a gradient is not finite. The weights are unchanged.
    """
    embeddings: Any = model.get_input_embeddings()  # pyright: ignore[reportCallIssue]

    def noise(epoch: int, row: int, length: int) -> Float[Tensor, "l d"]:
        seed = derive_seed(settings.seed, step, f"noise {epoch} {row}")
        return embedding_noise(length, embeddings.weight.shape[1], neftune, seed)

    history: list[dict[str, float]] = []
    tokens: list[int] = []
    for epoch, rows in _minibatches(experience, settings, step, epochs, minibatches):
        epoch_noise = partial(noise, epoch) if neftune else None
        if metrics := accumulate_gradient(model, experience, objective, settings, rows, epoch_noise):
            history.append(metrics | clipped_step(model, optimizer, settings.max_grad_norm))
            tokens.append(int(experience.batch.mask[rows].sum()))
    return _mean_metrics(history, tokens)


def _minibatches(
    experience: TokenExperience, settings: UpdateSettings, step: int, epochs: int, minibatches: int
) -> Iterator[tuple[int, Int[Tensor, " n"]]]:
    """Each minibatch as the number of its epoch and its rows: a random partition of all rows with a token to train on.

    Rows that are masked out entirely are left out first, so that the minibatches have equal sizes.
    """
    generator = torch.Generator().manual_seed(derive_seed(settings.seed, step, "minibatch"))
    rows = experience.batch.mask.any(dim=1).nonzero().flatten()
    for epoch in range(epochs):
        order = rows[torch.randperm(len(rows), generator=generator)]
        for minibatch in order.chunk(minibatches):
            yield epoch, minibatch.sort().values


def _mean_metrics(history: Sequence[dict[str, float]], tokens: Sequence[int]) -> dict[str, float]:
    """Means over minibatches. ``CLIP_METRICS`` are weighted by the minibatches' ``tokens``."""
    names = dict.fromkeys(name for metrics in history for name in metrics)
    means = {name: sum(metrics[name] for metrics in history) / len(history) for name in names}
    for name in (name for name in CLIP_METRICS if name in names):
        means[name] = sum(m[name] * n for m, n in zip(history, tokens, strict=True)) / sum(tokens)
    return means


def accumulate_gradient(
    model: nn.Module,
    experience: TokenExperience,
    objective: Objective,
    settings: UpdateSettings,
    rows: Int[Tensor, " n"],
    noise: NoiseFunction | None = None,
) -> dict[str, float]:
    """Gradient accumulation: the objective's gradient over a minibatch, one micro-batch after the other.

    The gradient of ``rows`` is left in the parameters' ``grad``. Returns the loss and other metrics; {} if no row has
    a gradient. ``noise`` (row of the experience, length) is added to the input embeddings.
    """
    # Weights of tokens over the whole minibatch, and the rows that have a gradient.
    batch = experience.batch
    assert objective.reduction is not None, "the objective has terms per pair"
    minibatch_tokens = int(batch.mask[rows].sum())
    weight = torch.zeros(batch.mask.shape)
    weight[rows] = token_weight(batch.mask[rows], objective.reduction, settings.max_tokens)
    with_gradient = batch.mask[rows].any(dim=1)
    if objective.sees_only_advantage:
        with_gradient &= (batch.advantage[rows] * batch.mask[rows] != 0).any(dim=1)
    rows = rows[with_gradient]
    model.zero_grad(set_to_none=True)
    if not len(rows):
        return {}

    # Forward and backward passes, with sums of metrics over tokens.
    sums: dict[str, Tensor] = {}
    sequences = select_rows(experience.sequences, rows)
    for microbatch in microbatches(sequences, settings.forward.tokens_per_microbatch):
        part_rows = rows[microbatch]
        part_noise = (lambda i, length, index=part_rows: noise(int(index[i]), length)) if noise else None
        with settings.forward.precision():
            part = select_rows(sequences, microbatch)
            outputs = compute_logprobs(model, part, settings.forward.temperature, part_noise)
        part_batch = batch_rows(batch, part_rows, outputs)
        loss, terms = token_loss(objective, outputs, part_batch, field_rows(weight, part_rows, outputs))
        loss.backward()
        metrics = loss_metrics(loss, terms) | _token_sums(outputs, part_batch)
        metrics |= count_clipped_tokens(objective, outputs, part_batch)
        sums = {name: sums.get(name, torch.zeros(())) + value.cpu() for name, value in metrics.items()}

    # Means over the tokens of the forward passes; clip ratios over all tokens of the minibatch.
    count = float(sums.pop("count"))
    means = {"entropy": float(sums.pop("entropy")) / count, "approx_kl": float(sums.pop("approx_kl")) / count}
    means |= {name: float(sums.pop(name)) / minibatch_tokens for name in CLIP_METRICS if name in sums}
    nll = float(sums.pop("nll")) / count
    if not bool(batch.behavior_logp.any()):  # demonstrations: nothing was sampled
        means["perplexity"] = math.exp(min(nll, 700.0))
    return {name: float(value) for name, value in sums.items()} | means


def _token_sums(outputs: Outputs, batch: TokenBatch) -> dict[str, Tensor]:
    """Sums over tokens: their number, entropy, k3 estimate of the KL to the behavior policy, and −log π."""
    mask = batch.mask
    with torch.no_grad():
        kl = k3(batch.behavior_logp, outputs.logp)[mask] if bool(batch.behavior_logp.any()) else outputs.logp[:0]
        nll = -outputs.logp[mask].sum()
        return {"count": mask.sum(), "entropy": outputs.entropy[mask].sum(), "approx_kl": kl.sum(), "nll": nll}


def batch_rows(batch: TokenBatch, rows: Int[Tensor, " n"], outputs: Outputs) -> TokenBatch:
    """Some rows of all fields, with the width and device of the outputs."""
    return replace(batch, **{f.name: field_rows(getattr(batch, f.name), rows, outputs) for f in fields(batch)})


def field_rows(field: Tensor, rows: Int[Tensor, " n"], outputs: Outputs) -> Float[Tensor, "n t"] | Bool[Tensor, "n t"]:
    """Some rows of a field, with the width and device of the outputs."""
    return field[rows, : outputs.logp.shape[1]].to(outputs.logp.device)
