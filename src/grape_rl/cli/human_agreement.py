"""Critics beside people: labels read from the data, tables of agreement and reliability, and the plot."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from grape_rl.cli.response_data import Existing
from grape_rl.maths.agreement import confusion
from grape_rl.maths.calibration import brier, expected_calibration_error, reliability
from grape_rl.reward.critic.human_labels import ItemComparison, human_scores
from grape_rl.reward.rubric import Rubric, items_of
from grape_rl.training.display import table

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def people_of(
    rubric: Rubric, found: Existing, homes: Sequence[str], column: str, source: str
) -> list[dict[str, float]]:
    """People's scores of each row's judged items, by the item's id; ``homes`` are the rows' categories.

    Raises:
        ValueError: a label that is none, or no label at all.
    """
    told: list[dict[str, float]] = []
    for index, (row, name) in enumerate(zip(found.rows, homes, strict=True)):
        items = items_of(rubric, name, row)
        judges = {item.id: item.judge for item in items if item.judge}
        others = [item.id for item in items if not item.judge]
        told.append(human_scores(row, column, judges, others, f"{source}, row {index}"))
    if not any(told):
        raise ValueError(f"{source}: no row has a person's label of a judged item in {column!r} or '{column}.ITEM'")
    return told


def measures(of: ItemComparison) -> dict[str, float | int]:
    """What ``--table`` says of an item beside people's labels, by name."""
    kappa = of.kappa
    return {
        "human_n": kappa.count,
        "base_rate": kappa.base_rate,
        "accuracy": kappa.accuracy,
        "kappa": kappa.kappa,
        "kappa_low": kappa.low,
        "kappa_high": kappa.high,
        "ece": expected_calibration_error(of.confidence, of.correct),
        "brier": brier(of.confidence, of.correct),
    }


def print_people(items: Sequence[ItemComparison]) -> None:
    """How far critics agree with people, label by label, and how often they are right by how sure they are."""
    lines = [[*agreement_cells(of), m["ece"], m["brier"]] for of in items for m in [measures(of)]]
    confidence, correct = _all(items)
    if len(items) > 1:
        accuracy = float(correct.double().mean())
        whole = [expected_calibration_error(confidence, correct), brier(confidence, correct)]
        lines.append(["all", len(correct), math.nan, accuracy, math.nan, "", *whole])
    table("critics beside people", [*AGREEMENT, "ECE", "Brier"], lines)
    if any(len(of.labels) > 2 for of in items):
        print("κ beyond two labels: a miss counts by the square of its distance")
    if failed := sum(of.missing for of in items):
        print(f"left out: {failed} labels of people's where the critic's verdict failed")
    said = [
        [_name(of), label, *([str(int(count)) for count in row.sum()[None]]), _counted(of.labels, row.tolist())]
        for of in items
        for label, row in zip(of.labels, confusion(of.critic, of.human, len(of.labels)), strict=True)
    ]
    table("what people say where the critic says", ["item", "the critic", "n", "people"], said)
    curves = [(_name(of), of.confidence, of.correct) for of in items]
    curves += [("all", confidence, correct)] if len(items) > 1 else []
    bins: list[list[str | float | int]] = []
    for name, sure, right in curves:
        of = reliability(sure, right)
        for mean, share, low, high, count in zip(of.confidence, of.accuracy, of.low, of.high, of.count, strict=True):
            if count:
                bins.append([name, float(mean), float(share), f"{float(low):.2f} to {float(high):.2f}", int(count)])
    table("reliability", ["item", "confidence", "right", "95 %", "n"], bins)


AGREEMENT = ["item", "n", "base rate", "accuracy", "κ", "95 %"]
"""The heads of ``agreement_cells``."""


def agreement_cells(of: ItemComparison) -> list[str | float | int]:
    """An item's line in a table of agreement."""
    kappa = of.kappa
    interval = "" if math.isnan(kappa.kappa) else f"{kappa.low:.2f} to {kappa.high:.2f}"
    return [_name(of), kappa.count, kappa.base_rate, kappa.accuracy, kappa.kappa, interval]


def require_matplotlib() -> None:
    """That there is something to draw with.

    Raises:
        ValueError: matplotlib is not installed.
    """
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise ValueError("--plot draws with matplotlib, which is not installed: pip install 'grape-rl[bench]'")


def plot(path: Path, items: Sequence[ItemComparison]) -> None:
    """Draw each item's reliability curve, with its intervals, and that of all."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    curves = [(_name(of), of.confidence, of.correct) for of in items]
    curves += [("all", *_all(items))] if len(items) > 1 else []
    wide = min(3, len(curves))
    high = math.ceil(len(curves) / wide)
    figure, axes = pyplot.subplots(high, wide, figsize=(3.6 * wide, 3.4 * high), squeeze=False, layout="constrained")
    for axis in axes.flat[len(curves) :]:
        axis.set_visible(False)
    for axis, (name, confidence, correct) in zip(axes.flat, curves, strict=False):
        _draw(axis, name, confidence, correct)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _draw(axis: "Axes", name: str, confidence: torch.Tensor, correct: torch.Tensor) -> None:
    of = reliability(confidence, correct)
    some = of.count > 0
    x, y = of.confidence[some].tolist(), of.accuracy[some].tolist()
    below, above = (of.accuracy - of.low)[some].tolist(), (of.high - of.accuracy)[some].tolist()
    axis.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    axis.errorbar(x, y, yerr=[below, above], marker="o", markersize=4, capsize=2, linewidth=1)
    error = expected_calibration_error(confidence, correct)
    axis.set(title=f"{name}: ECE {error:.3f}, n {len(correct)}", xlabel="confidence", ylabel="right")
    axis.set(xlim=(0, 1.02), ylim=(0, 1.02))


def _all(items: Sequence[ItemComparison]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.cat([of.confidence for of in items]), torch.cat([of.correct for of in items])


def _name(of: ItemComparison) -> str:
    return ", ".join(of.items)


def _counted(labels: Sequence[str], counts: Sequence[int]) -> str:
    return ", ".join(f"{label} {count}" for label, count in zip(labels, counts, strict=True) if count) or "-"
