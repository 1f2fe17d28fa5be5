"""The page of the confidence experiment: table, figure, and the offline quality of the arms' advantages."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image
from torch import Tensor

import noisy
from arms import ARMS, LABELS, advantage_correlation, true_reward
from grape_rl.maths.advantage import group_relative
from grape_rl.maths.grape import confidence_weighted
from learning_curves import smooth
from result_file import Record, read_records
from tables import inserted, markdown

matplotlib.use("Agg")
from matplotlib import pyplot

COLORS = {
    "off": "#000000",
    "raw": "#E69F00",
    "chance": "#D55E00",
    "calibrated": "#56B4E9",
    "calibrated_chance": "#0072B2",
    "shuffled": "#999999",
    "oracle": "#009E73",
    "clean": "#CC79A7",
}
MEASURES: Mapping[str, Callable[[Record], float]] = {
    "held-out reward": lambda record: record["held_out"]["after"]["reward"],
    "held-out accuracy": lambda record: record["held_out"]["after"]["correct"],
    "training reward": lambda record: statistics.fmean(last_quarter(record["curve"]["reward"])),
}
"""Measures without noise: on held-out prompts after the last step, and in training over the last quarter of steps."""
PROMPTS, GROUP = 400, 8
"""Offline: prompts per category and seed, and responses per prompt."""

Paired = Mapping[str, Sequence[Record]]
"""Runs of each arm in the order of the seeds, which are equal for all arms."""


def report(results: Path, page: Path) -> None:
    """Write the tables and the figure into the page, whose own text stays as it is.

    Raises:
        ValueError: fewer than two seeds have all arms.
    """
    runs = paired(read_records(results))
    seeds = [record["seed"] for record in runs["off"]]
    if len(seeds) < 2:
        raise ValueError(f"{results}: {len(seeds)} seeds have all arms; at least 2 are required")
    text = inserted(page.read_text(encoding="utf-8"), "results", results_table(runs))
    text = inserted(text, "offline", offline_table(seeds))
    page.write_text(text, encoding="utf-8")
    draw(runs, page.with_name("confidence.png"))
    print(page)


def paired(records: Sequence[Record]) -> Paired:
    """Runs of the seeds that have all arms."""
    runs = {(record["set"]["arm"], record["seed"]): record for record in records}
    seeds = [seed for seed in sorted({seed for _, seed in runs}) if all((arm, seed) in runs for arm in ARMS)]
    return {arm: [runs[arm, seed] for seed in seeds] for arm in ARMS}


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """Mean of differences, and half the width of its 95 % interval by Student's t."""
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    return statistics.fmean(differences), error * t_quantile(len(differences) - 1)


@cache
def t_quantile(freedom: int, share: float = 0.975) -> float:
    """Quantile of Student's t distribution for a share above ½, by numerical integration from 0 to 100.

    >>> round(t_quantile(9), 3), round(t_quantile(1), 3)
    (2.262, 12.706)
    """
    x = np.linspace(0, 100, 2_000_001)
    log_density = (
        math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - 0.5 * math.log(freedom * math.pi)
        - (freedom + 1) / 2 * np.log1p(x**2 / freedom)
    )  # fmt: skip
    density = np.exp(log_density)
    cumulative = 0.5 + np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2 * (x[1] - x[0]))])
    return float(x[np.searchsorted(cumulative, share)])


