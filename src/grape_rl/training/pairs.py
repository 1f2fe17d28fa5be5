"""Learning from pairs: where they come from, what a loss reads of them, and how they change the policy.

A pair is never split: its prompt is encoded once for both responses, and its loss needs both.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from grape_rl.model.distribution import DistributionStats, logprobs_with_stats
from grape_rl.model.forward import ForwardContext
from grape_rl.model.logprobs import compute_logprobs, row_lengths, select_rows
from grape_rl.training.objective import CHOICE_FIELDS, Objective, pair_loss
from grape_rl.training.optimizer import clipped_step
from grape_rl.training.update import UpdateSettings
from grape_rl.types import Outputs, Pairs, Sequences

Reference = Callable[[Sequences], Float[Tensor, "b t"]]
"""Sequences of pairs → their log-probs under a model that is not trained."""


@dataclass(frozen=True)
class PairExperience:
    """What one step learns from: pairs as sequences, what the objective sees of them, and what the log says.

    ``reference`` is the reference policy itself, for a loss that reads its whole choices, or an update that moves it.
    """

    sequences: Sequences
    batch: Pairs
    metrics: dict[str, float]
    warnings: tuple[tuple[str, str], ...] = ()
    records: tuple[dict[str, object], ...] = ()
    reference: nn.Module | None = None
    memory: Mapping[str, float] = field(default_factory=dict[str, float])


def pair_fields(
    logp: Float[Tensor, "b t"], pairs: Pairs, whole: DistributionStats | None = None
) -> dict[str, Float[Tensor, " p"]]:
    """What a loss per pair may read, by its name: ``PAIR_FIELDS``, of which ``CHOICE_FIELDS`` only with ``whole``."""
    mask, reference = pairs.mask, pairs.reference_logp.to(logp)
    count = mask.sum(dim=1)
    shorter = torch.minimum(*count.chunk(2)).repeat(2)
    head = mask & (mask.cumsum(dim=1) <= shorter[:, None])
    halves = {
        "{}_logp": _summed(logp, mask),
        "{}_head_logp": _summed(logp, head),
        "reference_{}_logp": _summed(reference, mask),
        "reference_{}_head_logp": _summed(reference, head),
        "{}_length": count.to(logp.dtype),
    }
    if whole:
        halves |= {"{}_kl": _summed(whole.kl, mask), "{}_collision": _summed(whole.collision, mask)}
    fields = {"chosen_reward": pairs.chosen_reward.to(logp), "rejected_reward": pairs.rejected_reward.to(logp)}
    for name, both in halves.items():
        fields[name.format("chosen")], fields[name.format("rejected")] = both.chunk(2)
    return fields


def pair_metrics(fields: dict[str, Float[Tensor, " p"]]) -> dict[str, Float[Tensor, " p"]]:
    """How each pair stands: its implied rewards, their margin, and whether the chosen response has the higher one.

    The reward that a policy implies is log(π/π_ref) in nats, but for the method's factor beta; log π without a
    reference. ``accuracy`` of a tie is ½: at the reference, neither response is preferred.
    """
    chosen = fields["chosen_logp"] - fields["reference_chosen_logp"]
    rejected = fields["rejected_logp"] - fields["reference_rejected_logp"]
    margin = (chosen - rejected).detach()
    accuracy = (margin.sign() + 1) / 2
    return {
        "accuracy": accuracy, "margin": margin, "chosen_reward": chosen.detach(), "rejected_reward": rejected.detach()
    }  # fmt: skip


def pair_batches(sequences: Sequences, tokens_per_microbatch: int) -> Iterator[Int[Tensor, " n"]]:
    """Pairs to run together, by number: within the budget of positions, and of similar lengths.

    A pair costs as many positions as its prompt and its two responses have tokens. A single one over the budget runs
    alone.
    """
    chosen, rejected = (half.tolist() for half in row_lengths(sequences.mask).chunk(2))
    taken: list[int] = []
    room = tokens_per_microbatch
    for pair in sorted(range(len(chosen)), key=lambda i: max(chosen[i], rejected[i])):
        cost = len(sequences.prompts[pair]) + chosen[pair] + rejected[pair]
        if taken and cost > room:
            yield torch.tensor(taken)
            taken, room = [], tokens_per_microbatch
        taken.append(pair)
        room -= cost
    yield torch.tensor(taken)


def pair_logprobs(
    model: nn.Module,
    sequences: Sequences,
    forward: ForwardContext,
) -> Float[Tensor, "b t"]:
    """The log-probs of pairs without their graph, in the micro-batches that the update takes."""
    parts = (_rows(pairs, sequences) for pairs in pair_batches(sequences, forward.tokens_per_microbatch))
    return logprobs_in(parts, model, sequences, forward)


def logprobs_in(
    parts: Iterable[Int[Tensor, " _"]],
    model: nn.Module,
    sequences: Sequences,
    forward: ForwardContext,
) -> Float[Tensor, "b t"]:
    """The log-probs of sequences without their graph, some rows at a time: ``parts`` has every row once."""
    out: Tensor | None = None
    with torch.no_grad():
        for rows in parts:
            with forward.precision():
                logp = compute_logprobs(model, select_rows(sequences, rows), forward.temperature).logp.cpu()
            out = torch.zeros(sequences.mask.shape, dtype=logp.dtype) if out is None else out
            out[rows, : logp.shape[1]] = logp
    assert out is not None
    return out


def pair_gradient(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    experience: PairExperience,
    objective: Objective,
    settings: UpdateSettings,
) -> dict[str, float]:
    """One optimizer step by the mean loss over the pairs: the same however they are cut into micro-batches.

    Without any pair nothing changes: even a zero gradient would let the optimizer's momentum move the weights. The
    whole choices that tokens came from, and with them the reference's forward pass beside the policy's, are taken only
    for an objective that reads something of them.

    Raises:
        RuntimeError: a gradient that is not finite, before it moves the weights.
    """
    count = len(experience.sequences.prompts)
    if not count:
        return {}
    told: dict[str, Tensor] = {}
    optimizer.zero_grad(set_to_none=True)
    wholly = not objective.reads.isdisjoint(CHOICE_FIELDS)
    for outputs, whole, seen, _ in _forward(model, experience, settings, wholly):
        fields = pair_fields(outputs.logp, seen, whole)
        share, terms = pair_loss(objective, fields, count)
        share.backward()
        told = added(told, _told(share, terms) | _sums_of(fields, outputs, seen))
    return _means(told, count) | {"grad_norm": clipped_step(model, optimizer, settings.max_grad_norm)}


def compared_pair_gradient(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    experience: PairExperience,
    objective: Objective,
    settings: UpdateSettings,
) -> dict[str, float]:
    """The same for a loss that compares pairs with each other, so that it needs the log-probs of all at once.

    First every log-prob without its graph, and the loss's gradient by each; then, micro-batch by micro-batch, the graph
    again, and that gradient sent through it. One more forward pass, and the same gradient however the pairs are cut.

    Raises:
        RuntimeError: a gradient that is not finite, before it moves the weights.
    """
    count = len(experience.sequences.prompts)
    if not count:
        return {}
    logp = pair_logprobs(model, experience.sequences, settings.forward).requires_grad_()
    whole, terms = pair_loss(objective, pair_fields(logp, experience.batch), count)
    (slope,) = torch.autograd.grad(whole, logp)
    told = _told(whole, terms)
    optimizer.zero_grad(set_to_none=True)
    for outputs, _, seen, rows in _forward(model, experience, settings, wholly=False):
        (outputs.logp * slope[rows, : outputs.logp.shape[1]].to(outputs.logp)).sum().backward()
        told = added(told, _sums_of(pair_fields(outputs.logp, seen), outputs, seen))
    return _means(told, count) | {"grad_norm": clipped_step(model, optimizer, settings.max_grad_norm)}


def _forward(
    model: nn.Module, experience: PairExperience, settings: UpdateSettings, wholly: bool
) -> Iterator[tuple[Outputs, DistributionStats | None, Pairs, Int[Tensor, " n"]]]:
    """Micro-batch by micro-batch: the model's outputs, the pairs that they are of, and their rows in the batch."""
    batch, temperature = experience.batch, settings.forward.temperature
    for pairs in pair_batches(experience.sequences, settings.forward.tokens_per_microbatch):
        rows, whole = _rows(pairs, experience.sequences), None
        part = select_rows(experience.sequences, rows)
        with settings.forward.precision():
            if wholly:
                outputs, whole = logprobs_with_stats(model, part, experience.reference, temperature)
            else:
                outputs = compute_logprobs(model, part, temperature)
        width, device = outputs.logp.shape[1], outputs.logp.device
        mask, reference_logp = (field[rows, :width].to(device) for field in (batch.mask, batch.reference_logp))
        yield (
            outputs,
            whole,
            Pairs(mask, reference_logp, batch.chosen_reward[pairs], batch.rejected_reward[pairs]),
            rows,
        )


