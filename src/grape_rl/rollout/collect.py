"""Collection of one step's responses: sample from the current policy, grade, and compute reference log-probs."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from grape_rl.data.order import derive_seed, rows_of_step
from grape_rl.model.logprobs import select_rows
from grape_rl.model.reference_logprobs import LogprobFunction
from grape_rl.model.sampler import OnResponse
from grape_rl.reward.scores import Scorer, check_missing
from grape_rl.rollout.decoded_responses import Prefetch, Prompt, decode_responses, prefetch_callback
from grape_rl.rollout.dynamic_sampling import SamplingStrategy
from grape_rl.rollout.records import rollout_metrics, rollout_warnings, verdict_metrics
from grape_rl.rollout.scored_rollout import ScoredRollout, stack_padded
from grape_rl.types import Rollout

Sampler = Callable[[Sequence[Int[Tensor, " _"]], int, int, int, OnResponse | None], Rollout]
"""(prompts, responses per prompt, seed, policy version, callback for each finished response) → a rollout."""


@dataclass(frozen=True)
class RolloutSettings:
    """Sizes and limits of the responses of one step.

    Attributes:
        prompts_per_step: number of prompts.
        group_size: responses to each prompt.
        max_tokens: the longest response in tokens.
        seed: the run's seed.
        failure_limit: the largest share of missing verdicts, in [0, 1]. A step with more is an error.
    """

    prompts_per_step: int
    group_size: int
    max_tokens: int
    seed: int
    failure_limit: float


@dataclass(frozen=True)
class RolloutWorker:
    """Functions and data with which responses are sampled and graded.

    Attributes:
        prompts: the prompts of all training rows.
        tokenizer: decodes responses.
        sampler: samples from the policy with the weights that it has when called.
        scorer: grades responses.
        strategy: decides how many groups are sampled, such as ``dynamic_sampling``.
        reference: log-probs under the reference policy; None without one.
        prefetch: starts judging a response before its batch is complete; None without critics.
    """

    prompts: Sequence[Prompt]
    tokenizer: Any
    sampler: Sampler
    scorer: Scorer
    strategy: SamplingStrategy
    reference: LogprobFunction | None = None
    prefetch: Prefetch | None = None


@dataclass(frozen=True)
class CollectedRollout:
    """A step's scored responses, with metrics and warnings for the log."""

    scored: ScoredRollout
    metrics: dict[str, float]
    warnings: tuple[tuple[str, str], ...]


def collect_rollout(worker: RolloutWorker, settings: RolloutSettings, step: int) -> CollectedRollout:
    """Sample a step's responses from the current policy and grade them, in as many rounds as the strategy requires.

    Slow work overlaps: judging starts when a response is finished (``prefetch``), and the forward pass of the
    reference runs while responses are scored.

    Most metrics are about the first round, before dynamic sampling selects groups, so that they describe the policy.

    Raises:
        RuntimeError: more than ``failure_limit`` of a round's verdicts are missing.
    """
    rounds: list[ScoredRollout] = []
    seconds = {"sample_seconds": 0.0, "score_seconds": 0.0, "reference_seconds": 0.0}

    def reference_logp(rollout: Rollout) -> Float[Tensor, "b t"] | None:
        began = time.perf_counter()
        logp = worker.reference(rollout) if worker.reference else None
        seconds["reference_seconds"] += time.perf_counter() - began
        return logp

    def sample_groups(turn: int, count: int) -> ScoredRollout:
        # Sample. Further rounds have an order of rows of their own.
        began = time.perf_counter()
        order = (step, settings.seed) if turn == 0 else (0, derive_seed(settings.seed, step, f"order {turn}"))
        prompts = [worker.prompts[i] for i in rows_of_step(len(worker.prompts), count, *order)]
        seed = derive_seed(settings.seed, step, "sample" if turn == 0 else f"sample {turn}")
        on_response = None
        if worker.prefetch:
            on_response = prefetch_callback(prompts, settings.group_size, worker.tokenizer, worker.prefetch)
        rollout = worker.sampler([p.tokens for p in prompts], settings.group_size, seed, step, on_response)

        # Grade, and run the reference model at the same time.
        sampled = time.perf_counter()
        responses = decode_responses(rollout, prompts, worker.tokenizer)
        with ThreadPoolExecutor(1) as executor:
            logp = executor.submit(reference_logp, rollout)
            scores = worker.scorer(responses, rollout.group)
            seconds["sample_seconds"] += sampled - began
            seconds["score_seconds"] += time.perf_counter() - sampled
        check_missing(scores, settings.failure_limit)
        rounds.append(ScoredRollout(rollout, tuple(responses), scores, logp.result()))
        return rounds[-1]

    scored = worker.strategy(sample_groups, settings.prompts_per_step)
    if worker.reference:
        scored = _with_reference_of_revisions(scored, worker.reference)
    return _with_metrics(scored, rounds, seconds)


def _with_reference_of_revisions(scored: ScoredRollout, reference: LogprobFunction) -> ScoredRollout:
    """The rollout with reference log-probs of its revisions too; those of the other rows are known."""
    if scored.sampled_count == len(scored.responses) or scored.reference_logp is None:
        return scored
    logp = reference(select_rows(scored.rollout, torch.arange(scored.sampled_count, len(scored.responses))))
    width = scored.rollout.mask.shape[1]
    return replace(scored, reference_logp=pad(stack_padded(scored.reference_logp, logp), (0, width))[:, :width])


def _with_metrics(
    scored: ScoredRollout, rounds: Sequence[ScoredRollout], seconds: dict[str, float]
) -> CollectedRollout:
    """The rollout with its metrics and warnings."""
    scores, revisions = scored.scores, scored.revisions
    # Verdicts of all rounds count, including those of groups that dynamic sampling replaced.
    rows = [row for sampled in rounds for row in sampled.scores.verdicts]
    verdicts = [verdict for row in (*rows, *scores.verdicts[scored.sampled_count :]) for verdict in row]
    grading = verdict_metrics(verdicts, scores, scored.rollout.group)
    metrics = rollout_metrics(rounds[0].rollout, rounds[0].scores) | grading | seconds
    if len(rounds) > 1:
        metrics["tokens"] = float(sum(sampled.rollout.mask.sum() for sampled in rounds))
        metrics["extra_draws"] = float(len(rounds) - 1)
    metrics["tokens"] += float(scored.rollout.mask.sum() - scored.sampled_mask.sum())
    warnings = rollout_warnings(scores, scored.rollout, verdicts, grading) + revisions.warnings
    return CollectedRollout(scored, metrics | revisions.metrics, warnings)
