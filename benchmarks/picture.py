"""The learning curves of the methods that sample: a panel a family, the other methods grey behind it."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

from grape_rl.algorithms import FAMILIES
from tables import Method, cumulative

matplotlib.use("Agg")
from matplotlib import pyplot

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#000000")
"""Told apart by everyone; as many as a panel has curves at most."""
POINTS = 60
WINDOW = 5
"""Steps over which a curve is averaged, for the prompts of a step are few."""

Curve = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Tokens, and the mean, the lowest and the highest reward of the seeds there."""


def panels(names: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Titles with the methods below them: families, of which a large one takes more than one panel."""
    found: list[tuple[str, list[str]]] = []
    for family, rows in FAMILIES.items():
        members = [row.name for row in rows if row.name in names]
        parts = -(-len(members) // len(COLOURS))
        for part in range(parts):
            share = members[part * len(members) // parts : (part + 1) * len(members) // parts]
            found.append((family if parts == 1 else f"{family} ({part + 1})", share))
    return found


def curve(method: Method) -> Curve:
    """The method's reward over the tokens that it sampled, each step's reward averaged with its neighbours'."""
    tokens = [np.array(cumulative(record["curve"]["tokens"])) for record in method.records]
    rewards = [smooth(np.array(record["curve"]["reward"], dtype=float)) for record in method.records]
    at = np.linspace(max(t[0] for t in tokens), min(t[-1] for t in tokens), POINTS)
    lines = np.array([np.interp(at, t, r) for t, r in zip(tokens, rewards, strict=True)])
    return at / 1000, lines.mean(axis=0), lines.min(axis=0), lines.max(axis=0)


def smooth(values: np.ndarray) -> np.ndarray:
    """The mean of each value and its neighbours, ``WINDOW`` in all, fewer at the ends; NaN counts for nothing."""
    half = WINDOW // 2
    return np.array([np.nanmean(values[max(0, i - half) : i + half + 1]) for i in range(len(values))])


def draw(methods: Sequence[Method], path: Path) -> None:
    """Write the picture, all panels on the same axes."""
    curves = {method.name: curve(method) for method in methods if method.records}
    shown = panels(list(curves))
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure, axes = pyplot.subplots(
        rows,
        columns,
        figsize=(4.2 * columns, 3.3 * rows),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axis, (title, members) in zip(axes.flat, shown, strict=False):
        for name, (at, mean, _, _) in curves.items():
            if name not in members:
                axis.plot(at, mean, color="#d4d4d4", linewidth=0.8, zorder=1)
        for name, colour in zip(members, COLOURS, strict=False):
            at, mean, low, high = curves[name]
            axis.fill_between(at, low, high, color=colour, alpha=0.12, linewidth=0, zorder=2)
            axis.plot(at, mean, color=colour, linewidth=1.6, label=name, zorder=3)
        axis.set_title(title, fontsize=10, loc="left")
        axis.legend(fontsize=8, frameon=False, loc="lower right", labelspacing=0.25, handlelength=1.4)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#eeeeee", linewidth=0.7)
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    figure.supxlabel("sampled tokens (thousands)", fontsize=10)
    figure.supylabel("training reward", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
