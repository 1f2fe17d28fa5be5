"""Critics' verdicts beside people's labels of the same responses."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from grape_rl.maths.agreement import Kappa, cohen_kappa, weighted_kappa
from grape_rl.reward.critic.calibration import Curve, FitMethod, Judged, fitted
from grape_rl.reward.critic.item import Judge
from grape_rl.schema import nearest
from grape_rl.types import Verdict


@dataclass(frozen=True)
class Labeled:
    """One verdict on a response that a person has scored too. ``group`` numbers the response's prompt."""

    category: str
    judge: Judge
    verdict: Verdict
    human: float
    group: int


@dataclass(frozen=True)
class Compared:
    """An item's verdicts beside people's, as far as the critic gave any; ``missing`` counts where it failed.

    Labels are told apart by their scores: ``labels`` names them from the lowest ``score`` to the highest, and
    ``critic`` and ``human`` are places in that order.
    """

    items: tuple[str, ...]
    judged: Judged
    labels: tuple[str, ...]
    score: Float[Tensor, " l"]
    critic: Int[Tensor, " n"]
    human: Int[Tensor, " n"]
    confidence: Float[Tensor, " n"]
    group: Int[Tensor, " n"]
    missing: int

    @property
    def correct(self) -> Bool[Tensor, " n"]:
        """Where the critic's label is the person's."""
        return self.critic == self.human

    @property
    def kappa(self) -> Kappa:
        """How far they agree: beyond two labels by κ with weights, as labels with scores are on a scale."""
        if len(self.labels) == 2:
            return cohen_kappa(self.critic, self.human, 2)
        return weighted_kappa(self.critic, self.human, self.score)


def human_scores(
    row: Mapping[str, Any], column: str, judges: Mapping[str, Judge], others: Iterable[str], where: str
) -> dict[str, float]:
    """People's scores of a row's judged items, by the item's id; an item without a label is not there.

    The row's ``column`` holds ``{id: label}`` (or JSON that says so), or it has columns ``column.id``. A label is one
    of the item's, or else a number in [0, 1], which stands for the label with the nearest score, the lower of two as
    near. Labels of ``others``, items that no critic judges, are left out.

    Raises:
        ValueError: a label of an unknown item, or one that is neither a label nor a number in [0, 1].
    """
    told = row.get(column)
    if isinstance(told, str) and told.strip():
        try:
            told = json.loads(told)
        except ValueError:
            raise ValueError(f"{where}: {column!r} is {told!r:.60}, and should hold labels by item") from None
    if not told:
        told = {}
    if not isinstance(told, Mapping):
        raise ValueError(f"{where}: {column!r} is {told!r:.60}, and should hold labels by item")
    apart = {key.removeprefix(f"{column}."): value for key, value in row.items() if key.startswith(f"{column}.")}
    found: dict[str, float] = {}
    for item, value in {**told, **apart}.items():
        if value is None or value == "" or item in others:
            continue
        if item not in judges:
            # A table has a column for each item of any category; a mapping is the row's own.
            if item in told:
                raise ValueError(f"{where}: {column!r} labels an unknown item {item!r}{nearest(item, judges)}")
            continue
        found[item] = _scored(value, judges[item], f"{where}: the label of item {item!r}")
    return found


def compared(found: Iterable[Labeled]) -> list[Compared]:
    """The verdicts of each item, and of items that ask the same of the same critic together, in the order met."""
    by_item: dict[str, list[Labeled]] = {}
    for each in found:
        by_item.setdefault(each.judge.judged.model_dump_json(), []).append(each)
    made: list[Compared] = []
    for members in by_item.values():
        judge = members[0].judge
        score = sorted(set(judge.labels.values()))
        names = tuple("/".join(name for name, value in judge.labels.items() if value == at) for at in score)
        # Only "ok" is a label of the critic's: a response's own fault gets its score without being read.
        said = [each for each in members if each.verdict.status == "ok"]
        made.append(
            Compared(
                tuple(dict.fromkeys(f"{each.category}/{each.verdict.item}" for each in members)),
                judge.judged,
                names,
                torch.tensor(score, dtype=torch.float64),
                torch.tensor([score.index(each.verdict.score) for each in said], dtype=torch.long),
                torch.tensor([score.index(each.human) for each in said], dtype=torch.long),
                torch.tensor([each.verdict.confidence for each in said], dtype=torch.float64),
                torch.tensor([each.group for each in said], dtype=torch.long),
                sum(each.verdict.missing for each in members),
            )
        )
    return made


def curves(items: Iterable[Compared], method: FitMethod, fewest: int) -> tuple[Curve, ...]:
    """The curves of the items, and of their critics as a whole, that have ``fewest`` labels or more."""
    held: dict[str, list[Compared]] = {}
    for each in items:
        for of in (each.judged, each.judged.whole):
            held.setdefault(of.model_dump_json(), []).append(each)
    made: list[Curve] = []
    for name, members in held.items():
        confidence, correct, group = (
            torch.cat([getattr(each, field) for each in members]) for field in ("confidence", "correct", "group")
        )
        if len(correct) >= fewest:
            names = tuple(name for each in members for name in each.items)
            made.append(fitted(Judged.model_validate_json(name), names, method, confidence, correct, group))
    return tuple(made)


def _scored(value: Any, judge: Judge, what: str) -> float:
    name = f"{value:g}" if isinstance(value, float) else str(value)
    if name in judge.labels:
        return judge.labels[name]
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1.0
    if not 0 <= number <= 1:
        known = ", ".join(judge.labels)
        raise ValueError(f"{what} is {value!r:.60}, and should be one of {known}, or a score in [0, 1]")
    return min(sorted(set(judge.labels.values())), key=lambda score: abs(score - number))
