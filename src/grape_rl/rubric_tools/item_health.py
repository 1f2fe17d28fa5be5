"""The health of a rubric's items: which of them tell good responses from bad, and which look broken."""

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

FEWEST = 10
"""Graded responses (or, of two items, responses with both) under which nothing is flagged."""

SATURATED = 0.95
"""A mean score above this: nearly every response has it, and hardly any can gain by it."""

UNREACHABLE = 0.05
"""A mean score below this: hardly any response has it. (On a pitfall: none falls into it.)"""

REDUNDANT = 0.9
"""A correlation with another item of the category, by score or by rank, beyond ±this: they count one thing twice."""

DEAD = 0.02
"""A standard deviation of a critic's confidence below this: it says the same whatever it reads."""

CHANCE = 2.0
"""How many standard errors (1/√n) below 0 a correlation has to be to count as negative."""


@dataclass(frozen=True)
class Weighing:
    """What an item is to its rubric: its weight (0 for a monitor), and whether a critic judges it."""

    weight: float
    judged: bool


@dataclass(frozen=True)
class Flag:
    """What looks wrong with an item: the kind, in a word or two, and the number behind it."""

    kind: str
    detail: str


@dataclass(frozen=True)
class ItemHealth:
    """What graded responses say of one item. Numbers that nothing tells are NaN.

    ``spread`` is the mean over prompts of the standard deviation (Bessel's) of the scores of one prompt's responses:
    what a group-relative advantage is made of. ``flat`` is the share of prompts where that is 0. ``share`` is the
    item's part of the category's signal, ``|weight| × confidence × spread`` over that of all its rewarded items.
    ``rest`` is the correlation of its score with the reward of the category's other items, both by the sign of their
    weight. ``missing`` counts by status, and the policy's own faults, which are no missing verdicts, are apart.
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


def item_health(
    scores: Scores, group: Int[Tensor, " b"], items: Mapping[tuple[str, str], Weighing]
) -> tuple[ItemHealth, ...]:
    """Each item's health, category by category, in the order they come up. The order of the responses is no matter.

    ``items`` tells of items by category and id; one that it lacks is taken for judged, of weight 1.
    """
    found: list[ItemHealth] = []
    prompts: list[int] = group.tolist()
    for category in dict.fromkeys(scores.category):
        columns: dict[str, Column] = {}
        for i, verdicts in enumerate(scores.verdicts):
            for each in verdicts if scores.category[i] == category else ():
                name = "row" if each.item.startswith(PREFIX) else each.item
                columns.setdefault(name, {}).setdefault(i, []).append(each)
        known = {name: items.get((category, name), Weighing(1.0, True)) for name in columns}
        means = {name: _means(column) for name, column in columns.items()}
        spreads = {name: _spreads(column, prompts) for name, column in columns.items()}
        sure = {name: [v.confidence for v in _graded(column)] for name, column in columns.items()}
        signal = {name: abs(known[name].weight) * _fmean(sure[name]) * _fmean(spreads[name]) for name in columns}
        total = math.fsum(signal[name] for name in columns if known[name].weight)
        for name, column in columns.items():
            weight = known[name].weight
            rest = _rest(name, means, known)
            both = sorted(means[name].keys() & rest.keys())
            turned = -1.0 if weight < 0 else 1.0
            with_rest = _correlation([turned * means[name][i] for i in both], [rest[i] for i in both])
            graded, every = _graded(column), [each for held in column.values() for each in held]
            health = ItemHealth(
                category,
                name,
                weight,
                len(graded),
                _fmean([each.score for each in graded]),
                _fmean(spreads[name]),
                _fmean([float(spread == 0) for spread in spreads[name]]),
                _fmean(sure[name]),
                pstdev(sure[name]) if sure[name] else math.nan,
                signal[name] / total if weight and total else math.nan,
                with_rest,
                dict(Counter(each.status for each in every if each.missing)),
                sum(each.status == "policy_fault" for each in every),
                math.fsum(each.cost for each in every),
                sum(each.tokens for each in every),
                (),
            )
            flags = (*_level(health, known[name].judged), *_twins(name, means), *_sign(health, len(both)))
            found.append(replace(health, flags=(*flags, *_missing_low(column, rest))))
    return tuple(found)


Column = dict[int, list[Verdict]]
"""An item's verdicts by the number of the response: one each, or several where a row's own items are one line."""


def _graded(column: Column) -> list[Verdict]:
    return [each for held in column.values() for each in held if not each.missing]


def _means(column: Column) -> dict[int, float]:
    """The mean score of each response that has any."""
    graded = {i: [each.score for each in held if not each.missing] for i, held in column.items()}
    return {i: fmean(found) for i, found in graded.items() if found}


def _fmean(values: Sequence[float]) -> float:
    return fmean(values) if values else math.nan


def _spreads(column: Column, prompts: Sequence[int]) -> list[float]:
    """The standard deviation within each prompt's responses, of each item that has two scores there or more."""
    held: dict[tuple[int, str], list[float]] = {}
    for i, verdicts in column.items():
        for each in verdicts:
            if not each.missing:
                held.setdefault((prompts[i], each.item), []).append(each.score)
    return [stdev(scores) for scores in held.values() if len(scores) > 1]


