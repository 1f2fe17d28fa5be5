"""Scorers: functions that grade a batch of responses and aggregate each response's verdicts to one reward.

Rewards are float64 here. A rubric with one item returns its score exactly, and a user's reward function the number that
it returned. Training computes advantages from differences of rewards, and only those have lower precision.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from grape_rl.maths.reward_model import StepAggregation
from grape_rl.reward.critic.judging import Judging
from grape_rl.reward.grading import GradedResponse, RewardModels, assign_items, grade
from grape_rl.reward.reward_model_grader import RewardModel, reward_verdicts
from grape_rl.reward.row_items import PREFIX
from grape_rl.reward.rubric import Rubric
from grape_rl.reward.running_confidence import RunningMeans
from grape_rl.reward.verdict_matrix import apply_gates, build_matrix
from grape_rl.types import Response, Scores, Status, Verdict


@runtime_checkable
class Scorer(Protocol):
    """A function from responses to verdicts and rewards. Tensors are on the CPU."""

    def __call__(self, responses: Sequence[Response], group: Int[Tensor, " b"], known: Scores | None = None) -> Scores:
        """Score the responses; those with equal ``group`` share a prompt.

        ``known`` holds the scores of the first responses: their verdicts are reused, and the rewards are computed from
        all verdicts.
        """
        ...


Aggregate = Callable[..., Float[Tensor, " b"]]
"""(score, confidence, weight, group) → reward, as ``grape_rl.maths.grape.confidence_weighted``.

With ``RunningMeans`` it also gets the running means, as ``running``."""


@dataclass(frozen=True)
class ItemSummary:
    """Statistics of one item in a batch: the number of graded responses, their mean score, and missing verdicts.

    ``mean`` is NaN if none is graded; ``missing`` counts by status; ``confidence`` is the mean confidence of the graded
    verdicts. All items that rows hold themselves share one summary, named ``row``.
    """

    category: str
    item: str
    graded: int
    mean: float
    missing: Mapping[Status, int]
    confidence: float = 1.0


def model_scorer(model: RewardModel, aggregate: StepAggregation | None) -> Scorer:
    """A scorer whose reward is the reward model's own score (see ``reward_verdicts``)."""

    def scores(responses: Sequence[Response], group: Int[Tensor, " b"], known: Scores | None = None) -> Scores:
        verdicts = reward_verdicts(model, new_responses(responses, known), "reward_model", aggregate)
        return single_scores(verdicts, known)

    return scores


def rubric_scorer(
    rubric: Rubric,
    aggregate: Aggregate,
    compared: Aggregate | None = None,
    models: RewardModels = MappingProxyType({}),
    critics: Judging | None = None,
    running: RunningMeans | None = None,
) -> Scorer:
    """A scorer that grades by a rubric. See ``rubric_scores`` for ``aggregate``, ``compared`` and ``running``.

    ``models`` are those of ``rubric_models``, and ``critics`` those of ``rubric_critics``.

    Raises (the scorer):
        ValueError: a row belongs to no category or to more than one, or its own items are invalid; or as
            ``rubric_scores``.
    """

    def scores(responses: Sequence[Response], group: Int[Tensor, " b"], known: Scores | None = None) -> Scores:
        graded = grade(assign_items(rubric, new_responses(responses, known), critics), models, critics)
        if known:
            fields = zip(known.category, known.items, known.verdicts, strict=True)
            graded = (*(GradedResponse(*values) for values in fields), *graded)
        return rubric_scores(rubric, graded, group, aggregate, compared, running)

    return scores