def _rows(pairs: Int[Tensor, " n"], sequences: Sequences) -> Int[Tensor, " m"]:
    """The rows of some pairs: their chosen responses, then their rejected ones."""
    return torch.cat([pairs, pairs + len(sequences.prompts)])


def _summed(logp: Float[Tensor, "b t"], mask: Bool[Tensor, "b t"]) -> Float[Tensor, " b"]:
    return logp.masked_fill(~mask, 0).sum(dim=1)


def _told(share: Tensor, terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """The loss, and where it has several terms, each one's share of it."""
    return {"loss": share.detach()} | (terms if len(terms) > 1 else {})


def _sums_of(fields: dict[str, Tensor], outputs: Outputs, pairs: Pairs) -> dict[str, Tensor]:
    """Over some pairs: their metrics, the entropy, and how many tokens that is over."""
    told = {name: value.sum() for name, value in pair_metrics(fields).items()}
    return told | {"entropy": _summed(outputs.entropy.detach(), pairs.mask).sum(), "count": pairs.mask.sum()}


def added(sums: Mapping[str, Tensor], more: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sums over some parts of a batch and over one more: tensors, so that the device need not be waited for."""
    return {**sums, **{name: sums[name] + value if name in sums else value for name, value in more.items()}}


def _means(sums: Mapping[str, Tensor], count: int) -> dict[str, float]:
    """Sums over a batch as means over its pairs, or its tokens for the entropy; losses are means already."""
    numbers = told_at_once(sums)
    tokens = numbers.pop("count")
    of_pairs = ("accuracy", "margin", "chosen_reward", "rejected_reward")
    over = dict.fromkeys(of_pairs, float(count)) | {"entropy": tokens}
    return {name: value / over.get(name, 1.0) for name, value in numbers.items()}


def told_at_once(sums: Mapping[str, Tensor]) -> dict[str, float]:
    """Tensors of one number each as numbers, read from their device in one go."""
    first = sums["loss"]
    return dict(zip(sums, torch.stack([value.to(first) for value in sums.values()]).tolist(), strict=True))
