"""The experiment with noisy critics as a page: its table, a picture, and what the arms' advantages are worth."""

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
from confidence import ARMS, LABELS, correlation, true_reward
from grape_rl.maths.advantage import group_relative
from grape_rl.maths.grape import confidence_weighted
from measured import Record, records
from picture import smooth
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
"""What is compared, all without noise: on held-out prompts after the last step, and over the last quarter of steps."""
PROMPTS, GROUP = 400, 8
"""Offline: how many prompts of each category a seed has, and how many responses to each."""

Paired = Mapping[str, Sequence[Record]]
"""Each arm's runs, in the order of the seeds, which are the same for all."""


def report(results: Path, page: Path) -> None:
    """Write the tables and the picture of what is measured into the page, whose own text stays as it is.

    Raises:
        ValueError: fewer than two seeds have every arm.
    """
    found = paired(records(results))
    seeds = [record["seed"] for record in found["off"]]
    if len(seeds) < 2:
        raise ValueError(f"{results}: {len(seeds)} seeds have every arm; there must be two at least")
    text = inserted(page.read_text(encoding="utf-8"), "results", results_table(found))
    text = inserted(text, "offline", offline_table(seeds))
    page.write_text(text, encoding="utf-8")
    draw(found, page.with_name("confidence.png"))
    print(page)


def paired(found: Sequence[Record]) -> Paired:
    """The runs of those seeds that have every arm."""
    runs = {(record["set"]["arm"], record["seed"]): record for record in found}
    seeds = [seed for seed in sorted({seed for _, seed in runs}) if all((arm, seed) in runs for arm in ARMS)]
    return {arm: [runs[arm, seed] for seed in seeds] for arm in ARMS}


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """The mean of differences, and the half width of its 95 % interval by Student's t."""
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    return statistics.fmean(differences), error * t_quantile(len(differences) - 1)


@cache
def t_quantile(freedom: int, share: float = 0.975) -> float:
    """Student's t below which a share (over ½) of its distribution lies: its density summed up, halving from 0 to 100.

    >>> round(t_quantile(9), 3), round(t_quantile(1), 3)
    (2.262, 12.706)
    """
    at = np.linspace(0, 100, 2_000_001)
    log_density = (
        math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - 0.5 * math.log(freedom * math.pi)
        - (freedom + 1) / 2 * np.log1p(at**2 / freedom)
    )  # fmt: skip
    density = np.exp(log_density)
    below = 0.5 + np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2 * (at[1] - at[0]))])
    return float(at[np.searchsorted(below, share)])


