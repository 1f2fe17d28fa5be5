"""TRPO's update: a natural-gradient step with a line search under a KL limit (the trust region)."""

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
from grape_rl.rollout.experience import TokenExperience
from grape_rl.training.objective import Objective, token_loss
from grape_rl.training.update import UpdateSettings, accumulate_gradient, batch_rows, field_rows
from grape_rl.types import Outputs, Sequences


@dataclass(frozen=True)
class StepEvaluation:
    """Effect of a step: the loss before and after, KL(before‖after), and the entropy before.

    KL and entropy are means over all tokens that the policy generated, in nats.
    """

    loss_before: float
    loss: float
    kl: float
    entropy: float


def trust_region(
    model: nn.Module,
    experience: TokenExperience,
    objective: Objective,
    settings: UpdateSettings,
    warn: Callable[[str, str], None],
    delta: PositiveFloat = 0.01,
    cg_iterations: PositiveInt = 10,
    damping: NonNegativeFloat = 0.1,
    backtracks: NonNegativeInt = 10,
    shrink: Annotated[float, Field(gt=0, lt=1)] = 0.8,
) -> dict[str, float]:
    """One step ``√(2 delta / xᵀFx) x`` along ``x = (F + damping I)⁻¹ g``, shrunk until the KL is at most ``delta``.

    TRPO (arXiv 1502.05477), eq. 14 and appendix C. g is the gradient of the surrogate, the negative objective. F is
    the Fisher matrix of π_old, the policy before the step: the Hessian of the mean KL(π_old‖π) over all tokens that the
    policy generated. These include the responses without advantage, since the policy must not change there either.
    ``cg_iterations`` of conjugate gradients approximate x. If they converge without damping, xᵀFx is gᵀF⁻¹g.

    ``damping`` turns x toward g in directions with a Fisher information near 0, and makes few iterations suffice; 0.1
    is customary. It does not enter the length of the step, which is always for ``delta`` nats per token (our reading of
    appendix C).

    Line search: the step is multiplied by ``shrink`` up to ``backtracks`` times, until the measured KL is at most
    ``delta`` and the surrogate improves. If no step is accepted, or if g is 0, the weights do not change, and a warning
    is logged. There is no learning rate, and the settings of the optimizer have no effect.

    Everything is in the precision of the weights, because the rounding of bf16 is as large as the differences that
    decide. The result does not depend on the micro-batches. They hold tokens × vocabulary numbers several times.

    Raises:
        RuntimeError: the gradient is not finite. The weights are unchanged.
        ValueError: the Fisher matrix is not positive along g (more damping may help).
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    with torch.autocast(parameters[0].device.type, enabled=False):
        # The gradient of the surrogate.
        metrics = accumulate_gradient(model, experience, objective, settings, torch.arange(len(experience.batch.mask)))
        ascent = -_flat([torch.zeros_like(p) if p.grad is None else p.grad for p in parameters])
        model.zero_grad(set_to_none=True)
        norm = float(_dot(ascent, ascent).sqrt())
        if not math.isfinite(norm):
            raise RuntimeError(f"the gradient's norm is {norm}: the surrogate has no ascent direction")
        if norm == 0:
            warn("no_gradient", "the surrogate's gradient is 0: the step changes nothing")
            return metrics | {"grad_norm": 0.0, "approx_kl": 0.0, "step_accepted": 0.0, "backtracks": 0.0}

        # The natural gradient, and the full step.
        fisher = fisher_product(model, experience.sequences, settings, parameters)
        direction = conjugate_gradient(lambda v: fisher(v) + damping * v, ascent, cg_iterations)
        image = fisher(direction)
        residual = ascent - image - damping * direction
        old, step = _flat(parameters), float((2 * delta / _dot(direction, image)).sqrt()) * direction

        # The line search.
        tries, trial = 0, evaluate_step(model, experience, objective, settings, old, old + step)
        while not (accepted := trial.kl <= delta and trial.loss < trial.loss_before) and tries < backtracks:
            tries += 1
            trial = evaluate_step(model, experience, objective, settings, old, old + shrink**tries * step)
        if not accepted:
            _assign(parameters, old)
            warn(*_rejection(trial, delta, backtracks))
    return metrics | {
        "loss": trial.loss_before,
        "loss_after": trial.loss if accepted else trial.loss_before,
        "entropy": trial.entropy,
        "grad_norm": norm,
        "approx_kl": trial.kl if accepted else 0.0,
        "step_accepted": float(accepted),
        "backtracks": float(tries),
        "cg_residual": float(_dot(residual, residual).sqrt()) / norm,
    }


def _rejection(last: StepEvaluation, delta: float, backtracks: int) -> tuple[str, str]:
    """Key and message of a warning: the reason why even the shortest step was rejected."""
    if not last.kl <= delta:
        return "rejected_kl", f"no step: after {backtracks} backtracks the KL is {last.kl:.3g}, and delta {delta:g}"
    worse = f"{last.loss_before:.6g} → {last.loss:.6g}"
    return "rejected_surrogate", f"no step: after {backtracks} backtracks the loss is no lower ({worse})"


def fisher_product(
    model: nn.Module, sequences: Sequences, settings: UpdateSettings, parameters: Sequence[Tensor]
) -> Callable[[Float[Tensor, " n"]], Float[Tensor, " n"]]:
    """The function v → F v, with the Fisher matrix F of the current policy: ``E[∇logp ∇logpᵀ]``.

    The expectation is over the tokens of ``sequences`` where ``mask`` is True, with equal weights, and for each over
    the whole vocabulary. The graph of only one micro-batch exists at a time.
    """
    count = int(sequences.mask.sum())

    def part_product(rows: Int[Tensor, " n"], vector: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):  # other backends have no second derivative
            logits = masked_logits(model, select_rows(sequences, rows), settings.forward.temperature)
            return fisher_vector_product(exact_kl(logits.detach(), logits).sum() / count, parameters, vector)

    def product(vector: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        total = torch.zeros_like(vector)
        for rows in microbatches(sequences, settings.forward.tokens_per_microbatch):
            total += part_product(rows, vector)
        return total

    return product


@torch.no_grad()
def evaluate_step(
    model: nn.Module,
    experience: TokenExperience,
    objective: Objective,
    settings: UpdateSettings,
    old: Float[Tensor, " n"],
    new: Float[Tensor, " n"],
) -> StepEvaluation:
    """The effect of the step from the weights ``old`` to ``new``, in float64 from the logits on.

    The model has the weights ``new`` afterwards. Each micro-batch is run with both weights in turn, so that the old
    policy's distributions are never held for the whole batch.
    """
    sequences, batch = experience.sequences, experience.batch
    parameters = [p for p in model.parameters() if p.requires_grad]
    assert objective.reduction is not None, "the objective has terms per pair"
    weight = token_weight(batch.mask, objective.reduction, settings.max_tokens)
    count = int(sequences.mask.sum())

    def evaluate(rows: Int[Tensor, " n"]) -> tuple[float, float, float, float]:
        part = to_device(select_rows(sequences, rows), old.device)
        _assign(parameters, old)
        old_logits = masked_logits(model, part, settings.forward.temperature)
        _assign(parameters, new)
        new_logits = masked_logits(model, part, settings.forward.temperature)
        old_outputs, new_outputs = _outputs(old_logits, part), _outputs(new_logits, part)
        part_batch, part_weight = batch_rows(batch, rows, old_outputs), field_rows(weight, rows, old_outputs)
        tiles = zip(
            *(logits.split(max(1, TILE // logits.shape[1])) for logits in (old_logits, new_logits)), strict=True
        )
        kl = sum(float(exact_kl(before.double(), after.double()).sum()) for before, after in tiles)
        losses = [float(token_loss(objective, o, part_batch, part_weight)[0]) for o in (old_outputs, new_outputs)]
        return losses[0], losses[1], kl / count, float(old_outputs.entropy.sum()) / count

    parts = [evaluate(rows) for rows in microbatches(sequences, settings.forward.tokens_per_microbatch)]
    return StepEvaluation(*(sum(column) for column in zip(*parts, strict=True)))


def _outputs(logits: Float[Tensor, "n v"], part: Sequences) -> Outputs:
    """Log-probs and entropies in float64, tile by tile."""
    tiles = zip(
        *(field.split(max(1, TILE // logits.shape[1])) for field in (logits, part.tokens[part.mask])), strict=True
    )
    pairs = [(z.double().log_softmax(dim=-1).gather(1, y[:, None])[:, 0], entropy(z.double())) for z, y in tiles]
    logp, entropies = (torch.cat(columns) for columns in zip(*pairs, strict=True))
    zeros = torch.zeros(part.mask.shape, dtype=torch.float64, device=logits.device)
    return Outputs(zeros.masked_scatter(part.mask, logp), zeros.masked_scatter(part.mask, entropies))


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def _assign(parameters: Sequence[Tensor], values: Tensor) -> None:
    parts = values.split([p.numel() for p in parameters])
    with torch.no_grad():
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.copy_(part.view_as(parameter))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dtype=torch.float64)
