"""The page of growth.py: its table, its figure, and their place in docs/benchmarks/growth.md."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from PIL import Image

from result_file import Record
from speed.growth_points import SIZES, point_at
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
"""Curves of the figure, with their colors."""
UNITS = {
    "sampling": (1.0, "{:.3f}"),
    "update": (1.0, "{:.3f}"),
    "memory": (1e6, "{:.0f}"),
    "operations": (1e9, "{:.1f}"),
}
"""Columns of the table: seconds, megabytes, and 10⁹ operations."""

Curve = dict[int, float]


def curves(records: Sequence[Record]) -> dict[str, dict[str, Curve]]:
    """Measurements of each dimension by size: the least seconds and the largest memory over all turns."""
    result: dict[str, dict[str, Curve]] = {}
    for name, sizes in SIZES.items():
        for size in sizes:
            turns = [record for record in records if record["point"] == point_at(name, size)]
            for quantity in UNITS:
                if values := [record[quantity] for record in turns if quantity in record]:
                    best = max(values) if quantity == "memory" else min(values)
                    result.setdefault(name, {}).setdefault(quantity, {})[size] = best
    return result


def exponent(curve: Mapping[int, float]) -> float:
    """Slope of log value over log size, by least squares: 1 is proportional, 0 constant.

    >>> exponent({1: 3.0, 2: 12.0, 4: 48.0})
    2.0
    """
    x, y = [math.log2(size) for size in curve], [math.log2(value) for value in curve.values()]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return covariance / sum((a - mean_x) ** 2 for a in x)


def table(dimensions: Mapping[str, Mapping[str, Curve]]) -> str:
    """Table with a line a point, and the exponents below the points of each dimension."""
    rows: list[list[str]] = []
    for name, measured in dimensions.items():
        sizes = next(iter(measured.values()))
        for size in sizes:
            cells = [
                form.format(measured[quantity][size] / unit) if quantity in measured else ""
                for quantity, (unit, form) in UNITS.items()
            ]
            rows.append([TITLES[name], f"{size:,}", *cells])
        if len(sizes) > 1:
            cells = [f"*{exponent(measured[quantity]):.2f}*" if quantity in measured else "" for quantity in UNITS]
            rows.append(["*exponent*", "", *cells])
    return markdown(["what grows", "to", "sampling, s", "update, s", "memory, MB", "10⁹ operations"], rows)


def draw(dimensions: Mapping[str, Mapping[str, Curve]], path: Path) -> None:
    """Write the figure: a panel a dimension, each curve relative to its smallest point."""
    columns = min(3, len(dimensions))
    rows = -(-len(dimensions) // columns)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(4.0 * columns, 3.3 * rows), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, (name, measured) in zip(axes.flat, dimensions.items(), strict=False):
        sizes = list(next(iter(measured.values())))
        axis.plot(sizes, [size / sizes[0] for size in sizes], color="#b0b0b0", linewidth=1.0, linestyle=(0, (4, 3)))
        for quantity, color in LINES.items():
            if curve := measured.get(quantity):
                values = [value / curve[sizes[0]] for value in curve.values()]
                label = f"{quantity} {exponent(curve):.2f}" if len(curve) > 1 else quantity
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
    for axis in axes.flat[len(dimensions) :]:
        axis.set_visible(False)
    figure.supylabel("times the smallest", fontsize=10)
    figure.supxlabel("the number after a name is its exponent; the dashed line is proportional growth", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)  # half the size


def report(records: Sequence[Record], page: Path) -> None:
    """Write the table and the figure into the page, whose own text stays as it is."""
    dimensions = curves(records)
    if dimensions:
        places = dict.fromkeys(measured_where(record["where"]) for record in records)
        text = table(dimensions) + "\nMeasured: " + "; ".join(places) + ".\n"
        page.write_text(inserted(page.read_text(encoding="utf-8"), "growth", text), encoding="utf-8")
        draw(dimensions, page.with_name("growth.png"))
    print(page)
