"""Critics' verdicts compared with people's labels of the same responses."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from grape_rl.maths.agreement import Kappa, cohen_kappa, weighted_kappa
from grape_rl.reward.critic.calibration import CalibrationCurve, ConfidenceSource, FitMethod, fit_curve
from grape_rl.reward.critic.judge import Judge
from grape_rl.schema import nearest
from grape_rl.types import Verdict


@dataclass(frozen=True)
class LabeledVerdict:
    """A verdict on a response with the score by a person. ``group`` numbers the response's prompt."""

    category: str
    judge: Judge
    verdict: Verdict
    human: float
    group: int


@dataclass(frozen=True)
class ItemComparison:
    """The critic's and people's labels of an item, for all responses on which the critic gave a verdict.

    Labels with equal scores count as one. ``critic`` and ``human`` are indices into ``labels`` and ``score``, which are
    sorted by score.

    Attributes:
        items: the ids of the item, or of all items with the same source, as ``category/item``.
        source: the source of the critic's confidence.
        missing: the number of missing verdicts, which are left out.
    """

    items: tuple[str, ...]
    source: ConfidenceSource
    labels: tuple[str, ...]
    score: Float[Tensor, " l"]
    critic: Int[Tensor, " n"]
    human: Int[Tensor, " n"]
    confidence: Float[Tensor, " n"]
    group: Int[Tensor, " n"]
    missing: int

    @property
    def correct(self) -> Bool[Tensor, " n"]:
        """True where the critic's label equals the person's."""
        return self.critic == self.human

    @property
    def kappa(self) -> Kappa:
        """Cohen's κ; weighted by the scores if there are more than two labels, since scores are on a scale."""
        if len(self.labels) == 2:
            return cohen_kappa(self.critic, self.human, 2)
        return weighted_kappa(self.critic, self.human, self.score)


def human_scores(
    row: Mapping[str, Any], column: str, judges: Mapping[str, Judge], others: Iterable[str], place: str
) -> dict[str, float]:
    """People's scores of a row's judged items, by item id; items without a label are left out.

    The row's ``column`` contains ``{id: label}`` (or its JSON), or the row has columns ``column.id``. A label is one of
    the item's labels, or a number in [0, 1], which selects the label with the nearest score (the lower one of two).
    Labels of ``others``, the items without a judge, are ignored. ``place`` begins error messages.

    Raises:
        ValueError: a label of an unknown item, or a value that is neither a label nor a number in [0, 1].
    """
    labels = row.get(column)
    if isinstance(labels, str) and labels.strip():
        try:
            labels = json.loads(labels)
        except ValueError:
            raise ValueError(f"{place}: {column!r} is {labels!r:.60}, and should contain labels by item") from None
    if not labels:
        labels = {}
    if not isinstance(labels, Mapping):
        raise ValueError(f"{place}: {column!r} is {labels!r:.60}, and should contain labels by item")
    own_columns = {key.removeprefix(f"{column}."): value for key, value in row.items() if key.startswith(f"{column}.")}
    scores: dict[str, float] = {}
    for item, value in {**labels, **own_columns}.items():
        if value is None or value == "" or item in others:
            continue
        if item not in judges:
            # A table has columns for the items of all categories; a mapping is the row's own.
            if item in labels:
                raise ValueError(f"{place}: {column!r} labels an unknown item {item!r}{nearest(item, judges)}")
            continue
        scores[item] = _label_score(value, judges[item], f"{place}: the label of item {item!r}")
    return scores


def compare_with_people(verdicts: Iterable[LabeledVerdict]) -> list[ItemComparison]:
    """One comparison for each confidence source, in order of first appearance.

    Items with the same criterion, labels and critic share a source.
    """
    by_source: dict[str, list[LabeledVerdict]] = {}
    for labeled in verdicts:
        by_source.setdefault(labeled.judge.confidence_source.model_dump_json(), []).append(labeled)
    comparisons: list[ItemComparison] = []
    for members in by_source.values():
        judge = members[0].judge
        score = sorted(set(judge.labels.values()))
        names = tuple("/".join(name for name, value in judge.labels.items() if value == level) for level in score)
        # Only "ok" is the critic's own label: a policy fault has a score without a call.
        judged = [member for member in members if member.verdict.status == "ok"]
        comparisons.append(
            ItemComparison(
                tuple(dict.fromkeys(f"{member.category}/{member.verdict.item}" for member in members)),
                judge.confidence_source,
                names,
                torch.tensor(score, dtype=torch.float64),
                torch.tensor([score.index(member.verdict.score) for member in judged], dtype=torch.long),
                torch.tensor([score.index(member.human) for member in judged], dtype=torch.long),
                torch.tensor([member.verdict.confidence for member in judged], dtype=torch.float64),
                torch.tensor([member.group for member in judged], dtype=torch.long),
                sum(member.verdict.missing for member in members),
            )
        )
    return comparisons


def fit_curves(
    comparisons: Iterable[ItemComparison], method: FitMethod, min_labels: int
) -> tuple[CalibrationCurve, ...]:
    """Fit a curve to each item, and to each critic as a whole, with at least ``min_labels`` labels."""
    by_source: dict[str, list[ItemComparison]] = {}
    for comparison in comparisons:
        for source in (comparison.source, comparison.source.whole_critic):
            by_source.setdefault(source.model_dump_json(), []).append(comparison)
    curves: list[CalibrationCurve] = []
    for source_json, members in by_source.items():
        confidence, correct, group = (
            torch.cat([getattr(member, field) for member in members]) for field in ("confidence", "correct", "group")
        )
        if len(correct) >= min_labels:
            names = tuple(name for member in members for name in member.items)
            source = ConfidenceSource.model_validate_json(source_json)
            curves.append(fit_curve(source, names, method, confidence, correct, group))
    return tuple(curves)


def _label_score(value: Any, judge: Judge, place: str) -> float:
    name = f"{value:g}" if isinstance(value, float) else str(value)
    if name in judge.labels:
        return judge.labels[name]
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1.0
    if not 0 <= number <= 1:
        known = ", ".join(judge.labels)
        raise ValueError(f"{place} is {value!r:.60}, and should be one of {known}, or a score in [0, 1]")
    return min(sorted(set(judge.labels.values())), key=lambda score: abs(score - number))
