"""Where batches come from: demonstrations read, or responses sampled, scored and given an advantage.

A source is a function of the step and of what the last one left, so a run that stopped at any step goes on as if it
never had.
"""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad

from grape_rl.data.chat import decode_text
from grape_rl.maths.divergence import k3
from grape_rl.model.forward import ForwardContext
from grape_rl.model.logprobs import compute_logprobs, microbatches, select_rows
from grape_rl.model.sampler import OnResponse
from grape_rl.reward.scores import Scorer, check_missing
from grape_rl.rollout.advantages import PLAIN, AdvantageInputs, estimate_advantages
from grape_rl.rollout.dynamic_sampling import Draw, ScoredRollout, stacked_rows
from grape_rl.rollout.records import records, rollout_metrics, verdict_metrics, warnings_of
from grape_rl.types import Batch, Finish, Response, Rollout, Sequences


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

Sampler = Callable[[Sequence[Int[Tensor, " _"]], int, int, int, OnResponse | None], Rollout]
"""Prompts, responses a prompt, seed, policy version, and who hears of each response as it ends → a rollout."""


Ahead = Callable[[Response], None]
"""Begins to judge a response, before the rest of its batch is there."""


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


def responses(
    prompts: Sequence[Prompt],
    sampler: Sampler,
    scorer: Scorer,
    draws: Callable[[Draw, int], ScoredRollout],
    advantage: Callable[..., Tensor],
    tokenizer: Any,
    reference: Callable[[Sequences], Float[Tensor, "b t"]] | None,
    prompts_per_step: int,
    group_size: int,
    max_tokens: int,
    seed: int,
    failure_limit: float,
    credit: AdvantageInputs = PLAIN,
    ahead: Ahead | None = None,
) -> Source:
    """A source of the model's own responses: sample → score → advantage.

    ``estimate_advantages`` lists what ``advantage`` may read. A response with no advantage (NaN: its reward is
    missing, or the method leaves it out) is masked out, and ``used`` counts the others.

    Raises (the source): as ``drawn``.
    """

    def source(step: int) -> Experience:
        found = drawn(
            step, prompts, sampler, scorer, draws, tokenizer, prompts_per_step, group_size, seed, failure_limit,
            reference, ahead,
        )  # fmt: skip
        rollout, scores, reference_logp = found.drawn.rollout, found.drawn.scores, found.drawn.reference_logp
        given = estimate_advantages(
            advantage, credit, found.drawn, reference_logp, max_tokens, step_seed(seed, step, "advantage")
        )
        usable = ~given.advantage.isnan()
        metrics = found.metrics | {"used": float(usable.sum())}
        if reference_logp is not None:
            metrics["kl"] = float(k3(rollout.behavior_logp, reference_logp)[found.drawn.own].mean())
        warnings = found.warnings
        if not bool(usable.any()):
            warnings += (("nothing_usable", "no response of the step has an advantage: the step changes nothing"),)
        told = records(found.drawn.answers, scores, given.advantage, found.drawn.revised)
        memory = {**given.memory, **scores.memory}
        return Experience(rollout, given.batch, metrics | given.metrics, warnings, told, memory)

    return source


@dataclass(frozen=True)
class Round:
    """A step's responses, scored, with what the log says of them."""

    drawn: ScoredRollout
    metrics: dict[str, float]
    warnings: tuple[tuple[str, str], ...]


