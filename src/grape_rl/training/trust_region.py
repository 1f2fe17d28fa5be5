"""TRPO's update: the natural gradient's step, as long as a limit on the policy's KL lets it be, or no step."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float, Int
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from grape_rl.maths.divergence import entropy, exact_kl
from grape_rl.maths.natural import conjugate_gradient, fisher_vector_product
from grape_rl.maths.reduction import token_weight
from grape_rl.model.lm_head import TILE
from grape_rl.model.logprobs import masked_logits, microbatches, select_rows, to_device
from grape_rl.rollout.source import Experience
from grape_rl.training.objective import Objective, loss
from grape_rl.training.update import UpdateSettings, accumulated, batch_rows, cut
from grape_rl.types import Outputs, Sequences


@dataclass(frozen=True)
class Trial:
    """What a step would do: the loss before and after it, the KL(before‖after) and the entropy before it.

    KL and entropy are means over all tokens that the policy wrote, in nats.
    """

    loss_before: float
    loss: float
    kl: float
    entropy: float


def trust_region(
    model: nn.Module,
    experience: Experience,
    objective: Objective,
    settings: UpdateSettings,
    warn: Callable[[str, str], None],
    delta: PositiveFloat = 0.01,
    cg_iterations: PositiveInt = 10,
    damping: NonNegativeFloat = 0.1,
    backtracks: NonNegativeInt = 10,
    shrink: Annotated[float, Field(gt=0, lt=1)] = 0.8,
) -> dict[str, float]:
    """One step ``√(2 delta / xᵀFx) x`` along ``x = (F + damping I)⁻¹ g``, shrunk until the policy's KL allows it.

    TRPO (arXiv 1502.05477), eq. 14 and appendix C. g is the gradient of the surrogate, the objective's negative. F is
    the Fisher matrix of π_old, the policy before the step: the second derivative of the mean of KL(π_old‖π) over all
    tokens that the policy wrote, those of responses with no advantage too, since it may not forget how to write
    these either. Conjugate gradients, ``cg_iterations`` of them, give x; where they converged without damping, xᵀFx is
    gᵀF⁻¹g.

    ``damping`` bends x towards g in directions that F knows next to nothing of, and lets few iterations come near the
    solution; 0.1 is customary. Whatever it is, a step asks for ``delta`` nats a token: it is left out of the step's
    length (our reading of appendix C).

    The step is multiplied by ``shrink`` up to ``backtracks`` times, until the KL measured is at most ``delta`` and
    the surrogate is better than before. If it never is so, or if g is 0, the weights keep every bit, and the log says
    which. There is no learning rate, and the optimizer's settings count for nothing.

    All in the weights' precision: what bf16 rounds away is as large as the differences that decide. Micro-batches
    change nothing, but hold tokens x vocabulary numbers, several times over.

    Raises:
        RuntimeError: a gradient that is not finite, before it moves the weights.
        ValueError: the Fisher matrix is not positive along g (more damping may help).
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    with torch.autocast(parameters[0].device.type, enabled=False):
        told = accumulated(model, experience, objective, settings, torch.arange(len(experience.batch.mask)))
        ascent = -_flat([torch.zeros_like(p) if p.grad is None else p.grad for p in parameters])
        model.zero_grad(set_to_none=True)
        norm = float(_dot(ascent, ascent).sqrt())
        if not math.isfinite(norm):
            raise RuntimeError(f"the gradient's norm is {norm}: the surrogate has no direction to go")
        if norm == 0:
            warn("no_gradient", "the surrogate's gradient is 0: the step changes nothing")
            return told | {"grad_norm": 0.0, "approx_kl": 0.0, "accepted": 0.0, "backtracks": 0.0}
        fisher = fisher_product(model, experience.sequences, settings, parameters)
        direction = conjugate_gradient(lambda v: fisher(v) + damping * v, ascent, cg_iterations)
        image = fisher(direction)
        left = ascent - image - damping * direction
        old, step = _flat(parameters), float((2 * delta / _dot(direction, image)).sqrt()) * direction
        tries, trial = 0, tried(model, experience, objective, settings, old, old + step)
        while not (accepted := trial.kl <= delta and trial.loss < trial.loss_before) and tries < backtracks:
            tries += 1
            trial = tried(model, experience, objective, settings, old, old + shrink**tries * step)
        if not accepted:
            _assign(parameters, old)
            warn(*_refusal(trial, delta, backtracks))
    return told | {
        "loss": trial.loss_before,
        "loss_after": trial.loss if accepted else trial.loss_before,
        "entropy": trial.entropy,
        "grad_norm": norm,
        "approx_kl": trial.kl if accepted else 0.0,
        "accepted": float(accepted),
        "backtracks": float(tries),
        "cg_residual": float(_dot(left, left).sqrt()) / norm,
    }


