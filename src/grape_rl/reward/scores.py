"""From responses to rewards: a scorer grades a batch and makes one number of each response's verdicts.

Rewards stay in float64 here. A rubric of one item has to give back its score to the last bit, and a user's reward
function the number it returned; what is trained in less precision is the advantage, made of differences of these.
"""

import inspect
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from grape_rl.maths.reward_model import StepReward
from grape_rl.reward.checks import real
from grape_rl.reward.critic.grading import Judging
from grape_rl.reward.grading import Models, grade
from grape_rl.reward.model_grader import RewardModel, rewards
from grape_rl.reward.rubric import Item, Rubric
from grape_rl.types import Response, Scores, Status, Verdict, failed

Scorer = Callable[[Sequence[Response], Int[Tensor, " b"]], Scores]
"""Responses, and which of them share a prompt → their verdicts and rewards (on the CPU, as the text is)."""

Aggregate = Callable[..., Float[Tensor, " b"]]
"""Score, confidence, weight and group → reward, as ``grape_rl.maths.grape.confidence_weighted``; with ``Running`` also
the running means, as ``running``."""


@dataclass(frozen=True)
class ItemSummary:
    """What a batch says of one item: how many graded, their mean score (NaN if none), the missing by status."""

    category: str
    item: str
    graded: int
    mean: float
    missing: Mapping[Status, int]


@dataclass(frozen=True)
class Running:
    """The running mean confidence in each item of a rubric, of which the reward is made.

    ``step`` (confidence, the means so far → the means a batch further, as ``grape_rl.maths.grape.running_confidence``)
    makes what a batch leaves; ``memory`` holds what the last one left, under the names of ``running_name``.
    """

    step: Callable[[Float[Tensor, "b k"], Float[Tensor, " k"]], Float[Tensor, " k"]]
    memory: Mapping[str, float]

    def means(self, category: str, items: Sequence[str]) -> Float[Tensor, " k"]:
        """The means so far, NaN for an item that has none."""
        return torch.tensor(
            [self.memory.get(running_name(category, item), math.nan) for item in items], dtype=torch.float64
        )

    def left(self, category: str, items: Sequence[str], confidence: Float[Tensor, "b k"]) -> dict[str, float]:
        """The means after a batch, by name. An item of a single prompt has none."""
        moved = self.step(confidence, self.means(category, items)).tolist()
        known = [(item, mean) for item, mean in zip(items, moved, strict=True) if not math.isnan(mean)]
        return {running_name(category, item): mean for item, mean in known if not item.startswith(OF_ROW)}


OF_ROW = "row/"
"""How the name of an item begins that a single prompt brings: no other prompt's item of that name is the same."""


def running_name(category: str, item: str) -> str:
    """What a running mean is kept and told under."""
    return f"confidence/{category}/{item}"


