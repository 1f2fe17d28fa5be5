"""Updates: how an experience changes the policy's parameters."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from grape_rl.maths.divergence import k3
from grape_rl.maths.noise import embedding_noise
from grape_rl.maths.reduction import token_weight
from grape_rl.model.forward import ForwardContext
from grape_rl.model.logprobs import NoiseFunction, compute_logprobs, microbatches, select_rows
from grape_rl.rollout.source import Experience, step_seed
from grape_rl.training.objective import Objective, loss
from grape_rl.training.optimizer import clipped, parts
from grape_rl.types import Batch, Outputs


@dataclass(frozen=True)
class UpdateSettings:
    """Settings of an update that are no part of the method.

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
    experience: Experience,
    objective: Objective,
    settings: UpdateSettings,
    step: int,
    epochs: PositiveInt = 1,
    minibatches: PositiveInt = 1,
    step_kl_limit: NonNegativeFloat = 0.0,
) -> dict[str, float]:
    """``epochs`` passes over the experience, each in ``minibatches`` random parts, one optimizer step a part.

    The gradient of a part is the same however it is cut into micro-batches: each token's weight is taken over the whole
    part. Rows that can't change the gradient (advantage 0, where the objective sees only that) are not run. A part
    with no such row left changes nothing: even a zero gradient would let the optimizer's momentum move the weights.

    With a ``step_kl_limit`` (nats a token; 0 is none), the first part on which the policy's KL from the policy that
    sampled is over it is not stepped by, nor any after it. Then ``updates`` tells how many steps were made, and
    ``stopped_kl`` the KL that ended them.

    Raises:
        RuntimeError: a gradient that is not finite, before it moves the weights.
    """
    return _passes(model, optimizer, experience, objective, settings, step, epochs, minibatches, step_kl_limit)


def noisy_gradient(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    experience: Experience,
    objective: Objective,
    settings: UpdateSettings,
    step: int,
    epochs: PositiveInt = 1,
    minibatches: PositiveInt = 1,
    neftune: NonNegativeFloat = 0.0,
) -> dict[str, float]:
    """The same with noise of size ``neftune`` on what the model reads, drawn anew for each row and pass: NEFTune.

    ``epochs`` passes over the experience, each in ``minibatches`` random parts, one optimizer step a part.

    What a row's noise is depends on the seed, the step, the pass and its place in the experience alone, so that
    micro-batches change nothing, and a run that was resumed draws the same. At 0 nothing is drawn.

    Raises:
        RuntimeError: a gradient that is not finite, before it moves the weights.
    """
    embeddings: Any = model.get_input_embeddings()  # pyright: ignore[reportCallIssue]

    def drawn(epoch: int, row: int, length: int) -> Float[Tensor, "l d"]:
        seed = step_seed(settings.seed, step, f"noise {epoch} {row}")
        return embedding_noise(length, embeddings.weight.shape[1], neftune, seed)

    noise = drawn if neftune else None
    return _passes(model, optimizer, experience, objective, settings, step, epochs, minibatches, 0.0, noise)


def _passes(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    experience: Experience,
    objective: Objective,
    settings: UpdateSettings,
    step: int,
    epochs: int,
    minibatches: int,
    step_kl_limit: float,
    noise: Callable[[int, int, int], Float[Tensor, "l d"]] | None = None,
) -> dict[str, float]:
    told: list[dict[str, float]] = []
    ended: dict[str, float] = {}
    generator = torch.Generator().manual_seed(step_seed(settings.seed, step, "minibatch"))
    kept = experience.batch.mask.any(dim=1).nonzero().flatten()  # parts of equal size, whatever was left out
    orders = (kept[torch.randperm(len(kept), generator=generator)] for _ in range(epochs))
    for epoch, rows in ((n, part) for n, order in enumerate(orders) for part in order.chunk(minibatches)):
        drawn = partial(noise, epoch) if noise else None
        found = accumulated(model, experience, objective, settings, rows.sort().values, drawn)
        if not found:
            continue
        if step_kl_limit and found["approx_kl"] > step_kl_limit:
            ended = {"stopped_kl": found["approx_kl"]}
            break
        norms = {name: clipped(part, settings.max_grad_norm) for name, part in parts(model).items()}
        optimizer.step()
        told.append(found | norms)
    if step_kl_limit:
        ended["updates"] = float(len(told))
    names = dict.fromkeys(name for part in told for name in part)
    return {name: sum(part[name] for part in told) / len(told) for name in names} | ended