def rubric_scores(
    rubric: Rubric,
    graded: Sequence[GradedResponse],
    group: Int[Tensor, " b"],
    aggregate: Aggregate,
    compared: Aggregate | None = None,
    running: RunningMeans | None = None,
) -> Scores:
    """The scores of graded responses: ``aggregate`` maps the verdicts on rewarded items to rewards, per category.

    ``compared`` maps them to the values that the advantage compares, if those are not the rewards. If rows hold items
    of their own, each group has its own columns for them, which weigh 0 in the rows of other groups. With ``running``,
    ``aggregate`` also gets the running means, and ``Scores.memory`` holds the means after this batch.

    Raises:
        ValueError: a group spans several categories, or its rows hold different items.
    """
    category = tuple(response.category for response in graded)
    _check_groups(category, group)
    memory: dict[str, float] = {}
    reward, comparison = (torch.full((len(graded),), math.nan, dtype=torch.float64) for _ in (aggregate, compared))
    for name in (name for name in dict.fromkeys(category) if name in rubric.categories):
        shared = rubric.categories[name].rewarded
        rows = [i for i, other in enumerate(category) if other == name]
        group_ids = group[rows].cpu()
        matrix = build_matrix(shared, [graded[i].rewarded for i in rows], [graded[i].verdicts for i in rows], group_ids)
        # If a gate's verdict is missing, the gate may be open or closed, so the reward is unknown.
        unknown = (matrix.score.isnan() & matrix.gate).any(dim=1)
        category_aggregate = aggregate
        if running:
            ids = [item.id for item in shared]
            means = running.means(name, ids, matrix.score.shape[1])
            category_aggregate = partial(aggregate, running=means)
            memory |= running.updated(name, ids, matrix.confidence)
        score, confidence = apply_gates(matrix, group_ids)
        for values, function in ((reward, category_aggregate), (comparison, compared)):
            if function:
                aggregated = function(score, confidence, matrix.weight, group_ids)
                values[rows] = aggregated.masked_fill(unknown, math.nan)
    verdicts, items = tuple(response.verdicts for response in graded), tuple(response.items for response in graded)
    return Scores(reward, verdicts, category, comparison if compared else None, memory, items)


def item_table(scores: Scores) -> tuple[ItemSummary, ...]:
    """A summary of each item of each category, in order of first appearance."""
    by_item: dict[tuple[str, str], list[Verdict]] = {}
    for category, row in zip(scores.category, scores.verdicts, strict=True):
        for verdict in row:
            item = "row" if verdict.item.startswith(PREFIX) else verdict.item
            by_item.setdefault((category, item), []).append(verdict)
    table: list[ItemSummary] = []
    for (category, item), verdicts in by_item.items():
        graded = [verdict for verdict in verdicts if not verdict.missing]
        missing = Counter[Status](verdict.status for verdict in verdicts if verdict.missing)
        mean, confidence = (
            math.fsum(numbers) / len(graded) if graded else math.nan
            for numbers in ([verdict.score for verdict in graded], [verdict.confidence for verdict in graded])
        )
        table.append(ItemSummary(category, item, len(graded), mean, missing, confidence))
    return tuple(table)


def check_missing(scores: Scores, limit: float = 0.1) -> int:
    """The number of missing verdicts.

    Raises:
        RuntimeError: they are a larger share of all verdicts than ``limit``; names the item that fails most, and its
            most common reason.
    """
    verdicts = [verdict for row in scores.verdicts for verdict in row]
    missing = [verdict for verdict in verdicts if verdict.missing]
    if len(missing) > limit * len(verdicts):
        item, count = Counter(verdict.item for verdict in missing).most_common(1)[0]
        reasons = Counter((verdict.status, verdict.reasoning) for verdict in missing if verdict.item == item)
        status, reason = reasons.most_common(1)[0][0]
        raise RuntimeError(
            f"{len(missing)} of {len(verdicts)} verdicts ({len(missing) / len(verdicts):.0%}) are missing, above the "
            f"limit of {limit:.0%}; {count} of them of item {item!r}, mostly {status}: {' '.join(reason.split())}"
        )
    return len(missing)


def _check_groups(category: Sequence[str], group: Int[Tensor, " b"]) -> None:
    categories: dict[int, str] = {}
    for group_id, name in zip(group.tolist(), category, strict=True):
        if categories.setdefault(group_id, name) != name:
            raise ValueError(f"group {group_id} has responses of the categories {categories[group_id]!r} and {name!r}")


def new_responses(responses: Sequence[Response], known: Scores | None) -> Sequence[Response]:
    """The responses after those with known scores."""
    return responses[len(known.verdicts) if known else 0 :]


def single_scores(new: Sequence[Verdict], known: Scores | None) -> Scores:
    """Scores with one verdict per response, whose score is the reward."""
    verdicts = (known.verdicts if known else ()) + tuple((verdict,) for verdict in new)
    reward = torch.tensor([verdict.score for (verdict,) in verdicts], dtype=torch.float64)
    return Scores(reward, verdicts, ("all",) * len(verdicts))
