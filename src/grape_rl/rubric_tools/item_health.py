"""Item health: statistics and warning flags for each item of a rubric, computed from graded responses."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, pstdev, stdev

import torch
from jaxtyping import Int
from torch import Tensor

from grape_rl.maths.agreement import correlation, rank_correlation
from grape_rl.reward.row_items import PREFIX
from grape_rl.types import Scores, Status, Verdict

MIN_RESPONSES = 10
"""Minimum number of graded responses for a flag; for two items, of responses with both."""

SATURATED = 0.95
"""An item with a mean score above this is saturated: nearly every response meets it (falls into it, if a pitfall)."""

UNREACHABLE = 0.05
"""An item with a mean score below this is unreachable: hardly any response meets it (falls into it, if a pitfall)."""

REDUNDANT = 0.9
"""Two items of a category whose scores or ranks correlate beyond ± this are redundant: they count one thing twice."""

CONSTANT_SPREAD = 0.02
"""A critic's confidence with a standard deviation below this is constant: it carries no information."""

CHANCE = 2.0
"""A correlation counts as negative if it is more than this many standard errors (1/√n) below 0."""


@dataclass(frozen=True)
class ItemSettings:
    """An item's weight in the reward (0 for a monitor), and whether a critic judges it."""

    weight: float
    judged: bool


@dataclass(frozen=True)
class Flag:
    """A likely problem of an item: its kind, in a word or two, and the number that shows it."""

    kind: str
    detail: str


@dataclass(frozen=True)
class ItemHealth:
    """Statistics of one item over graded responses. A number is NaN if the data does not determine it.

    Attributes:
        graded: number of graded responses.
        mean: mean score.
        spread: standard deviation (Bessel's) of the scores of one prompt's responses, averaged over prompts. A
            group-relative advantage is computed from these differences.
        flat: share of prompts with spread 0.
        confidence, confidence_spread: mean and standard deviation of the confidence.
        share: ``|weight| × confidence × spread`` of the item over the sum of this product over the category's rewarded
            items.
        rest: correlation of its score with the weighted mean of the category's other items. The score of a pitfall
            counts negatively in both.
        missing: missing verdicts by status. ``policy_fault``, which is not missing, is counted separately.
        cost, tokens: the critics' usage.
    """

    category: str
    item: str
    weight: float
    graded: int
    mean: float
    spread: float
    flat: float
    confidence: float
    confidence_spread: float
    share: float
    rest: float
    missing: Mapping[Status, int]
    policy_fault: int
    cost: float
    tokens: int
    flags: tuple[Flag, ...]


ItemColumn = dict[int, list[Verdict]]
"""An item's verdicts by the index of the response. Usually one each; several where rows' own items share a column."""


def measure_health(
    scores: Scores, group: Int[Tensor, " b"], items: Mapping[tuple[str, str], ItemSettings]
) -> tuple[ItemHealth, ...]:
    """Each item's health, category by category, in order of first appearance. The order of responses has no effect.

    ``items`` maps category and id to settings; an item that it lacks counts as judged, with weight 1.
    """
    health: list[ItemHealth] = []
    prompts: list[int] = group.tolist()
    for category in dict.fromkeys(scores.category):
        columns = _columns(scores, category)
        settings = {name: items.get((category, name), ItemSettings(1.0, True)) for name in columns}

        # Statistics of all items, which the loop below compares.
        means = {name: _means(column) for name, column in columns.items()}
        spreads = {name: _spreads(column, prompts) for name, column in columns.items()}
        confidence = {name: [v.confidence for v in _graded(column)] for name, column in columns.items()}
        signal = {
            name: abs(settings[name].weight) * _fmean(confidence[name]) * _fmean(spreads[name]) for name in columns
        }
        total = math.fsum(signal[name] for name in columns if settings[name].weight)

        for name, column in columns.items():
            weight = settings[name].weight
            rest = _rest(name, means, settings)
            both = sorted(means[name].keys() & rest.keys())
            sign = -1.0 if weight < 0 else 1.0
            rest_correlation = _correlation([sign * means[name][i] for i in both], [rest[i] for i in both])
            graded = _graded(column)
            verdicts = [verdict for response_verdicts in column.values() for verdict in response_verdicts]
            item = ItemHealth(
                category,
                name,
                weight,
                len(graded),
                _fmean([verdict.score for verdict in graded]),
                _fmean(spreads[name]),
                _fmean([float(spread == 0) for spread in spreads[name]]),
                _fmean(confidence[name]),
                pstdev(confidence[name]) if confidence[name] else math.nan,
                signal[name] / total if weight and total else math.nan,
                rest_correlation,
                dict(Counter(verdict.status for verdict in verdicts if verdict.missing)),
                sum(verdict.status == "policy_fault" for verdict in verdicts),
                math.fsum(verdict.cost for verdict in verdicts),
                sum(verdict.tokens for verdict in verdicts),
                (),
            )
            flags = (
                *_uninformative(item, settings[name].judged),
                *_redundant(name, means),
                *_negative_correlation(item, len(both)),
                *_missing_on_low(column, rest),
            )
            health.append(replace(item, flags=flags))
    return tuple(health)