def last_quarter(curve: Sequence[float]) -> Sequence[float]:
    """Last quarter of a curve, at least one step.

    >>> last_quarter([1, 2, 3, 4, 5, 6, 7, 8])
    [7, 8]
    """
    return curve[-max(1, len(curve) // 4) :]


def results_table(arms: Paired) -> str:
    """Table of all arms: means, and mean differences to ``off`` with 95 % intervals, paired by seed."""
    columns = ["arm"]
    for name in MEASURES:
        columns += [name, "− off"]
    columns += ["agreement"]
    off = arms["off"]
    start = [statistics.fmean(record["held_out"]["before"][name] for record in off) for name in ("reward", "correct")]
    first = statistics.fmean(record["curve"]["reward"][0] for record in off)
    rows = [["*start (SFT)*", *(cell for mean in (*start, first) for cell in (f"{mean:.3f}", "")), ""]]
    for arm, runs in arms.items():
        row = [f"`{arm}`"]
        for measure in MEASURES.values():
            row.append(f"{statistics.fmean(map(measure, runs)):.3f}")
            mean, half = interval([measure(run) - measure(base) for run, base in zip(runs, off, strict=True)])
            row.append("" if arm == "off" else f"{mean:+.3f} ± {half:.3f}".replace("-", "−"))
        agreement = statistics.fmean(statistics.fmean(record["curve"]["agreement"]) for record in runs)
        rows.append([*row, f"{agreement:.2f}"])
    seeds = [record["seed"] for record in off]
    where = off[0]["where"]
    seconds = statistics.fmean(record["seconds"] for runs in arms.values() for record in runs)
    note = (
        f"{len(seeds)} seeds ({', '.join(map(str, seeds))}), equal for all arms; ± is half of the 95 % interval. "
        f"Measured: {where['date']}, {where['threads']} thread of {where['cores']} cores ({where['machine']}), torch "
        f"{where['torch']}, Python {where['python']}; {seconds:.0f} CPU seconds a run.\n"
    )
    return markdown(columns, rows) + "\n" + note


def offline_table(seeds: Sequence[int]) -> str:
    """Table of the correlation of each weighting's advantages with the noise-free ones: mean and range over seeds."""
    by_seed = [agreements(seed) for seed in seeds]
    rows: list[list[str]] = []
    for name in by_seed[0]:
        values = [correlations[name] for correlations in by_seed]
        rows.append([name, f"{statistics.fmean(values):.3f}", f"{min(values):.3f} – {max(values):.3f}"])
    return markdown(["weights", "correlation", "(seeds)"], rows)


def agreements(seed: int) -> dict[str, float]:
    """Correlation of each weighting's advantages with the noise-free ones, on synthetic responses.

    The responses to a prompt are correct, well-formatted and brief with probabilities of the prompt's own, each uniform
    between 0 and 1 (the last two between ½ and 1).
    """
    random = torch.Generator().manual_seed(seed)
    knots, heights = noisy.fitted(seed, LABELS)
    group = torch.arange(PROMPTS * GROUP) // GROUP
    weight = torch.tensor(list(noisy.WEIGHTS.values()), dtype=torch.float64)
    advantages: dict[str, list[Tensor]] = {}
    true: list[Tensor] = []
    for category, rates in noisy.FLIP_RATES.items():
        probability = torch.rand(PROMPTS, 3, generator=random, dtype=torch.float64)
        probability[:, 1:] = 0.5 + probability[:, 1:] / 2
        truth = (torch.rand(len(group), 3, generator=random, dtype=torch.float64) < probability[group]).double()
        reward = [true_reward(dict(zip(noisy.TRUE, row, strict=True))) for row in truth.tolist()]
        true.append(group_relative(torch.tensor(reward, dtype=torch.float64), group))
        verdicts = [(category, item, f"offline {number // GROUP}", str(number % GROUP))
                    for number in range(len(group)) for item in noisy.ITEMS]  # fmt: skip
        flipped = by_item([noisy.Critics(seed).flipped(*verdict) for verdict in verdicts])
        score = (truth[:, [0] * len(noisy.CRITICS) + [1, 2]] - flipped).abs()
        confidence = {
            arm: by_item([noisy.Critics(seed, kind, True, knots, heights).confidence(*v) for v in verdicts])
            for arm, kind in ARMS.items()
            if arm != "clean"
        }
        rate = torch.tensor(rates, dtype=torch.float64).expand(score.shape)
        confidence["best"] = (1 - 2 * rate) / (rate * (1 - rate))
        powers = {f"`{arm}`": (arm, 1.0) for arm in confidence if arm != "best"}
        powers |= {"`raw`, power 4": ("raw", 4.0), "`raw`, power 8": ("raw", 8.0), "`oracle`, power 2": ("oracle", 2.0)}
        powers["(1 − 2e)/(e(1 − e))"] = ("best", 1.0)
        for name, (arm, power) in powers.items():
            weighted = confidence_weighted(score, confidence[arm], weight, group, power=power)
            advantages.setdefault(name, []).append(group_relative(weighted, group))
    return {name: advantage_correlation(torch.cat(parts), torch.cat(true)) for name, parts in advantages.items()}


def by_item(values: Sequence[float]) -> Tensor:
    """Values as a matrix with a row per response and a column per item."""
    return torch.tensor(values, dtype=torch.float64).reshape(-1, len(noisy.ITEMS))


def draw(arms: Paired, path: Path) -> None:
    """Write the figure: curves of the true training reward, and final differences to ``off`` with intervals."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    for arm, runs in arms.items():
        mean = np.mean([smooth(np.array(record["curve"]["reward"])) for record in runs], axis=0)
        left.plot(range(1, len(mean) + 1), mean, color=COLORS[arm], linewidth=1.6, label=arm,
                  linestyle="--" if arm in ("off", "clean") else "-")  # fmt: skip
    left.set_xlabel("step")
    left.set_title("true reward of the training responses, mean over seeds", fontsize=10, loc="left")
    left.legend(fontsize=8, frameon=False, ncols=2, loc="lower right")
    compared = [arm for arm in arms if arm != "off"]
    measures = list(MEASURES.items())[:2]
    for number, (name, measure) in enumerate(measures):
        for place, arm in enumerate(compared):
            differences = [measure(run) - measure(base) for run, base in zip(arms[arm], arms["off"], strict=True)]
            mean, half = interval(differences)
            y = len(compared) - 1 - place + (0.15 if number == 0 else -0.15)
            right.plot(differences, [y] * len(differences), "|", color=COLORS[arm], alpha=0.5, markersize=5)
            right.errorbar(mean, y, xerr=half, fmt="os"[number], color=COLORS[arm], capsize=3, markersize=5,
                           markerfacecolor=COLORS[arm] if number == 0 else "white",
                           label=name if place == 0 else None)  # fmt: skip
    right.axvline(0, color="#000000", linewidth=0.8)
    right.set_yticks(range(len(compared)), compared[::-1])
    right.set_title("after the last step: difference to off, with 95 % intervals", fontsize=10, loc="left")
    right.legend(fontsize=8, frameon=False, loc="lower left")
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color="#eeeeee", linewidth=0.7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)  # half the size
