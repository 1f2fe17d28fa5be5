"""Figure of the learning curves of the online methods: a panel a family, all further methods in gray."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

from grape_rl.algorithms import FAMILIES
from result_file import Record
from tables import BUDGET, MethodRuns, cumulative

matplotlib.use("Agg")
from matplotlib import pyplot

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#000000")
"""Safe for color blindness. A panel has at most this many curves."""
TOKENS = np.linspace(2_000, BUDGET, 60)
"""Positions of the points of a curve, in sampled tokens."""
WINDOW = 5
"""Width of the moving average in steps; a single step has few prompts."""


def panels(names: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Title and methods of each panel: one family, or a part of a large one."""
    result: list[tuple[str, list[str]]] = []
    for family, rows in FAMILIES.items():
        members = [row.name for row in rows if row.name in names]
        parts = -(-len(members) // len(COLORS))
        for part in range(parts):
            share = members[part * len(members) // parts : (part + 1) * len(members) // parts]
            result.append((family if parts == 1 else f"{family} ({part + 1})", share))
    return result


def curves(methods: Sequence[MethodRuns]) -> dict[str, np.ndarray]:
    """Reward of each method at ``TOKENS``, a row a seed; NaN beyond its last step.

    All methods have the same prompts for a seed. The effect of a seed, estimated on the methods that have all seeds, is
    subtracted from its curves: otherwise the spread of seeds would hide the differences of methods. The mean over seeds
    does not change.
    """
    seeds = max((sorted(record["seed"] for record in method.records) for method in methods), key=len)
    lines = {m.name: {r["seed"]: interpolated_reward(r) for r in m.records} for m in methods if m.records}
    complete = [[by_seed[seed] for seed in seeds] for by_seed in lines.values() if sorted(by_seed) == seeds]
    whole = np.ma.masked_invalid(complete)
    effect = dict(zip(seeds, (whole.mean(axis=0) - whole.mean(axis=(0, 1))).filled(0), strict=True))
    return {
        name: np.array([line - effect.get(seed, 0) for seed, line in by_seed.items()])
        for name, by_seed in lines.items()
    }


def interpolated_reward(record: Record) -> np.ndarray:
    """Smoothed reward of a run at ``TOKENS``."""
    rewards = smooth(np.array(record["curve"]["reward"], dtype=float))
    return np.interp(TOKENS, cumulative(record["curve"]["tokens"]), rewards, right=np.nan)


def equal_curves(names: Sequence[str], lines: Mapping[str, np.ndarray]) -> list[list[str]]:
    """Methods grouped by identical curves, so that no curve is hidden below another.

    >>> same, other = np.array([[1.0, 2.0]]), np.array([[1.0, 3.0]])
    >>> equal_curves(["a", "b", "c"], {"a": same, "b": other, "c": same})
    [['a', 'c'], ['b']]
    """
    groups: list[list[str]] = []
    for name in names:
        for group in groups:
            if np.array_equal(lines[group[0]], lines[name], equal_nan=True):
                group.append(name)
                break
        else:
            groups.append([name])
    return groups


def smooth(values: np.ndarray) -> np.ndarray:
    """Centered moving average over ``WINDOW`` values, fewer at the ends; NaN values are left out."""
    half = WINDOW // 2
    return np.array([np.nanmean(values[max(0, i - half) : i + half + 1]) for i in range(len(values))])


def draw(methods: Sequence[MethodRuns], path: Path) -> None:
    """Write the figure; all panels share their axes."""
    curve = curves(methods)
    shown = panels(list(curve))
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
    thousands = TOKENS / 1000
    for axis, (title, members) in zip(axes.flat, shown, strict=False):
        for name in curve.keys() - set(members):
            axis.plot(thousands, curve[name].mean(axis=0), color="#d4d4d4", linewidth=0.8, zorder=1)
        for names, color in zip(equal_curves(members, curve), COLORS, strict=False):
            lines = curve[names[0]]
            low, high = lines.min(axis=0), lines.max(axis=0)
            axis.fill_between(thousands, low, high, color=color, alpha=0.12, linewidth=0, zorder=2)
            axis.plot(thousands, lines.mean(axis=0), color=color, linewidth=1.6, label=", ".join(names), zorder=3)
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
