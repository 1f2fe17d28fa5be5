"""Markdown tables of the method benchmark, and their place in a page."""

import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from online import last_reward
from result_file import Record, run_key

BUDGET = 40_000
"""Number of sampled tokens at which the online methods are compared."""


@dataclass(frozen=True)
class MethodRuns:
    """Runs of one method with its selected settings: one record a seed, and the errors of failed runs.

    ``edge`` is True if the selected settings are the first or the last of the grid, so settings beyond may be better.
    """

    name: str
    records: tuple[Record, ...]
    edge: bool
    failed: str = ""

    def mean(self, measure: Callable[[Record], float | None]) -> float:
        """Mean of a measure over the seeds that have it; NaN if none has."""
        values = [value for value in map(measure, self.records) if value is not None]
        return statistics.fmean(values) if values else math.nan


def by_method(records: Sequence[Record]) -> list[MethodRuns]:
    """Runs of each method with the settings that were best on its first seed.

    If two processes have recorded one run, the first record counts.
    """
    records = list({run_key(record): record for record in reversed(records)}.values())[::-1]
    names = dict.fromkeys(record["method"] for record in records)
    return [_selected_runs(name, [record for record in records if record["method"] == name]) for name in names]


def _selected_runs(name: str, records: list[Record]) -> MethodRuns:
    tried = [record for record in records if record["seed"] == records[0]["seed"]]
    best = max(tried, key=last_reward) if "curve" in tried[0] and "reward" in tried[0]["curve"] else tried[0]
    runs = [record for record in records if record["set"] == best["set"]]
    failed = "; ".join(f"seed {record['seed']}: {record['failed']}" for record in runs if "failed" in record)
    edge = len(tried) > 2 and best["set"] in (tried[0]["set"], tried[-1]["set"])
    return MethodRuns(name, tuple(record for record in runs if "failed" not in record), edge, failed)


def reward_at(record: Record, budget: int = BUDGET) -> float:
    """Mean training reward over the last quarter of ``budget`` sampled tokens, or of all tokens if there are fewer."""
    tokens, rewards = cumulative(record["curve"]["tokens"]), record["curve"]["reward"]
    limit = min(budget, tokens[-1])
    window = [r for t, r in zip(tokens, rewards, strict=True) if 0.75 * limit <= t <= limit and r is not None]
    return statistics.fmean(window)


def cumulative(tokens: Sequence[float]) -> list[float]:
    """Number of sampled tokens up to the end of each step.

    >>> cumulative([3, 4])
    [3, 7]
    """
    return [sum(tokens[: i + 1]) for i in range(len(tokens))]


def difference_error(methods: Sequence[MethodRuns], measure: Callable[[Record], float]) -> float:
    """Standard error of the difference of two methods' means, from the interaction of methods and seeds.

    All methods have the same prompts for a seed, so the main effect of a seed is not noise (two-way analysis of
    variance). NaN if fewer than two methods have two seeds.
    """
    seeds = sorted(max(({r["seed"] for r in m.records} for m in methods), key=len, default=set()))
    whole = [m for m in methods if [r["seed"] for r in sorted(m.records, key=lambda r: r["seed"])] == seeds]
    if len(whole) < 2 or len(seeds) < 2:
        return math.nan
    table = [[measure(r) for r in sorted(m.records, key=lambda r: r["seed"])] for m in whole]
    columns = [statistics.fmean(column) for column in zip(*table, strict=True)]
    total = statistics.fmean(columns)
    residuals = [v - statistics.fmean(row) - c + total for row in table for v, c in zip(row, columns, strict=True)]
    variance = math.fsum(residual * residual for residual in residuals) / ((len(whole) - 1) * (len(seeds) - 1))
    return math.sqrt(2 * variance / len(seeds))


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown table; the first column is text, and all further columns are numbers.

    Raises:
        ValueError: the number of cells of a row is not the number of columns.
    """
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"row {row[0]}: {len(row)} cells for {len(columns)} columns")
    ruler = ["---", *["---:"] * (len(columns) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (columns, ruler, *rows)) + "\n"


def online_table(records: Sequence[Record]) -> str:
    """Table of the online methods, best first, below a row for the initial model."""
    methods = by_method(records)
    ran = sorted((m for m in methods if m.records), key=lambda m: -m.mean(reward_at))
    columns = ["method", "chosen", "reward at 40k tokens", "(seeds)", "held-out reward", "correct", "KL", "entropy",
               "tokens", "CPU s"]  # fmt: skip
    before = next(m for m in ran if len(m.records) == max(len(n.records) for n in ran))
    start = {name: before.mean(lambda r, n=name: r["held_out"]["before"][n]) for name in ("reward", "correct")}
    first = before.mean(lambda r: r["curve"]["reward"][0])
    rows = [["*start (SFT)*", "", f"{first:.3f}", "", f"{start['reward']:.3f}", f"{start['correct']:.3f}", *["–"] * 4]]
    for method in ran:
        values = [reward_at(record) for record in method.records]
        short = any(sum(record["curve"]["tokens"]) < BUDGET for record in method.records)
        rows.append(
            [
                f"`{method.name}`",
                _settings(method.records[0]["set"]) + ("*" if method.edge else ""),
                f"{statistics.fmean(values):.3f}" + ("†" if short else ""),
                f"{min(values):.3f} – {max(values):.3f}" if len(values) > 1 else f"seed {method.records[0]['seed']}",
                f"{method.mean(lambda r: r['held_out']['after']['reward']):.3f}",
                f"{method.mean(lambda r: r['held_out']['after']['correct']):.3f}",
                f"{method.mean(lambda r: r['end']['kl']):.3f}",
                f"{method.mean(lambda r: r['end']['entropy']):.3f}",
                f"{method.mean(lambda r: sum(r['curve']['tokens'])) / 1000:.0f}k",
                f"{method.mean(lambda r: r['seconds']):.0f}",
            ]
        )
    lines = [markdown(columns, rows)]
    errors = (
        difference_error(ran, reward_at),
        difference_error(ran, lambda r: r["held_out"]["after"]["reward"]),
    )
    if not math.isnan(errors[0]):
        lines.append(
            f"The standard error of the difference between two rows, estimated over seeds, is {errors[0]:.3f} for the "
            f"reward at 40k tokens and {errors[1]:.3f} for the held-out reward. A difference below two standard errors "
            "is not significant.\n"
        )
    return "\n".join([*lines, *_failures(methods), _where(records)])


def grid_table(records: Sequence[Record]) -> str:
    """Tables of the reward of each setting on a method's first seed, one table per grid."""
    tables: dict[tuple[str, ...], dict[str, dict[str, str]]] = {}
    first: dict[str, int] = {}
    for record in records:
        name = record["method"]
        if record["seed"] == first.setdefault(name, record["seed"]):
            row = tables.setdefault(tuple(record["set"]), {}).setdefault(f"`{name}`", {})
            row[_settings(record["set"])] = "failed" if "failed" in record else f"{last_reward(record):.3f}"
    parts: list[str] = []
    for rows in tables.values():
        columns = list(dict.fromkeys(column for row in rows.values() for column in row))
        cells = [[name, *(row.get(column, "") for column in columns)] for name, row in rows.items()]
        parts.append(markdown(["method", *columns], cells))
    return "\n".join(parts)