def drawn(
    step: int,
    prompts: Sequence[Prompt],
    sampler: Sampler,
    scorer: Scorer,
    draws: Callable[[Draw, int], ScoredRollout],
    tokenizer: Any,
    prompts_per_step: int,
    group_size: int,
    seed: int,
    failure_limit: float,
    reference: Callable[[Sequences], Float[Tensor, "b t"]] | None = None,
    ahead: Ahead | None = None,
) -> Round:
    """A step's own responses, by the policy of that moment: sample → score, once or as often as ``draws`` asks.

    Whatever takes long does not wait for what it does not need: ``ahead`` hears of a response while others are being
    sampled, and the ``reference``'s forward pass runs beside the scoring.

    Metrics are of the first draw: they say what the policy is, not what was kept of it.

    Raises:
        RuntimeError: more than ``failure_limit`` of a draw's verdicts are missing.
    """
    rounds: list[ScoredRollout] = []
    seconds = {"sample_seconds": 0.0, "score_seconds": 0.0, "reference_seconds": 0.0}

    def referred(rollout: Rollout) -> Float[Tensor, "b t"] | None:
        began = time.perf_counter()
        found = reference(rollout) if reference else None
        seconds["reference_seconds"] += time.perf_counter() - began
        return found

    def draw(turn: int, count: int) -> ScoredRollout:
        began = time.perf_counter()
        order = (step, seed) if turn == 0 else (0, step_seed(seed, step, f"order {turn}"))
        asked = [prompts[i] for i in drawn_rows(len(prompts), count, *order)]
        purpose = "sample" if turn == 0 else f"sample {turn}"
        ended = heard(asked, group_size, tokenizer, ahead) if ahead else None
        rollout = sampler([p.tokens for p in asked], group_size, step_seed(seed, step, purpose), step, ended)
        sampled = time.perf_counter()
        answers = graded_responses(rollout, asked, tokenizer)
        with ThreadPoolExecutor(1) as beside:
            waiting = beside.submit(referred, rollout)
            scores = scorer(answers, rollout.group)
            seconds["sample_seconds"] += sampled - began
            seconds["score_seconds"] += time.perf_counter() - sampled
        check_missing(scores, failure_limit)
        rounds.append(ScoredRollout(rollout, tuple(answers), scores, waiting.result()))
        return rounds[-1]

    kept = draws(draw, prompts_per_step)
    kept = _referred_whole(kept, reference) if reference else kept
    graded = [row for one in rounds for row in one.scores.verdicts]
    verdicts = [each for row in (*graded, *kept.scores.verdicts[kept.sampled :]) for each in row]
    told = verdict_metrics(verdicts, kept.scores, kept.rollout.group)
    metrics = rollout_metrics(rounds[0].rollout, rounds[0].scores) | told | seconds
    if len(rounds) > 1:
        metrics["tokens"] = float(sum(each.rollout.mask.sum() for each in rounds))
        metrics["extra_draws"] = float(len(rounds) - 1)
    metrics["tokens"] += float(kept.rollout.mask.sum() - kept.own.sum())
    warnings = warnings_of(kept.scores, kept.rollout, verdicts, told) + kept.revised.warnings
    return Round(kept, metrics | kept.revised.metrics, warnings)


def _referred_whole(drawn: ScoredRollout, reference: Callable[[Sequences], Float[Tensor, "b t"]]) -> ScoredRollout:
    """The draw with the reference's log-probs of its revisions too, which came when the others were known."""
    if drawn.sampled == len(drawn.answers) or drawn.reference_logp is None:
        return drawn
    late = reference(select_rows(drawn.rollout, torch.arange(drawn.sampled, len(drawn.answers))))
    width = drawn.rollout.mask.shape[1]
    return replace(drawn, reference_logp=pad(stacked_rows(drawn.reference_logp, late), (0, width))[:, :width])


def graded_responses(rollout: Rollout, prompts: Sequence[Prompt], tokenizer: Any) -> list[Response]:
    """The rollout's responses as graders see them."""
    return [
        _graded(prompts[g], rollout.tokens[i][rollout.mask[i]], finish, tokenizer)
        for i, (g, finish) in enumerate(zip(rollout.group.tolist(), rollout.finish, strict=True))
    ]


def heard(prompts: Sequence[Prompt], n: int, tokenizer: Any, ahead: Ahead) -> OnResponse:
    """What tells ``ahead`` of each response to the prompts, ``n`` to each, as the sampler ends it."""

    def ended(row: int, tokens: Int[Tensor, " t"], finish: Finish) -> None:
        ahead(_graded(prompts[row // n], tokens, finish, tokenizer))

    return ended


def _graded(prompt: Prompt, tokens: Int[Tensor, " t"], finish: Finish, tokenizer: Any) -> Response:
    return Response(prompt.text, decode_text(tokenizer, tokens), prompt.row, len(tokens), finish)


def reference_logprobs(
    model: nn.Module,
    forward: ForwardContext,
) -> Callable[[Sequences], Float[Tensor, "b t"]]:
    """A function from sequences to their log-probabilities under a model that is not trained."""

    @torch.no_grad()
    def reference(sequences: Sequences) -> Float[Tensor, "b t"]:
        out = torch.zeros(sequences.mask.shape)
        for rows in microbatches(sequences, forward.tokens_per_microbatch):
            with forward.precision():
                part = compute_logprobs(model, select_rows(sequences, rows), forward.temperature).logp
            out[rows, : part.shape[1]] = part.float().cpu()
        return out

    return reference