def accumulated(
    model: nn.Module,
    experience: Experience,
    objective: Objective,
    settings: UpdateSettings,
    rows: Int[Tensor, " n"],
    noise: NoiseFunction | None = None,
) -> dict[str, float]:
    """The objective's gradient over ``rows``, left in the parameters' ``grad``; the loss and what else was seen.

    ``noise`` is what is added to the embeddings of a row of the experience, where anything is.
    Nothing to tell ({}), and no gradient, where no row matters to it.
    """
    batch = experience.batch
    assert objective.reduction is not None, "the objective is one of pairs"
    weight = torch.zeros(batch.mask.shape)
    weight[rows] = token_weight(batch.mask[rows], objective.reduction, settings.max_tokens)
    matter = batch.mask[rows].any(dim=1)
    if objective.sees_only_advantage:
        matter &= (batch.advantage[rows] * batch.mask[rows] != 0).any(dim=1)
    rows = rows[matter]
    model.zero_grad(set_to_none=True)
    if not len(rows):
        return {}
    sums: dict[str, Tensor] = {}
    sequences = select_rows(experience.sequences, rows)
    for part in microbatches(sequences, settings.forward.tokens_per_microbatch):
        of_part = (lambda i, length, at=rows[part]: noise(int(at[i]), length)) if noise else None
        with settings.forward.precision():
            outputs = compute_logprobs(model, select_rows(sequences, part), settings.forward.temperature, of_part)
        seen = batch_rows(batch, rows[part], outputs)
        share, terms = loss(objective, outputs, seen, cut(weight, rows[part], outputs))
        share.backward()
        told = {"loss": share.detach(), **(terms if len(terms) > 1 else {}), **_sums(outputs, seen)}
        sums = {name: sums.get(name, torch.zeros(())) + value.cpu() for name, value in told.items()}
    tokens = float(sums.pop("count"))
    means = {"entropy": float(sums.pop("entropy")) / tokens, "approx_kl": float(sums.pop("approx_kl")) / tokens}
    nll = float(sums.pop("nll")) / tokens
    if not bool(batch.behavior_logp.any()):  # nothing was sampled: how likely are the demonstrations?
        means["perplexity"] = math.exp(min(nll, 700.0))
    return {name: float(value) for name, value in sums.items()} | means


def _sums(outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
    """Over the tokens run: how many, their entropy, the KL (k3) from the policy that sampled them, and −log π."""
    mask = batch.mask
    with torch.no_grad():
        moved = k3(batch.behavior_logp, outputs.logp)[mask] if bool(batch.behavior_logp.any()) else outputs.logp[:0]
        nll = -outputs.logp[mask].sum()
        return {"count": mask.sum(), "entropy": outputs.entropy[mask].sum(), "approx_kl": moved.sum(), "nll": nll}


def batch_rows(batch: Batch, rows: Int[Tensor, " n"], outputs: Outputs) -> Batch:
    """Some rows of the batch, as wide as the outputs and on their device."""
    return replace(batch, **{each.name: cut(getattr(batch, each.name), rows, outputs) for each in fields(batch)})


def cut(field: Tensor, rows: Int[Tensor, " n"], outputs: Outputs) -> Float[Tensor, "n t"] | Bool[Tensor, "n t"]:
    """The rows of a field, as wide as the outputs and on their device."""
    return field[rows, : outputs.logp.shape[1]].to(outputs.logp.device)