def offline_table(records: Sequence[Record]) -> str:
    """Table of the pair methods, best first, below rows for baseline rules and the initial model."""
    methods = by_method(records)
    ran = sorted((m for m in methods if m.records), key=lambda m: -m.mean(lambda r: r["held_out"]["accuracy"]))
    columns = ["method", "accuracy", "(seeds)", "better model's chosen", "… rejected", "likelier", "per token",
               "Δ log π chosen", "Δ log π rejected", "CPU s"]  # fmt: skip
    first = ran[0].records[0]
    held_out = first["held_out"]
    rules = [[f"*{name.replace('_', ' ')}*", f"{share:.3f}"] for name, share in first["baselines"].items()]
    initial = (f"{held_out[name]:.3f}" for name in ("likelier_before", "likelier_per_token_before"))
    before = ["*start (SFT)*", "0.500", "", "–", "–", *initial, "–", "–", "–"]
    rows = [*(row + [""] * (len(columns) - 2) for row in rules), before]
    for method in ran:
        values = [record["held_out"]["accuracy"] for record in method.records]
        shares = ("accuracy_better_chosen", "accuracy_better_rejected", "likelier", "likelier_per_token")
        means = [method.mean(lambda r, n=name: r["held_out"][n]) for name in shares]
        changes = [method.mean(lambda r, n=name: r["held_out"][n]) for name in ("chosen", "rejected")]
        rows.append(
            [
                f"`{method.name}`",
                f"{statistics.fmean(values):.3f}",
                f"{min(values):.3f} – {max(values):.3f}" if len(values) > 1 else f"seed {method.records[0]['seed']}",
                *("–" if math.isnan(mean) else f"{mean:.3f}" for mean in means),
                *(f"{mean:+.1f}".replace("-", "−") for mean in changes),
                f"{method.mean(lambda r: r['seconds']):.0f}",
            ]
        )
    error = statistics.fmean(record["held_out"]["accuracy_error"] for method in ran for record in method.records)
    count = held_out["pairs"]
    text = f"{count} held-out pairs. The standard error of an accuracy, clustered by question, is {error:.3f}.\n"
    return "\n".join([markdown(columns, rows), text, *_failures(methods), _where(records)])


def inserted(page: str, name: str, text: str) -> str:
    """Page with the text inserted between ``<!-- name -->`` and ``<!-- end of name -->``.

    Raises:
        ValueError: the page does not have these two comments.
    """
    place = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end of {re.escape(name)} -->)", re.DOTALL)
    if not place.search(page):
        raise ValueError(f"the page lacks the comments <!-- {name} --> … <!-- end of {name} -->")
    return place.sub(lambda match: match[1] + text + match[2], page)


def _settings(given: Mapping[str, Any]) -> str:
    """Short text of the settings: the learning rate alone, or an option with its name.

    >>> _settings({"optimizer": {"learning_rate": 3e-4}}), _settings({"options": {"delta": 0.01}})
    ('3e-4', 'delta 0.01')
    """
    if "optimizer" in given:
        return f"{given['optimizer']['learning_rate']:.0e}".replace("e-0", "e-")
    return ", ".join(f"{name} {value:g}" for name, value in given.get("options", {}).items())


def _failures(methods: Sequence[MethodRuns]) -> list[str]:
    return [f"`{method.name}` failed: {method.failed}\n" for method in methods if method.failed]


def _where(records: Sequence[Record]) -> str:
    """Dates, machines and versions of the records, without repetition."""
    origins = dict.fromkeys(
        f"{w['date']}, {w['threads']} thread of {w['cores']} cores ({w['machine']}), torch {w['torch']}, "
        f"Python {w['python']}"
        for w in (record["where"] for record in records)
    )
    return "Measured: " + "; ".join(origins) + ".\n"
