"""The learning curves of the methods that sample: a panel a family, the other methods gray behind it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

from grape_rl.algorithms import FAMILIES
from measured import Record
from tables import BUDGET, MethodRuns, cumulative

matplotlib.use("Agg")
from matplotlib import pyplot

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#000000")
"""Told apart by everyone; as many as a panel has curves at most."""
AT = np.linspace(2_000, BUDGET, 60)
"""Where curves are read off, in sampled tokens."""
WINDOW = 5
"""Steps over which a curve is averaged, for the prompts of a step are few."""


def panels(names: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Titles with the methods below them: families, of which a large one takes more than one panel."""
    found: list[tuple[str, list[str]]] = []
    for family, rows in FAMILIES.items():
        members = [row.name for row in rows if row.name in names]
        parts = -(-len(members) // len(COLORS))
        for part in range(parts):
            share = members[part * len(members) // parts : (part + 1) * len(members) // parts]
            found.append((family if parts == 1 else f"{family} ({part + 1})", share))
    return found


def curves(methods: Sequence[MethodRuns]) -> dict[str, np.ndarray]:
    """Each method's reward at ``AT``, a row a seed; NaN beyond its last step.

    A seed's prompts are the same for all methods. What they are worth, on the mean of all methods that have every seed,
    is taken out of each seed's curve, for else the seeds would seem to differ more than the methods; the mean over the
    seeds stays as it is.
    """
    seeds = max((sorted(record["seed"] for record in method.records) for method in methods), key=len)
    found = {m.name: {r["seed"]: read_off(r) for r in m.records} for m in methods if m.records}
    whole = np.ma.masked_invalid([[each[seed] for seed in seeds] for each in found.values() if sorted(each) == seeds])
    worth = dict(zip(seeds, (whole.mean(axis=0) - whole.mean(axis=(0, 1))).filled(0), strict=True))
    return {name: np.array([line - worth.get(s, 0) for s, line in each.items()]) for name, each in found.items()}


def read_off(record: Record) -> np.ndarray:
    """The run's reward at ``AT``, each step's averaged with its neighbors'."""
    rewards = smooth(np.array(record["curve"]["reward"], dtype=float))
    return np.interp(AT, cumulative(record["curve"]["tokens"]), rewards, right=np.nan)


def alike(names: Sequence[str], found: Mapping[str, np.ndarray]) -> list[list[str]]:
    """The methods, with those together whose curves are the same, so that none lies hidden below another.

    >>> same, other = np.array([[1.0, 2.0]]), np.array([[1.0, 3.0]])
    >>> alike(["a", "b", "c"], {"a": same, "b": other, "c": same})
    [['a', 'c'], ['b']]
    """
    together: list[list[str]] = []
    for name in names:
        for one in together:
            if np.array_equal(found[one[0]], found[name], equal_nan=True):
                one.append(name)
                break
        else:
            together.append([name])
    return together


def smooth(values: np.ndarray) -> np.ndarray:
    """The mean of each value and its neighbors, ``WINDOW`` in all, fewer at the ends; NaN counts for nothing."""
    half = WINDOW // 2
    return np.array([np.nanmean(values[max(0, i - half) : i + half + 1]) for i in range(len(values))])


def draw(methods: Sequence[MethodRuns], path: Path) -> None:
    """Write the picture, all panels on the same axes."""
    found = curves(methods)
    shown = panels(list(found))
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure, axes = pyplot.subplots(
        rows,
        columns,
        figsize=(4.2 * columns, 3.4 * rows),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    at = AT / 1000
    for axis, (title, members) in zip(axes.flat, shown, strict=False):
        for name in found.keys() - set(members):
            axis.plot(at, found[name].mean(axis=0), color="#d4d4d4", linewidth=0.8, zorder=1)
        for names, color in zip(alike(members, found), COLORS, strict=False):
            lines = found[names[0]]
            low, high = lines.min(axis=0), lines.max(axis=0)
            axis.fill_between(at, low, high, color=color, alpha=0.12, linewidth=0, zorder=2)
            axis.plot(at, lines.mean(axis=0), color=color, linewidth=1.6, label=", ".join(names), zorder=3)
        axis.set_title(title, fontsize=10, loc="left")
        axis.legend(fontsize=8, frameon=False, loc="upper left", ncols=2, labelspacing=0.25, handlelength=1.2)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#eeeeee", linewidth=0.7)
    low, high = axes[0, 0].get_ylim()
    axes[0, 0].set_ylim(low, high + 0.25 * (high - low))  # room for the names
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    for axis in axes.flat[len(shown) - columns : len(shown)]:
        axis.xaxis.set_tick_params(labelbottom=True)
    figure.supxlabel("sampled tokens (thousands)", fontsize=10)
    figure.supylabel("training reward", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)  # half the size