def model_scorer(of: RewardModel, aggregate: StepReward | None) -> Scorer:
    """A scorer by a reward model: the reward is the model's own score (see ``rewards``)."""

    def scores(responses: Sequence[Response], group: Int[Tensor, " b"]) -> Scores:
        verdicts = rewards(of, responses, "reward_model", aggregate)
        reward = torch.tensor([each.score for each in verdicts], dtype=torch.float64)
        return Scores(reward, tuple((each,) for each in verdicts), ("all",) * len(responses))

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
    of ``rubric_models``, and ``critics`` those of ``rubric_critics``, for a rubric that names any. With ``running``,
    ``aggregate`` is given the running means (``running``) beside the verdicts, and the batch leaves them moved on.

    Raises (the scorer):
        ValueError: a row that belongs to no category or to more than one, or a group that spans categories.
    """

    def scores(responses: Sequence[Response], group: Int[Tensor, " b"]) -> Scores:
        category, verdicts = grade(rubric, responses, models, critics)
        home: dict[int, str] = {}
        for number, name in zip(group.tolist(), category, strict=True):
            if home.setdefault(number, name) != name:
                raise ValueError(f"group {number} has responses of the categories {home[number]!r} and {name!r}")
        left: dict[str, float] = {}
        made = [torch.full((len(responses),), math.nan, dtype=torch.float64) for _ in (aggregate, compared)]
        for name in dict.fromkeys(category):
            rows = torch.tensor([i for i, other in enumerate(category) if other == name])
            items = rubric.categories[name].rewarded
            found = [{each.item: each for each in verdicts[i]} for i in rows.tolist()]
            score = _matrix([[line[item.id].score for item in items] for line in found])
            confidence = _matrix([[line[item.id].confidence for item in items] for line in found])
            weight = torch.tensor([item.weight for item in items], dtype=torch.float64)
            # Whether a gate that could not be graded is open is not known, and neither is the reward behind it.
            gate = torch.tensor([item.gate for item in items])
            unknown = (score.isnan() & gate).any(dim=1)
            aggregated = aggregate
            if running:
                names = [item.id for item in items]
                aggregated = partial(aggregate, running=running.means(name, names))
                left |= running.left(name, names, confidence)
            score, confidence = _gated(score, confidence, items)
            for out, function in zip(made, (aggregated, compared), strict=True):
                if function:
                    out[rows] = function(score, confidence, weight, group[rows].cpu()).masked_fill(unknown, math.nan)
        return Scores(made[0], verdicts, category, made[1] if compared else None, left)

    return scores


def function_scorer(function: Callable[..., Any], name: str) -> Scorer:
    """A scorer by a reward function of one's own: ``function(prompts, completions, **columns) -> list``.

    The form that TRL's reward functions have. The function is called once a batch, with those of the prompts, the
    responses' texts and the columns of the data (each a list, in the batch's order; None where a row lacks the column)
    that it has parameters for: all of them if it takes ``**kwargs``. The reward is the number it returns, of any
    scale; None means that it does not apply to the response. What is no finite number is a missing verdict, and if
    the function raises, so is every verdict of the batch.

    Raises (the scorer):
        ValueError: a parameter that no column fills, or a result that is not one value for each response.
    """
    parameters = inspect.signature(function).parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    accepts_all = any(p.kind is p.VAR_KEYWORD for p in parameters)

    def scores(responses: Sequence[Response], group: Int[Tensor, " b"]) -> Scores:
        columns = {
            key: [r.row.get(key) for r in responses] for key in dict.fromkeys(k for r in responses for k in r.row)
        }
        columns |= {"prompts": [r.prompt for r in responses], "completions": [r.text for r in responses]}
        unfilled = [p.name for p in named if p.default is p.empty and p.name not in columns]
        if unfilled:
            raise ValueError(f"{name}: no column for the parameters {unfilled}; there are {', '.join(columns)}")
        accepted = columns if accepts_all else {p.name: columns[p.name] for p in named if p.name in columns}
        verdicts = tuple((each,) for each in _returned(function, accepted, name, len(responses)))
        reward = torch.tensor([each.score for (each,) in verdicts], dtype=torch.float64)
        return Scores(reward, verdicts, ("all",) * len(responses))

    return scores


def item_table(scores: Scores) -> tuple[ItemSummary, ...]:
    """A summary of each item of each category, in the order they come up."""
    found: dict[tuple[str, str], list[Verdict]] = {}
    for category, verdicts in zip(scores.category, scores.verdicts, strict=True):
        for each in verdicts:
            found.setdefault((category, each.item), []).append(each)
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


def _matrix(values: list[list[float]]) -> Float[Tensor, "b k"]:
    return torch.tensor(values, dtype=torch.float64)


def _gated(
    score: Float[Tensor, "b k"], confidence: Float[Tensor, "b k"], items: Sequence[Item]
) -> tuple[Float[Tensor, "b k"], Float[Tensor, "b k"]]:
    """The scores, 0 for the items of positive weight where a gate scored 0.

    That 0 holds whatever the item's own verdict would have been, so a missing one is known here. It takes the item's
    mean confidence, which leaves the weight of the item where it was.
    """
    positive: Bool[Tensor, " k"] = torch.tensor([item.weight > 0 for item in items])
    closed = torch.zeros_like(score, dtype=torch.bool)
    for k, item in enumerate(items):
        if item.gate:
            closed |= (score[:, k] == 0)[:, None] & positive
    filled = torch.where(closed & confidence.isnan(), confidence.nanmean(0), confidence)
    return score.masked_fill(closed, 0), filled


def _returned(function: Callable[..., Any], columns: Mapping[str, Any], name: str, count: int) -> list[Verdict]:
    """The verdicts of what a reward function returns."""
    try:
        result = function(**columns)
    except (Exception, SystemExit) as error:
        return [failed(name, "infrastructure", f"{type(error).__name__}: {error}", "function")] * count
    try:
        values = list(result)
    except TypeError:
        raise ValueError(f"{name}: should return a list, one value a response, but returned {result!r:.80}") from None
    if len(values) != count:
        raise ValueError(f"{name}: returned {len(values)} values for {count} responses")
    return [_valued(name, value) for value in values]


def _valued(name: str, value: Any) -> Verdict:
    if value is None:
        return failed(name, "refused", "returned None: it does not apply to this response", "function")
    try:
        return Verdict(name, real(value), provenance="function")
    except Exception as error:
        return failed(name, "infrastructure", f"{type(error).__name__}: {error}", "function")
