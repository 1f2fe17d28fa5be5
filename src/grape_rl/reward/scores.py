"""From responses to rewards: a scorer grades a batch and makes one number of each response's verdicts.

Rewards stay in float64 here. A rubric of one item has to give back its score to the last bit, and a user's reward
function the number it returned; what is trained in less precision is the advantage, made of differences of these.
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
from grape_rl.reward.grading import Models, grade
from grape_rl.reward.item import Item
from grape_rl.reward.model_grader import RewardModel, rewards
from grape_rl.reward.row_items import PREFIX
from grape_rl.reward.rubric import Rubric, items_of
from grape_rl.reward.running_confidence import Running
from grape_rl.reward.verdict_matrix import gated, laid_out
from grape_rl.types import Response, Scores, Status, Verdict


@runtime_checkable
class Scorer(Protocol):
    """Whatever makes verdicts and rewards of responses (on the CPU, as the text is)."""

    def __call__(self, responses: Sequence[Response], group: Int[Tensor, " b"], known: Scores | None = None) -> Scores:
        """Of the responses, of which ``group`` says which share a prompt.

        The first of them may be ``known``: their verdicts stay as they are, and the rewards are made of all.
        """
        ...


Aggregate = Callable[..., Float[Tensor, " b"]]
"""Score, confidence, weight and group → reward, as ``grape_rl.maths.grape.confidence_weighted``; with ``Running`` also
the running means, as ``running``."""


@dataclass(frozen=True)
class ItemSummary:
    """What a batch says of one item: how many graded, their mean score (NaN if none), the missing by status.

    The items that rows bring along are one together, ``row``.
    """

    category: str
    item: str
    graded: int
    mean: float
    missing: Mapping[Status, int]


def model_scorer(of: RewardModel, aggregate: StepAggregation | None) -> Scorer:
    """A scorer by a reward model: the reward is the model's own score (see ``rewards``)."""

    def scores(responses: Sequence[Response], group: Int[Tensor, " b"], known: Scores | None = None) -> Scores:
        return single_scores(rewards(of, new_responses(responses, known), "reward_model", aggregate), known)

    return scores


def rubric_scorer(
    rubric: Rubric,
    aggregate: Aggregate,
    compared: Aggregate | None = None,
    models: Models = MappingProxyType({}),
    critics: Judging | None = None,
    running: Running | None = None,
) -> Scorer:
    """A scorer by a rubric: ``aggregate`` makes the reward of the rewarded items, category by category.

    ``compared`` makes of the same what the advantage is to compare, where that is not the reward. ``models`` are those
    of ``rubric_models``, and ``critics`` those of ``rubric_critics``, for a rubric that names any. Where rows bring
    items along, each group has columns of its own for them, and in the others' rows they weigh 0. With ``running``,
    ``aggregate`` is given the running means (``running``) beside the verdicts, and the batch leaves them moved on.

    Raises (the scorer):
        ValueError: a row that belongs to no category or to more than one, or whose own items are at fault; or a group
            that spans categories, or has different items of its own.
    """

    def scores(responses: Sequence[Response], group: Int[Tensor, " b"], known: Scores | None = None) -> Scores:
        category, verdicts = grade(rubric, new_responses(responses, known), models, critics)
        if known:
            category, verdicts = known.category + category, known.verdicts + verdicts
        home: dict[int, str] = {}
        for number, name in zip(group.tolist(), category, strict=True):
            if home.setdefault(number, name) != name:
                raise ValueError(f"group {number} has responses of the categories {home[number]!r} and {name!r}")
        left: dict[str, float] = {}
        made = [torch.full((len(responses),), math.nan, dtype=torch.float64) for _ in (aggregate, compared)]
        for name in (name for name in dict.fromkeys(category) if name in rubric.categories):
            rows = [i for i, other in enumerate(category) if other == name]
            of = group[rows].cpu()
            columns = laid_out(
                rubric.categories[name].rewarded,
                [_rewarded(items_of(rubric, name, responses[i].row)) for i in rows],
                [verdicts[i] for i in rows],
                of,
            )
            # Whether a gate that could not be graded is open is not known, and neither is the reward behind it.
            unknown = (columns.score.isnan() & columns.gate).any(dim=1)
            aggregated = aggregate
            if running:
                names = [item.id for item in rubric.categories[name].rewarded]
                aggregated = partial(aggregate, running=running.means(name, names, columns.score.shape[1]))
                left |= running.left(name, names, columns.confidence)
            score, confidence = gated(columns, of)
            for out, function in zip(made, (aggregated, compared), strict=True):
                if function:
                    out[rows] = function(score, confidence, columns.weight, of).masked_fill(unknown, math.nan)
        return Scores(made[0], verdicts, category, made[1] if compared else None, left)

    return scores


def item_table(scores: Scores) -> tuple[ItemSummary, ...]:
    """A summary of each item of each category, in the order they come up."""
    found: dict[tuple[str, str], list[Verdict]] = {}
    for category, verdicts in zip(scores.category, scores.verdicts, strict=True):
        for each in verdicts:
            found.setdefault((category, "row" if each.item.startswith(PREFIX) else each.item), []).append(each)
    table: list[ItemSummary] = []
    for (category, item), verdicts in found.items():
        graded = [each.score for each in verdicts if not each.missing]
        missing = Counter[Status](each.status for each in verdicts if each.missing)
        mean = math.fsum(graded) / len(graded) if graded else math.nan
        table.append(ItemSummary(category, item, len(graded), mean, missing))
    return tuple(table)


def checked(scores: Scores, limit: float = 0.1) -> int:
    """The number of missing verdicts, which may be no larger a share of the batch's than ``limit``.

    Raises:
        RuntimeError: it is; with the item that fails most, and its commonest reason.
    """
    verdicts = [each for row in scores.verdicts for each in row]
    missing = [each for each in verdicts if each.missing]
    if len(missing) > limit * len(verdicts):
        item, count = Counter(each.item for each in missing).most_common(1)[0]
        reason = Counter((each.status, each.reasoning) for each in missing if each.item == item).most_common(1)[0][0]
        raise RuntimeError(
            f"{len(missing)} of {len(verdicts)} verdicts ({len(missing) / len(verdicts):.0%}) are missing, over the "
            f"limit of {limit:.0%}; {count} of them of item {item!r}, mostly {reason[0]}: {' '.join(reason[1].split())}"
        )
    return len(missing)


def _rewarded(items: Sequence[Item]) -> tuple[Item, ...]:
    return tuple(item for item in items if item.role == "reward")


def new_responses(responses: Sequence[Response], known: Scores | None) -> Sequence[Response]:
    """The responses behind those that are known."""
    return responses[len(known.verdicts) if known else 0 :]


def single_scores(found: Sequence[Verdict], known: Scores | None) -> Scores:
    """Scores of one verdict a response, which is its reward."""
    verdicts = (known.verdicts if known else ()) + tuple((each,) for each in found)
    reward = torch.tensor([each.score for (each,) in verdicts], dtype=torch.float64)
    return Scores(reward, verdicts, ("all",) * len(verdicts))
