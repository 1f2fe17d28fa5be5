"""The points of growth.py as a table, a picture, and the page that they go into."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from PIL import Image

from growth import SIZES, at
from measured import Record
from speed.page import measured_where
from tables import inserted, markdown

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.ticker import FuncFormatter, NullFormatter

TITLES = {
    "prompt": "tokens of a prompt",
    "group": "responses to a prompt",
    "completion": "tokens of a response",
    "vocabulary": "tokens of the vocabulary",
    "batch": "prompts a step",
    "head": "tokens through the head, alone",
}
LINES = {"sampling": "#0072B2", "update": "#D55E00", "memory": "#009E73"}
"""What the picture shows, each in its color."""
UNITS = {
    "sampling": (1.0, "{:.3f}"),
    "update": (1.0, "{:.3f}"),
    "memory": (1e6, "{:.0f}"),
    "operations": (1e9, "{:.1f}"),
}
"""What the table shows: seconds, megabytes, and 10⁹ operations."""

Curve = dict[int, float]


def curves(found: Sequence[Record]) -> dict[str, dict[str, Curve]]:
    """For each dimension, what was measured by size: of all turns the least seconds, and the most memory."""
    made: dict[str, dict[str, Curve]] = {}
    for name, sizes in SIZES.items():
        for size in sizes:
            turns = [record for record in found if record["point"] == at(name, size)]
            for what in UNITS:
                if told := [record[what] for record in turns if what in record]:
                    best = max(told) if what == "memory" else min(told)
                    made.setdefault(name, {}).setdefault(what, {})[size] = best
    return made


def exponent(curve: Mapping[int, float]) -> float:
    """The slope of log value over log size, by least squares: 1 is proportional, 0 constant.

    >>> exponent({1: 3.0, 2: 12.0, 4: 48.0})
    2.0
    """
    x, y = [math.log2(size) for size in curve], [math.log2(value) for value in curve.values()]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    up = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return up / sum((a - mean_x) ** 2 for a in x)


def table(made: Mapping[str, Mapping[str, Curve]]) -> str:
    """A line a point, and below the points of a dimension the exponents."""
    rows: list[list[str]] = []
    for name, told in made.items():
        sizes = next(iter(told.values()))
        for size in sizes:
            cells = [
                form.format(told[what][size] / unit) if what in told else "" for what, (unit, form) in UNITS.items()
            ]
            rows.append([TITLES[name], f"{size:,}", *cells])
        if len(sizes) > 1:
            cells = [f"*{exponent(told[what]):.2f}*" if what in told else "" for what in UNITS]
            rows.append(["*exponent*", "", *cells])
    return markdown(["what grows", "to", "sampling, s", "update, s", "memory, MB", "10⁹ operations"], rows)


def draw(made: Mapping[str, Mapping[str, Curve]], path: Path) -> None:
    """Write the picture: a panel a dimension, each curve by how often its smallest point."""
    columns = min(3, len(made))
    rows = -(-len(made) // columns)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(4.0 * columns, 3.3 * rows), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, (name, told) in zip(axes.flat, made.items(), strict=False):
        sizes = list(next(iter(told.values())))
        axis.plot(sizes, [size / sizes[0] for size in sizes], color="#b0b0b0", linewidth=1.0, linestyle=(0, (4, 3)))
        for what, color in LINES.items():
            if curve := told.get(what):
                values = [value / curve[sizes[0]] for value in curve.values()]
                label = f"{what} {exponent(curve):.2f}" if len(curve) > 1 else what
                axis.plot(sizes, values, color=color, linewidth=1.6, marker="o", markersize=4, label=label)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log", base=2)
        axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.set_title(TITLES[name], fontsize=10, loc="left")
        axis.legend(fontsize=8, frameon=False, loc="upper left", labelspacing=0.25, handlelength=1.4)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#eeeeee", linewidth=0.7)
    for axis in axes.flat[len(made) :]:
        axis.set_visible(False)
    figure.supylabel("times the smallest", fontsize=10)
    figure.supxlabel("the number behind a name is its exponent; what is dashed would be proportional", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)  # half the size


def report(found: Sequence[Record], page: Path) -> None:
    """Write the table and the picture into the page, whose own text stays as it is."""
    made = curves(found)
    if made:
        ways = dict.fromkeys(measured_where(record["where"]) for record in found)
        text = inserted(
            page.read_text(encoding="utf-8"), "growth", table(made) + "\nMeasured: " + "; ".join(ways) + ".\n"
        )
        page.write_text(text, encoding="utf-8")
        draw(made, page.with_name("growth.png"))
    print(page)
