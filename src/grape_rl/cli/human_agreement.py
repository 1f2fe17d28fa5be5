"""Agreement of critics with human labels: labels read from the data, tables of agreement and reliability, a plot."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from grape_rl.maths.agreement import confusion
from grape_rl.maths.calibration import brier, expected_calibration_error, reliability
from grape_rl.reward.grading import Assignment
from grape_rl.rubric_tools.human_labels import ItemComparison, human_scores
from grape_rl.training.display import table

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def labels_by_row(assignments: Sequence[Assignment], column: str, source: str) -> list[dict[str, float]]:
    """The human scores of each row's judged items, by item id.

    Raises:
        ValueError: a label is invalid, or no row has a label.
    """
    labels: list[dict[str, float]] = []
    for index, assignment in enumerate(assignments):
        judges = {item.id: item.judge for item in assignment.items if item.judge}
        not_judged = [item.id for item in assignment.items if not item.judge]
        where = f"{source}, row {index}"
        labels.append(human_scores(assignment.response.row, column, judges, not_judged, where))
    if not any(labels):
        raise ValueError(f"{source}: no row has a human label of a judged item in {column!r} or '{column}.ITEM'")
    return labels


def agreement_metrics(item: ItemComparison) -> dict[str, float | int]:
    """An item's agreement with human labels, by the column names of ``--table``."""
    kappa = item.kappa
    return {
        "human_n": kappa.count,
        "base_rate": kappa.base_rate,
        "accuracy": kappa.accuracy,
        "kappa": kappa.kappa,
        "kappa_low": kappa.low,
        "kappa_high": kappa.high,
        "ece": expected_calibration_error(item.confidence, item.correct),
        "brier": brier(item.confidence, item.correct),
    }


def print_agreement(items: Sequence[ItemComparison]) -> None:
    """Print the agreement of critics with human labels, the confusion of labels, and accuracy by confidence."""
    # Agreement.
    confidence, correct = _pooled(items)
    lines: list[list[str | float | int]] = []
    for item in items:
        metrics = agreement_metrics(item)
        lines.append([*agreement_cells(item), metrics["ece"], metrics["brier"]])
    if len(items) > 1:
        accuracy = float(correct.double().mean())
        errors = [expected_calibration_error(confidence, correct), brier(confidence, correct)]
        lines.append(["all", len(correct), math.nan, accuracy, math.nan, "", *errors])
    table("critics vs. human labels", [*AGREEMENT_COLUMNS, "ECE", "Brier"], lines)
    if any(len(item.labels) > 2 for item in items):
        print(WEIGHTED_KAPPA_NOTE)
    if failures := sum(item.missing for item in items):
        print(f"left out: {failures} human labels where the critic's verdict is missing")

    # Confusion.
    rows = [
        [_name(item), label, str(int(counts.sum())), _counts(item.labels, counts.tolist())]
        for item in items
        for label, counts in zip(item.labels, confusion(item.critic, item.human, len(item.labels)), strict=True)
    ]
    table("human labels by the critic's label", ["item", "critic", "n", "human"], rows)

    # Reliability.
    bins: list[list[str | float | int]] = []
    for name, item_confidence, item_correct in _curves(items):
        curve = reliability(item_confidence, item_correct)
        columns = (curve.confidence, curve.accuracy, curve.low, curve.high, curve.count)
        for mean, accuracy, low, high, count in zip(*columns, strict=True):
            if count:
                interval = f"{float(low):.2f} to {float(high):.2f}"
                bins.append([name, float(mean), float(accuracy), interval, int(count)])
    table("reliability", ["item", "confidence", "accuracy", "95 % CI", "n"], bins)


WEIGHTED_KAPPA_NOTE = "κ is quadratically weighted for items with more than two labels"

AGREEMENT_COLUMNS = ["item", "n", "base rate", "accuracy", "κ", "95 % CI"]
"""The column heads of ``agreement_cells``."""


def agreement_cells(item: ItemComparison) -> list[str | float | int]:
    """An item's row in a table of agreement."""
    kappa = item.kappa
    interval = "" if math.isnan(kappa.kappa) else f"{kappa.low:.2f} to {kappa.high:.2f}"
    return [_name(item), kappa.count, kappa.base_rate, kappa.accuracy, kappa.kappa, interval]


def require_matplotlib() -> None:
    """Raise unless matplotlib is installed.

    Raises:
        ValueError: it is not.
    """
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise ValueError("--plot needs matplotlib, which is not installed: pip install 'grape-rl[bench]'")


def plot_reliability(path: Path, items: Sequence[ItemComparison]) -> None:
    """Plot the reliability curve of each item, and of all together, with confidence intervals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    curves = _curves(items)
    columns = min(3, len(curves))
    rows = math.ceil(len(curves) / columns)
    size = (3.6 * columns, 3.4 * rows)
    figure, axes = pyplot.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat[len(curves) :]:
        axis.set_visible(False)
    for axis, (name, confidence, correct) in zip(axes.flat, curves, strict=False):
        _plot_curve(axis, name, confidence, correct)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _plot_curve(axis: "Axes", name: str, confidence: torch.Tensor, correct: torch.Tensor) -> None:
    curve = reliability(confidence, correct)
    filled = curve.count > 0
    x, y = curve.confidence[filled].tolist(), curve.accuracy[filled].tolist()
    below, above = (curve.accuracy - curve.low)[filled].tolist(), (curve.high - curve.accuracy)[filled].tolist()
    axis.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    axis.errorbar(x, y, yerr=[below, above], marker="o", markersize=4, capsize=2, linewidth=1)
    error = expected_calibration_error(confidence, correct)
    axis.set(title=f"{name}: ECE {error:.3f}, n {len(correct)}", xlabel="confidence", ylabel="accuracy")
    axis.set(xlim=(0, 1.02), ylim=(0, 1.02))


def _curves(items: Sequence[ItemComparison]) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    """Name, confidence and correctness of each item, and of all items together if there are several."""
    curves = [(_name(item), item.confidence, item.correct) for item in items]
    return [*curves, ("all", *_pooled(items))] if len(items) > 1 else curves


def _pooled(items: Sequence[ItemComparison]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.cat([item.confidence for item in items]), torch.cat([item.correct for item in items])


def _name(item: ItemComparison) -> str:
    return ", ".join(item.items)


def _counts(labels: Sequence[str], counts: Sequence[int]) -> str:
    return ", ".join(f"{label} {count}" for label, count in zip(labels, counts, strict=True) if count) or "-"
