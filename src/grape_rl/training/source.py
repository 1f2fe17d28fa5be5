"""Where batches come from: demonstrations read, or responses sampled, scored and given an advantage.

A source is a function of the step and of what the last one left, so a run that stopped at any step goes on as if it
never had.
"""

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from grape_rl.data.chat import Example, stacked, text
from grape_rl.maths.divergence import k3
from grape_rl.model.logprobs import lengths, logprobs, microbatches, selected
from grape_rl.model.pack import packs
from grape_rl.reward.scores import Scorer, checked, item_table
from grape_rl.training.credit import PLAIN, Credit, credited
from grape_rl.training.draw import Draw, Drawn, equal_groups
from grape_rl.types import Batch, Response, Rollout, Scores, Sequences, Verdict


@dataclass(frozen=True)
class Experience:
    """What one step learns from: sequences, what the objective sees of them, and what the log says of them.

    ``memory`` is what the step leaves to the next, by name.
    """

    sequences: Sequences
    batch: Batch
    metrics: dict[str, float]
    warnings: tuple[tuple[str, str], ...] = ()
    records: tuple[dict[str, Any], ...] = ()
    memory: Mapping[str, float] = field(default_factory=dict[str, float])


Source = Callable[[int], Experience]
"""The step's number, from 0 → its experience."""

Sampler = Callable[[Sequence[Int[Tensor, " _"]], int, int, int], Rollout]
"""Prompts, responses a prompt, seed, policy version → a rollout."""


@dataclass(frozen=True)
class Prompt:
    """A prompt to sample from: its tokens, its text as a grader sees it, and its data row."""

    tokens: Int[Tensor, " p"]
    text: str
    row: dict[str, Any]


def drawn_rows(count: int, per_step: int, step: int, seed: int) -> list[int]:
    """The rows of a step: each epoch is a fresh permutation, and every row comes up once before any comes again.

    >>> sorted(drawn_rows(4, 2, 0, seed=7) + drawn_rows(4, 2, 1, seed=7))
    [0, 1, 2, 3]
    """
    rows: list[int] = []
    while len(rows) < per_step:
        epoch, offset = divmod(step * per_step + len(rows), count)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(step_seed(seed, epoch, "order")))
        rows += order[offset : offset + per_step - len(rows)].tolist()
    return rows