def _refusal(last: Trial, delta: float, backtracks: int) -> tuple[str, str]:
    """Why the shortest step of all was not taken: a warning's key and message."""
    if not last.kl <= delta:
        return "undone_kl", f"no step: after {backtracks} backtracks the KL is {last.kl:.3g}, and delta {delta:g}"
    worse = f"{last.loss_before:.6g} → {last.loss:.6g}"
    return "undone_surrogate", f"no step: after {backtracks} backtracks the loss is no lower ({worse})"


def fisher_product(
    model: nn.Module, sequences: Sequences, settings: UpdateSettings, parameters: Sequence[Tensor]
) -> Callable[[Float[Tensor, " n"]], Float[Tensor, " n"]]:
    """The map from v to F v, F the Fisher matrix of the policy as it is: ``E[∇logp ∇logpᵀ]``.

    The expectation is over the tokens of ``sequences`` where ``mask`` is True, all alike, and at each over the whole
    vocabulary. One graph of one micro-batch exists at a time.
    """
    count = int(sequences.mask.sum())

    def share(rows: Int[Tensor, " n"], vector: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):  # the others can't be differentiated twice
            logits = masked_logits(model, select_rows(sequences, rows), settings.forward.temperature)
            return fisher_vector_product(exact_kl(logits.detach(), logits).sum() / count, parameters, vector)

    def product(vector: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        total = torch.zeros_like(vector)
        for rows in microbatches(sequences, settings.forward.tokens_per_microbatch):
            total += share(rows, vector)
        return total

    return product


@torch.no_grad()
def tried(
    model: nn.Module,
    experience: Experience,
    objective: Objective,
    settings: UpdateSettings,
    old: Float[Tensor, " n"],
    new: Float[Tensor, " n"],
) -> Trial:
    """What the step from the weights ``old`` to ``new`` does; float64 from the logits on. The model is left at ``new``.

    Each micro-batch is run under both in turn, so that the old policy's choices are never held for the whole batch.
    """
    sequences, batch = experience.sequences, experience.batch
    parameters = [p for p in model.parameters() if p.requires_grad]
    assert objective.reduction is not None, "the objective is one of pairs"
    weight = token_weight(batch.mask, objective.reduction, settings.max_tokens)
    count = int(sequences.mask.sum())

    def share(rows: Int[Tensor, " n"]) -> tuple[float, float, float, float]:
        part = to_device(select_rows(sequences, rows), old.device)
        _assign(parameters, old)
        before = masked_logits(model, part, settings.forward.temperature)
        _assign(parameters, new)
        after = masked_logits(model, part, settings.forward.temperature)
        was, now = _outputs(before, part), _outputs(after, part)
        seen, each = batch_rows(batch, rows, was), cut(weight, rows, was)
        tiles = zip(*(logits.split(max(1, TILE // logits.shape[1])) for logits in (before, after)), strict=True)
        kl = sum(float(exact_kl(b.double(), a.double()).sum()) for b, a in tiles)
        losses = [float(loss(objective, outputs, seen, each)[0]) for outputs in (was, now)]
        return losses[0], losses[1], kl / count, float(was.entropy.sum()) / count

    shares = [share(rows) for rows in microbatches(sequences, settings.forward.tokens_per_microbatch)]
    return Trial(*(sum(column) for column in zip(*shares, strict=True)))


def _outputs(logits: Tensor, part: Sequences) -> Outputs:
    tiles = zip(
        *(field.split(max(1, TILE // logits.shape[1])) for field in (logits, part.tokens[part.mask])), strict=True
    )
    both = [(z.double().log_softmax(dim=-1).gather(1, y[:, None])[:, 0], entropy(z.double())) for z, y in tiles]
    logp, of_choice = (torch.cat(fields) for fields in zip(*both, strict=True))
    zeros = torch.zeros(part.mask.shape, dtype=torch.float64, device=logits.device)
    return Outputs(zeros.masked_scatter(part.mask, logp), zeros.masked_scatter(part.mask, of_choice))


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def _assign(parameters: Sequence[Tensor], values: Tensor) -> None:
    parts = values.split([p.numel() for p in parameters])
    with torch.no_grad():
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.copy_(part.view_as(parameter))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dtype=torch.float64)
