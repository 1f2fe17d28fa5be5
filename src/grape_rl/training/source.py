"""Where batches come from: demonstrations read, or responses sampled, scored and given an advantage.

A source is a function of the step alone, so a run that stopped at any step goes on as if it never had.
"""

import hashlib
import inspect
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from grape_rl.data.chat import Example, stacked, text
from grape_rl.maths.divergence import k3
from grape_rl.model.logprobs import lengths, logprobs, microbatches, selected
from grape_rl.model.pack import packs
from grape_rl.reward.scores import Scorer, checked, item_table
from grape_rl.training.draw import Draw, Drawn, equal_groups
from grape_rl.types import Batch, Response, Rollout, Scores, Sequences, Verdict


@dataclass(frozen=True)
class Experience:
    """What one step learns from: sequences, what the objective sees of them, and what the log says of them."""

    sequences: Sequences
    batch: Batch
    metrics: dict[str, float]
    warnings: tuple[tuple[str, str], ...] = ()
    records: tuple[dict[str, Any], ...] = ()


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
) -> Source:
    """A source of the model's own responses: sample → score → advantage.

    The parameters of ``advantage`` name what it reads: ``reward`` and ``group``, ``length`` (each response's tokens),
    ``max_tokens`` (the most that one may have), and ``seed`` (of the step). A response with no advantage (NaN: its
    reward is missing, or the method leaves it out) is masked out. Without a ``reference`` the behavior policy stands in
    for it, which makes its KL 0. Metrics are of the first draw: they say what the policy is, not what was kept of it.

    Raises (the source):
        RuntimeError: more than ``failure_limit`` of a draw's verdicts are missing.
    """

    def source(step: int) -> Experience:
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

        drawn = draws(draw, prompts_per_step)
        began = time.perf_counter()
        rollout, scores = drawn.rollout, drawn.scores
        row_advantage = _compared(advantage, drawn, max_tokens, step_seed(seed, step, "advantage"))
        usable = ~row_advantage.isnan()
        field = row_advantage.nan_to_num().float()[:, None].expand_as(rollout.behavior_logp)
        reference_logp = reference(rollout) if reference else rollout.behavior_logp
        batch = Batch(rollout.mask & usable[:, None], rollout.behavior_logp, reference_logp, field)
        missing = [v for each in rounds for row in each.scores.verdicts for v in row if v.missing]
        metrics = rollout_metrics(rounds[0].rollout, rounds[0].scores) | {"missing": float(len(missing))} | seconds
        metrics["reference_seconds"] = time.perf_counter() - began
        if len(rounds) > 1:
            metrics["tokens"] = float(sum(each.rollout.mask.sum() for each in rounds))
            metrics["extra_draws"] = float(len(rounds) - 1)
        if reference:
            metrics["kl"] = float(k3(rollout.behavior_logp, reference_logp)[rollout.mask].mean())
        warnings = _warnings(scores, rollout, usable, missing)
        return Experience(rollout, batch, metrics, warnings, records(drawn.answers, scores, row_advantage))

    return source


def _compared(advantage: Callable[..., Tensor], drawn: Drawn, max_tokens: int, seed: int) -> Float[Tensor, " b"]:
    """Each response's advantage, by what the function's parameters ask for."""
    fields = {
        "reward": drawn.scores.reward,
        "group": drawn.rollout.group,
        "length": drawn.rollout.mask.sum(dim=1),
        "max_tokens": max_tokens,
        "seed": seed,
    }
    return advantage(**{name: fields[name] for name in inspect.signature(advantage).parameters if name in fields})


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


def _warnings(
    scores: Scores, rollout: Rollout, usable: Bool[Tensor, " b"], missing: Sequence[Verdict]
) -> tuple[tuple[str, str], ...]:
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
    if not bool(usable.any()):
        found.append(("nothing_usable", "no response of the step has an advantage: the step changes nothing"))
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