def step_seed(seed: int, step: int, purpose: str) -> int:
    """A seed of 63 bits for one purpose at one step, unlike any other's."""
    digest = hashlib.blake2b(f"{seed} {step} {purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def demonstrations(examples: Sequence[Example], rows_per_step: int, seed: int) -> Source:
    """A source of demonstrations: every token that is learned with advantage 1, so that −A · logp is SFT's loss."""

    def source(step: int) -> Experience:
        sequences = stacked([examples[i] for i in drawn_rows(len(examples), rows_per_step, step, seed)])
        ones, zeros = sequences.mask.float(), torch.zeros(sequences.mask.shape)
        metrics = {
            "length": float(ones.sum(dim=1).mean()),
            "tokens": float(lengths(sequences.mask).sum() + sum(len(p) for p in sequences.prompts)),
        }
        return Experience(sequences, Batch(sequences.mask, zeros, zeros, ones), metrics)

    return source


def responses(
    prompts: Sequence[Prompt],
    sampler: Sampler,
    scorer: Scorer,
    draws: Callable[[Draw, int], Drawn],
    advantage: Callable[..., Tensor],
    tokenizer: Any,
    reference: Callable[[Sequences], Float[Tensor, "b t"]] | None,
    prompts_per_step: int,
    group_size: int,
    max_tokens: int,
    seed: int,
    failure_limit: float,
    credit: Credit = PLAIN,
) -> Source:
    """A source of the model's own responses: sample → score → advantage.

    What ``advantage`` may read, ``credited`` says. A response with no advantage (NaN: its reward is missing, or the
    method leaves it out) is masked out, and ``used`` counts the others.

    Raises (the source): as ``drawn``.
    """

    def source(step: int) -> Experience:
        found = drawn(
            step, prompts, sampler, scorer, draws, tokenizer, prompts_per_step, group_size, seed, failure_limit
        )
        began = time.perf_counter()
        rollout, scores = found.drawn.rollout, found.drawn.scores
        reference_logp = reference(rollout) if reference else None
        given = credited(advantage, credit, found.drawn, reference_logp, max_tokens, step_seed(seed, step, "advantage"))
        usable = ~given.advantage.isnan()
        metrics = found.metrics | {"used": float(usable.sum()), "reference_seconds": time.perf_counter() - began}
        if reference_logp is not None:
            metrics["kl"] = float(k3(rollout.behavior_logp, reference_logp)[rollout.mask].mean())
        warnings = found.warnings
        if not bool(usable.any()):
            warnings += (("nothing_usable", "no response of the step has an advantage: the step changes nothing"),)
        told = records(found.drawn.answers, scores, given.advantage)
        memory = {**given.memory, **scores.memory}
        return Experience(rollout, given.batch, metrics | given.metrics, warnings, told, memory)

    return source


@dataclass(frozen=True)
class Round:
    """A step's responses, scored, with what the log says of them."""

    drawn: Drawn
    metrics: dict[str, float]
    warnings: tuple[tuple[str, str], ...]


def drawn(
    step: int,
    prompts: Sequence[Prompt],
    sampler: Sampler,
    scorer: Scorer,
    draws: Callable[[Draw, int], Drawn],
    tokenizer: Any,
    prompts_per_step: int,
    group_size: int,
    seed: int,
    failure_limit: float,
) -> Round:
    """A step's own responses, by the policy of that moment: sample → score, once or as often as ``draws`` asks.

    Metrics are of the first draw: they say what the policy is, not what was kept of it.

    Raises:
        RuntimeError: more than ``failure_limit`` of a draw's verdicts are missing.
    """
    rounds: list[Drawn] = []
    seconds = {"sample_seconds": 0.0, "score_seconds": 0.0}

    def draw(turn: int, count: int) -> Drawn:
        began = time.perf_counter()
        order = (step, seed) if turn == 0 else (0, step_seed(seed, step, f"order {turn}"))
        asked = [prompts[i] for i in drawn_rows(len(prompts), count, *order)]
        purpose = "sample" if turn == 0 else f"sample {turn}"
        rollout = sampler([p.tokens for p in asked], group_size, step_seed(seed, step, purpose), step)
        sampled = time.perf_counter()
        answers = graded_responses(rollout, asked, tokenizer)
        rounds.append(Drawn(rollout, tuple(answers), scorer(answers, rollout.group)))
        checked(rounds[-1].scores, failure_limit)
        seconds["sample_seconds"] += sampled - began
        seconds["score_seconds"] += time.perf_counter() - sampled
        return rounds[-1]

    kept = draws(draw, prompts_per_step)
    missing = [v for each in rounds for row in each.scores.verdicts for v in row if v.missing]
    metrics = rollout_metrics(rounds[0].rollout, rounds[0].scores) | {"missing": float(len(missing))} | seconds
    if len(rounds) > 1:
        metrics["tokens"] = float(sum(each.rollout.mask.sum() for each in rounds))
        metrics["extra_draws"] = float(len(rounds) - 1)
    return Round(kept, metrics, _warnings(kept.scores, kept.rollout, missing))


def graded_responses(rollout: Rollout, prompts: Sequence[Prompt], tokenizer: Any) -> list[Response]:
    """The rollout's responses as graders see them."""
    counts = rollout.mask.sum(dim=1).tolist()
    return [
        Response(
            prompts[g].text, text(tokenizer, rollout.tokens[i][rollout.mask[i]]), prompts[g].row, counts[i], finish
        )
        for i, (g, finish) in enumerate(zip(rollout.group.tolist(), rollout.finish, strict=True))
    ]


def reference_logprobs(
    model: nn.Module,
    temperature: float,
    tokens_per_microbatch: int,
    precision: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Callable[[Sequences], Float[Tensor, "b t"]]:
    """A function from sequences to their log-probabilities under a model that is not trained."""

    @torch.no_grad()
    def reference(sequences: Sequences) -> Float[Tensor, "b t"]:
        out = torch.zeros(sequences.mask.shape)
        for rows in microbatches(sequences, tokens_per_microbatch, packs(model)):
            with precision():
                part = logprobs(model, selected(sequences, rows), temperature).logp
            out[rows, : part.shape[1]] = part.float().cpu()
        return out

    return reference


def rollout_metrics(rollout: Rollout, scores: Scores) -> dict[str, float]:
    """The rollout in numbers: reward, length, the share cut off, and each item's mean score."""
    known = scores.reward[~scores.reward.isnan()]
    metrics = {
        "reward": float(known.mean()) if len(known) else math.nan,
        "reward_std": float(known.std(correction=0)) if len(known) else math.nan,
        "equal_groups": float(equal_groups(scores.reward, rollout.group).float().mean()),
        "length": float(rollout.mask.sum(dim=1).float().mean()),
        "cut_off": sum(f == "length" for f in rollout.finish) / len(rollout.finish),
        "tokens": float(rollout.mask.sum()),
    }
    for item in item_table(scores):
        metrics[f"item/{item.category}/{item.item}"] = item.mean
    return metrics


def _warnings(scores: Scores, rollout: Rollout, missing: Sequence[Verdict]) -> tuple[tuple[str, str], ...]:
    found: list[tuple[str, str]] = []
    known = scores.reward[~scores.reward.isnan()]
    if len(known) and bool((known == known[0]).all()):
        found.append(("equal_rewards", f"every reward of the step is {float(known[0]):g}: there is nothing to prefer"))
    if all(f == "length" for f in rollout.finish):
        limit = rollout.tokens.shape[1]
        found.append(("all_cut_off", f"every response was cut off at {limit} tokens: raise sampling.max_tokens"))
    if missing:
        first = f"item {missing[0].item!r}, {missing[0].status}: {missing[0].reasoning}"
        found.append(("missing", f"{len(missing)} verdicts are missing, the first of {first}"))
    return tuple(found)


def records(answers: Sequence[Response], scores: Scores, advantage: Float[Tensor, " b"]) -> tuple[dict[str, Any], ...]:
    """Each response as plain data: what was asked and answered, its verdicts, reward and advantage."""
    return tuple(
        {
            "prompt": answer.prompt,
            "response": answer.text,
            "finish": answer.finish,
            "tokens": answer.tokens,
            "category": category,
            "reward": json_number(reward),
            "advantage": json_number(a),
            "verdicts": [{k: json_number(v) for k, v in asdict(verdict).items()} for verdict in verdicts],
        }
        for answer, category, reward, a, verdicts in zip(
            answers, scores.category, scores.reward.tolist(), advantage.tolist(), scores.verdicts, strict=True
        )
    )


def json_number(value: Any) -> Any:
    """JSON has no NaN: a missing number is null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