def _rest(name: str, means: Mapping[str, Mapping[int, float]], known: Mapping[str, Weighing]) -> dict[int, float]:
    """By response, the weighted mean of the other rewarded items that are graded there."""
    found: dict[int, list[tuple[float, float]]] = {}
    for other, column in means.items():
        if other != name and known[other].weight:
            for i, score in column.items():
                found.setdefault(i, []).append((known[other].weight, score))
    return {i: math.fsum(w * s for w, s in parts) / math.fsum(abs(w) for w, _ in parts) for i, parts in found.items()}


def _correlation(x: Sequence[float], y: Sequence[float]) -> float:
    return correlation(torch.tensor(x, dtype=torch.float64), torch.tensor(y, dtype=torch.float64))


def _level(of: ItemHealth, judged: bool) -> list[Flag]:
    """Scores, or a critic's confidence, that tell nothing apart."""
    if of.graded < FEWEST:
        return []
    found: list[Flag] = []
    if of.mean > SATURATED:
        found.append(Flag("saturated", f"mean {of.mean:.3f}"))
    if of.mean < UNREACHABLE:
        found.append(Flag("unreachable", f"mean {of.mean:.3f}"))
    if judged and of.confidence_spread < DEAD:
        found.append(Flag("dead confidence", f"{of.confidence:.2f} ± {of.confidence_spread:.3f}"))
    return found


def _twins(name: str, means: Mapping[str, Mapping[int, float]]) -> list[Flag]:
    """The other items of the category that say the same, or the contrary."""
    found: list[Flag] = []
    for other in means:
        both = sorted(means[name].keys() & means[other].keys())
        if other == name or len(both) < FEWEST:
            continue
        x, y = (torch.tensor([means[each][i] for i in both], dtype=torch.float64) for each in (name, other))
        most = max(correlation(x, y), rank_correlation(x, y), key=lambda r: 0.0 if math.isnan(r) else abs(r))
        if abs(most) > REDUNDANT:
            found.append(Flag("redundant", f"with {other}, correlation {most:.2f}"))
    return found


def _sign(of: ItemHealth, count: int) -> list[Flag]:
    """A score that falls where the rest of the reward rises: its weight may have the wrong sign."""
    if not of.weight or count < FEWEST or not of.rest < -CHANCE / math.sqrt(count):
        return []
    return [Flag("against the rest", f"correlation {of.rest:.2f}: is the sign of its weight right?")]


def _missing_low(column: Column, rest: Mapping[int, float]) -> list[Flag]:
    """Verdicts that fail where the other items are low: a bad response may gain by making its grader fail."""
    failed = {i: float(any(v.missing and v.status != "unlabeled" for v in column[i])) for i in column if i in rest}
    r = _correlation(list(failed.values()), [rest[i] for i in failed])
    if len(failed) < FEWEST or not r < -CHANCE / math.sqrt(len(failed)):
        return []
    return [Flag("missing where low", f"correlation {r:.2f} with the other items")]