def last_quarter(curve: Sequence[float]) -> Sequence[float]:
    """The last quarter of a curve's steps, one at least.

    >>> last_quarter([1, 2, 3, 4, 5, 6, 7, 8])
    [7, 8]
    """
    return curve[-max(1, len(curve) // 4) :]


def results_table(found: Paired) -> str:
    """Every arm: its means, and its mean difference to ``off``, paired by seed, with the 95 % interval."""
    columns = ["arm"]
    for name in MEASURES:
        columns += [name, "− off"]
    columns += ["agreement"]
    before = found["off"]
    start = [
        statistics.fmean(record["held_out"]["before"][name] for record in before) for name in ("reward", "correct")
    ]
    first = statistics.fmean(record["curve"]["reward"][0] for record in before)
    rows = [["*start (SFT)*", *(cell for mean in (*start, first) for cell in (f"{mean:.3f}", "")), ""]]
    for arm, runs in found.items():
        row = [f"`{arm}`"]
        for of in MEASURES.values():
            row.append(f"{statistics.fmean(map(of, runs)):.3f}")
            mean, half = interval([of(one) - of(other) for one, other in zip(runs, before, strict=True)])
            row.append("" if arm == "off" else f"{mean:+.3f} ± {half:.3f}".replace("-", "−"))
        agreement = statistics.fmean(statistics.fmean(record["curve"]["agreement"]) for record in runs)
        rows.append([*row, f"{agreement:.2f}"])
    seeds = [record["seed"] for record in before]
    where = before[0]["where"]
    seconds = statistics.fmean(record["seconds"] for runs in found.values() for record in runs)
    told = (
        f"{len(seeds)} seeds ({', '.join(map(str, seeds))}), the same for every arm; ± is half of the 95 % interval. "
        f"Measured: {where['date']}, {where['threads']} thread of {where['cores']} cores ({where['machine']}), torch "
        f"{where['torch']}, Python {where['python']}; {seconds:.0f} CPU seconds a run.\n"
    )
    return markdown(columns, rows) + "\n" + told


def offline_table(seeds: Sequence[int]) -> str:
    """How each way to weight the items makes advantages like those without noise; mean over seeds, with the range."""
    by_seed = [agreements(seed) for seed in seeds]
    rows: list[list[str]] = []
    for name in by_seed[0]:
        values = [each[name] for each in by_seed]
        rows.append([name, f"{statistics.fmean(values):.3f}", f"{min(values):.3f} – {max(values):.3f}"])
    return markdown(["weights", "correlation", "(seeds)"], rows)


def agreements(seed: int) -> dict[str, float]:
    """The correlation of each way's advantages with those without noise, on made-up responses.

    A prompt is answered rightly, in form and briefly with probabilities of its own, each drawn evenly from 0 to 1 (the
    latter two from ½).
    """
    random = torch.Generator().manual_seed(seed)
    knots, heights = noisy.fitted(seed, LABELS)
    group = torch.arange(PROMPTS * GROUP) // GROUP
    weight = torch.tensor(list(noisy.WEIGHTS.values()), dtype=torch.float64)
    ways: dict[str, list[Tensor]] = {}
    true: list[Tensor] = []
    for category, rates in noisy.FLIPPED.items():
        likely = torch.rand(PROMPTS, 3, generator=random, dtype=torch.float64)
        likely[:, 1:] = 0.5 + likely[:, 1:] / 2
        truth = (torch.rand(len(group), 3, generator=random, dtype=torch.float64) < likely[group]).double()
        reward = [true_reward(dict(zip(noisy.TRUE, row, strict=True))) for row in truth.tolist()]
        true.append(group_relative(torch.tensor(reward, dtype=torch.float64), group))
        places = [(category, item, f"offline {number // GROUP}", str(number % GROUP))
                  for number in range(len(group)) for item in noisy.ITEMS]  # fmt: skip
        flipped = shaped([noisy.Critics(seed).flipped(*place) for place in places])
        score = (truth[:, [0] * len(noisy.CRITICS) + [1, 2]] - flipped).abs()
        sure = {
            arm: shaped([noisy.Critics(seed, kind, True, knots, heights).confidence(*place) for place in places])
            for arm, kind in ARMS.items()
            if arm != "clean"
        }
        rate = torch.tensor(rates, dtype=torch.float64).expand(score.shape)
        sure["best"] = (1 - 2 * rate) / (rate * (1 - rate))
        powers = {f"`{arm}`": (arm, 1.0) for arm in sure if arm != "best"}
        powers |= {"`raw`, power 4": ("raw", 4.0), "`raw`, power 8": ("raw", 8.0), "`oracle`, power 2": ("oracle", 2.0)}
        powers["(1 − 2e)/(e(1 − e))"] = ("best", 1.0)
        for name, (arm, power) in powers.items():
            made = confidence_weighted(score, sure[arm], weight, group, power=power)
            ways.setdefault(name, []).append(group_relative(made, group))
    return {name: correlation(torch.cat(made), torch.cat(true)) for name, made in ways.items()}


def shaped(values: Sequence[float]) -> Tensor:
    """A row a response, a column an item."""
    return torch.tensor(values, dtype=torch.float64).reshape(-1, len(noisy.ITEMS))


def draw(found: Paired, path: Path) -> None:
    """Write the picture: the true training reward step by step, and the final differences with their intervals."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    for arm, runs in found.items():
        mean = np.mean([smooth(np.array(record["curve"]["reward"])) for record in runs], axis=0)
        left.plot(range(1, len(mean) + 1), mean, color=COLORS[arm], linewidth=1.6, label=arm,
                  linestyle="--" if arm in ("off", "clean") else "-")  # fmt: skip
    left.set_xlabel("step")
    left.set_title("true reward of the training responses, mean over seeds", fontsize=10, loc="left")
    left.legend(fontsize=8, frameon=False, ncols=2, loc="lower right")
    arms = [arm for arm in found if arm != "off"]
    measures = list(MEASURES.items())[:2]
    for number, (name, of) in enumerate(measures):
        for place, arm in enumerate(arms):
            pairs = [of(one) - of(other) for one, other in zip(found[arm], found["off"], strict=True)]
            mean, half = interval(pairs)
            at = len(arms) - 1 - place + (0.15 if number == 0 else -0.15)
            right.plot(pairs, [at] * len(pairs), "|", color=COLORS[arm], alpha=0.5, markersize=5)
            right.errorbar(mean, at, xerr=half, fmt="os"[number], color=COLORS[arm], capsize=3, markersize=5,
                           markerfacecolor=COLORS[arm] if number == 0 else "white",
                           label=name if place == 0 else None)  # fmt: skip
    right.axvline(0, color="#000000", linewidth=0.8)
    right.set_yticks(range(len(arms)), arms[::-1])
    right.set_title("after the last step: difference to off, with 95 % intervals", fontsize=10, loc="left")
    right.legend(fontsize=8, frameon=False, loc="lower left")
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color="#eeeeee", linewidth=0.7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)  # half the size