def _columns(scores: Scores, category: str) -> dict[str, ItemColumn]:
    """The verdicts of a category by item. The rows' own items share the column ``row``."""
    columns: dict[str, ItemColumn] = {}
    for i, verdicts in enumerate(scores.verdicts):
        for verdict in verdicts if scores.category[i] == category else ():
            name = "row" if verdict.item.startswith(PREFIX) else verdict.item
            columns.setdefault(name, {}).setdefault(i, []).append(verdict)
    return columns


def _graded(column: ItemColumn) -> list[Verdict]:
    return [verdict for verdicts in column.values() for verdict in verdicts if not verdict.missing]


def _means(column: ItemColumn) -> dict[int, float]:
    """The mean score of each response that has a score."""
    scores = {i: [verdict.score for verdict in verdicts if not verdict.missing] for i, verdicts in column.items()}
    return {i: fmean(values) for i, values in scores.items() if values}


def _fmean(values: Sequence[float]) -> float:
    return fmean(values) if values else math.nan


def _spreads(column: ItemColumn, prompts: Sequence[int]) -> list[float]:
    """The standard deviation over each prompt's responses, for each item with at least two scores there."""
    scores: dict[tuple[int, str], list[float]] = {}
    for i, verdicts in column.items():
        for verdict in verdicts:
            if not verdict.missing:
                scores.setdefault((prompts[i], verdict.item), []).append(verdict.score)
    return [stdev(values) for values in scores.values() if len(values) > 1]


def _rest(
    name: str, means: Mapping[str, Mapping[int, float]], settings: Mapping[str, ItemSettings]
) -> dict[int, float]:
    """By response, the weighted mean of the other rewarded items that are graded there."""
    terms: dict[int, list[tuple[float, float]]] = {}
    for other, column in means.items():
        if other != name and settings[other].weight:
            for i, score in column.items():
                terms.setdefault(i, []).append((settings[other].weight, score))
    return {i: math.fsum(w * s for w, s in pairs) / math.fsum(abs(w) for w, _ in pairs) for i, pairs in terms.items()}


def _correlation(x: Sequence[float], y: Sequence[float]) -> float:
    return correlation(torch.tensor(x, dtype=torch.float64), torch.tensor(y, dtype=torch.float64))


def _uninformative(item: ItemHealth, judged: bool) -> list[Flag]:
    """Flags for scores, or a critic's confidence, that hardly vary."""
    if item.graded < MIN_RESPONSES:
        return []
    flags: list[Flag] = []
    if item.mean > SATURATED:
        flags.append(Flag("saturated", f"mean {item.mean:.3f}"))
    if item.mean < UNREACHABLE:
        flags.append(Flag("unreachable", f"mean {item.mean:.3f}"))
    if judged and item.confidence_spread < CONSTANT_SPREAD:
        flags.append(Flag("constant confidence", f"{item.confidence:.2f} ± {item.confidence_spread:.3f}"))
    return flags


def _redundant(name: str, means: Mapping[str, Mapping[int, float]]) -> list[Flag]:
    """Flags for other items of the category that measure the same thing, or its opposite."""
    flags: list[Flag] = []
    for other in means:
        both = sorted(means[name].keys() & means[other].keys())
        if other == name or len(both) < MIN_RESPONSES:
            continue
        x, y = (torch.tensor([means[item][i] for i in both], dtype=torch.float64) for item in (name, other))
        strongest = max(correlation(x, y), rank_correlation(x, y), key=lambda r: 0.0 if math.isnan(r) else abs(r))
        if abs(strongest) > REDUNDANT:
            flags.append(Flag("redundant", f"with {other}, correlation {strongest:.2f}"))
    return flags


def _negative_correlation(item: ItemHealth, count: int) -> list[Flag]:
    """A flag for a score that falls where the rest of the reward rises: its weight may have the wrong sign."""
    if not item.weight or count < MIN_RESPONSES or not item.rest < -CHANCE / math.sqrt(count):
        return []
    return [Flag("negative correlation", f"{item.rest:.2f} with the other items; check the sign of its weight")]


def _missing_on_low(column: ItemColumn, rest: Mapping[int, float]) -> list[Flag]:
    """A flag for grading that fails on responses with low scores: the policy may gain by making the grader fail."""
    failed = {i: float(any(v.missing and v.status != "unlabeled" for v in column[i])) for i in column if i in rest}
    r = _correlation(list(failed.values()), [rest[i] for i in failed])
    if len(failed) < MIN_RESPONSES or not r < -CHANCE / math.sqrt(len(failed)):
        return []
    return [Flag("missing on low scores", f"correlation {r:.2f} with the other items")]
