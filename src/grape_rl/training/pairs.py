"""Updates from preference pairs: a chosen and a rejected response to the same prompt.

A pair is never split across micro-batches, because its loss needs both responses. Its prompt is encoded once for both.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from grape_rl.model.distribution import DistributionStats, logprobs_with_stats
from grape_rl.model.forward import ForwardContext
from grape_rl.model.logprobs import compute_logprobs, row_lengths, select_rows
from grape_rl.model.reference_logprobs import microbatched_logprobs
from grape_rl.training.objective import DISTRIBUTION_FIELDS, Objective, example_loss, loss_metrics
from grape_rl.training.optimizer import clipped_step
from grape_rl.training.update import UpdateSettings
from grape_rl.types import Outputs, PairBatch, Sequences


@dataclass(frozen=True)
class PairExperience:
    """Training data of one step: preference pairs.

    Attributes:
        sequences: the chosen responses, then the rejected responses in the same order.
        batch: the fields that the loss reads.
        metrics: numbers for the log.
        warnings: keys and messages for the log.
        records: the sampled responses as plain data; empty if nothing was sampled.
        reference: the reference model, for a loss that reads its whole distribution, or an update that changes it.
        memory: numbers for the next step, by name.
    """

    sequences: Sequences
    batch: PairBatch
    metrics: dict[str, float]
    warnings: tuple[tuple[str, str], ...] = ()
    records: tuple[dict[str, Any], ...] = ()
    reference: nn.Module | None = None
    memory: Mapping[str, float] = field(default_factory=dict[str, float])


def pair_loss_inputs(
    logp: Float[Tensor, "b t"], pairs: PairBatch, stats: DistributionStats | None = None
) -> dict[str, Float[Tensor, " p"]]:
    """The ``PAIR_FIELDS`` by name; the ``DISTRIBUTION_FIELDS`` only with ``stats``."""
    mask, reference = pairs.mask, pairs.reference_logp.to(logp)
    count = mask.sum(dim=1)
    shorter = torch.minimum(*count.chunk(2)).repeat(2)
    head = mask & (mask.cumsum(dim=1) <= shorter[:, None])
    both = {
        "{}_logp": _masked_sum(logp, mask),
        "{}_head_logp": _masked_sum(logp, head),
        "reference_{}_logp": _masked_sum(reference, mask),
        "reference_{}_head_logp": _masked_sum(reference, head),
        "{}_length": count.to(logp.dtype),
    }
    if stats:
        both |= {"{}_kl": _masked_sum(stats.kl, mask), "{}_collision": _masked_sum(stats.collision, mask)}
    fields = {"chosen_reward": pairs.chosen_reward.to(logp), "rejected_reward": pairs.rejected_reward.to(logp)}
    for name, values in both.items():
        fields[name.format("chosen")], fields[name.format("rejected")] = values.chunk(2)
    return fields


def pair_metrics(fields: dict[str, Float[Tensor, " p"]]) -> dict[str, Float[Tensor, " p"]]:
    """Metrics of each pair: its implied rewards, their margin, and the accuracy (1 if the chosen reward is higher).

    The implied reward is log(π/π_ref) in nats, without the method's factor beta; log π without a reference. The
    accuracy of a tie is ½: a policy equal to the reference prefers neither response.
    """
    chosen = fields["chosen_logp"] - fields["reference_chosen_logp"]
    rejected = fields["rejected_logp"] - fields["reference_rejected_logp"]
    margin = (chosen - rejected).detach()
    accuracy = (margin.sign() + 1) / 2
    return {
        "accuracy": accuracy, "margin": margin, "chosen_reward": chosen.detach(), "rejected_reward": rejected.detach()
    }  # fmt: skip


def pair_batches(sequences: Sequences, tokens_per_microbatch: int) -> Iterator[Int[Tensor, " n"]]:
    """Micro-batches of pairs, as the pairs' numbers: at most ``tokens_per_microbatch`` positions, similar lengths.

    The positions of a pair are the tokens of its prompt and of its two responses. A pair with more runs alone.
    """
    chosen, rejected = (half.tolist() for half in row_lengths(sequences.mask).chunk(2))
    batch: list[int] = []
    room = tokens_per_microbatch
    for pair in sorted(range(len(chosen)), key=lambda i: max(chosen[i], rejected[i])):
        cost = len(sequences.prompts[pair]) + chosen[pair] + rejected[pair]
        if batch and cost > room:
            yield torch.tensor(batch)
            batch, room = [], tokens_per_microbatch
        batch.append(pair)
        room -= cost
    yield torch.tensor(batch)


def pair_logprobs(model: nn.Module, sequences: Sequences, forward: ForwardContext) -> Float[Tensor, "b t"]:
    """Log-probs of pairs on the CPU, without gradients, in the micro-batches of the update."""
    parts = (_rows(pairs, sequences) for pairs in pair_batches(sequences, forward.tokens_per_microbatch))
    return microbatched_logprobs(parts, model, sequences, forward)


def pair_gradient(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    experience: PairExperience,
    objective: Objective,
    settings: UpdateSettings,
) -> dict[str, float]:
    """One optimizer step on the mean loss over the pairs, with gradient accumulation over micro-batches.

    The gradient does not depend on the micro-batches. Without pairs nothing changes: even with a zero gradient, the
    optimizer's momentum would move the weights. Statistics of the tokens' distributions, which need a forward pass of
    the reference next to the policy's, are computed only for an objective that reads them.

    Raises:
        RuntimeError: the gradient is not finite. The weights are unchanged.
    """
    count = len(experience.sequences.prompts)
    if not count:
        return {}
    sums: dict[str, Tensor] = {}
    optimizer.zero_grad(set_to_none=True)
    with_stats = not objective.reads.isdisjoint(DISTRIBUTION_FIELDS)
    for outputs, stats, pairs, _ in _microbatch_outputs(model, experience, settings.forward, with_stats):
        fields = pair_loss_inputs(outputs.logp, pairs, stats)
        loss, terms = example_loss(objective, fields, count)
        loss.backward()
        sums = add_sums(sums, loss_metrics(loss, terms) | _metric_sums(fields, outputs, pairs))
    return _means(sums, count) | clipped_step(model, optimizer, settings.max_grad_norm)


def two_pass_pair_gradient(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    experience: PairExperience,
    objective: Objective,
    settings: UpdateSettings,
) -> dict[str, float]:
    """``pair_gradient`` for a loss that compares the pairs of a batch with each other, so that it reads all at once.

    The first pass computes all log-probs without a graph, then the loss and its gradient with respect to them. The
    second pass computes the log-probs of each micro-batch again and backpropagates that gradient. It costs one more
    forward pass than ``pair_gradient``, and the gradient does not depend on the micro-batches.

    Raises:
        RuntimeError: the gradient is not finite. The weights are unchanged.
    """
    count = len(experience.sequences.prompts)
    if not count:
        return {}
    # First pass: the gradient of the loss with respect to the log-probs.
    logp = pair_logprobs(model, experience.sequences, settings.forward).requires_grad_()
    loss, terms = example_loss(objective, pair_loss_inputs(logp, experience.batch), count)
    (logp_gradient,) = torch.autograd.grad(loss, logp)
    sums = loss_metrics(loss, terms)

    # Second pass: the gradient with respect to the weights.
    optimizer.zero_grad(set_to_none=True)
    for outputs, _, pairs, rows in _microbatch_outputs(model, experience, settings.forward, with_stats=False):
        (outputs.logp * logp_gradient[rows, : outputs.logp.shape[1]].to(outputs.logp)).sum().backward()
        sums = add_sums(sums, _metric_sums(pair_loss_inputs(outputs.logp, pairs), outputs, pairs))
    return _means(sums, count) | clipped_step(model, optimizer, settings.max_grad_norm)


def _microbatch_outputs(
    model: nn.Module, experience: PairExperience, forward: ForwardContext, with_stats: bool
) -> Iterator[tuple[Outputs, DistributionStats | None, PairBatch, Int[Tensor, " n"]]]:
    """Outputs, statistics of distributions, pairs, and rows in the batch of each micro-batch."""
    batch, temperature = experience.batch, forward.temperature
    for pairs in pair_batches(experience.sequences, forward.tokens_per_microbatch):
        rows, stats = _rows(pairs, experience.sequences), None
        part = select_rows(experience.sequences, rows)
        with forward.precision():
            if with_stats:
                outputs, stats = logprobs_with_stats(model, part, experience.reference, temperature)
            else:
                outputs = compute_logprobs(model, part, temperature)
        width, device = outputs.logp.shape[1], outputs.logp.device
        mask, reference_logp = (field[rows, :width].to(device) for field in (batch.mask, batch.reference_logp))
        part_batch = PairBatch(mask, reference_logp, batch.chosen_reward[pairs], batch.rejected_reward[pairs])
        yield outputs, stats, part_batch, rows


def _rows(pairs: Int[Tensor, " n"], sequences: Sequences) -> Int[Tensor, " m"]:
    """The rows of some pairs: their chosen responses, then their rejected ones."""
    return torch.cat([pairs, pairs + len(sequences.prompts)])


def _masked_sum(logp: Float[Tensor, "b t"], mask: Bool[Tensor, "b t"]) -> Float[Tensor, " b"]:
    return logp.masked_fill(~mask, 0).sum(dim=1)


def _metric_sums(fields: dict[str, Tensor], outputs: Outputs, pairs: PairBatch) -> dict[str, Tensor]:
    """Sums over some pairs: their metrics, the entropy of their tokens, and the number of tokens."""
    sums = {name: value.sum() for name, value in pair_metrics(fields).items()}
    return sums | {"entropy": _masked_sum(outputs.entropy.detach(), pairs.mask).sum(), "count": pairs.mask.sum()}


def add_sums(sums: Mapping[str, Tensor], more: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``sums`` plus ``more``, by name. They stay tensors, so that the host does not wait for the device."""
    return {**sums, **{name: sums[name] + value if name in sums else value for name, value in more.items()}}


def _means(sums: Mapping[str, Tensor], count: int) -> dict[str, float]:
    """Means over pairs, or over tokens for the entropy. Losses are means already."""
    numbers = to_numbers(sums)
    tokens = numbers.pop("count")
    per_pair = ("accuracy", "margin", "chosen_reward", "rejected_reward")
    divisors = dict.fromkeys(per_pair, float(count)) | {"entropy": tokens}
    return {name: value / divisors.get(name, 1.0) for name, value in numbers.items()}


def to_numbers(sums: Mapping[str, Tensor]) -> dict[str, float]:
    """Tensors of one number each as numbers, with a single transfer from their device. One is named ``loss``."""
    loss = sums["loss"]
    return dict(zip(sums, torch.stack([value.to(loss) for value in sums.values()]).tolist(), strict=True))
