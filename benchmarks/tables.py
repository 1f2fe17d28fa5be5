"""The measured results as tables of Markdown, and the page that they go into."""

import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from measured import Record, key
from online import last_reward

BUDGET = 40_000
"""Sampled tokens at which the methods that sample are compared."""


@dataclass(frozen=True)
class MethodRuns:
    """What was measured of one method under the settings chosen for it, a record a seed; or why there is nothing."""

    name: str
    records: tuple[Record, ...]
    edge: bool
    failed: str = ""

    def mean(self, of: Callable[[Record], float | None]) -> float:
        """The mean over those seeds that have a number; NaN if none has."""
        known = [value for value in map(of, self.records) if value is not None]
        return statistics.fmean(known) if known else math.nan


def by_method(found: Sequence[Record]) -> list[MethodRuns]:
    """The results of each method, under the settings that did best on the first seed of those tried.

    ``edge`` tells that those are the first or the last of the grid, so that others beyond it might do better still. Of
    a run that is there twice, as two processes may have made it, the first counts.
    """
    found = list({key(record): record for record in reversed(found)}.values())[::-1]
    names = dict.fromkeys(record["method"] for record in found)
    return [_chosen(name, [record for record in found if record["method"] == name]) for name in names]


def _chosen(name: str, found: list[Record]) -> MethodRuns:
    tried = [record for record in found if record["seed"] == found[0]["seed"]]
    best = max(tried, key=last_reward) if "curve" in tried[0] and "reward" in tried[0]["curve"] else tried[0]
    runs = [record for record in found if record["set"] == best["set"]]
    failed = "; ".join(f"seed {record['seed']}: {record['failed']}" for record in runs if "failed" in record)
    edge = len(tried) > 2 and best["set"] in (tried[0]["set"], tried[-1]["set"])
    return MethodRuns(name, tuple(record for record in runs if "failed" not in record), edge, failed)


def reward_at(record: Record, budget: int = BUDGET) -> float:
    """The mean training reward while the run drew the last quarter of ``budget`` tokens, or of all its own if fewer."""
    tokens, rewards = cumulative(record["curve"]["tokens"]), record["curve"]["reward"]
    limit = min(budget, tokens[-1])
    window = [r for t, r in zip(tokens, rewards, strict=True) if 0.75 * limit <= t <= limit and r is not None]
    return statistics.fmean(window)


def cumulative(tokens: Sequence[float]) -> list[float]:
    """How many were drawn up to the end of each step.

    >>> cumulative([3, 4])
    [3, 7]
    """
    return [sum(tokens[: i + 1]) for i in range(len(tokens))]


def chance(methods: Sequence[MethodRuns], of: Callable[[Record], float]) -> float:
    """The standard error of the difference of two methods' means, from how methods and seeds fail to add up.

    A seed's prompts are the same for all methods, so what it is worth to all of them is no noise. NaN where fewer than
    two methods have two seeds.
    """
    seeds = sorted(max(({r["seed"] for r in m.records} for m in methods), key=len, default=set()))
    whole = [m for m in methods if [r["seed"] for r in sorted(m.records, key=lambda r: r["seed"])] == seeds]
    if len(whole) < 2 or len(seeds) < 2:
        return math.nan
    table = [[of(r) for r in sorted(m.records, key=lambda r: r["seed"])] for m in whole]
    columns = [statistics.fmean(column) for column in zip(*table, strict=True)]
    every = statistics.fmean(columns)
    left = [v - statistics.fmean(row) - c + every for row in table for v, c in zip(row, columns, strict=True)]
    variance = math.fsum(each * each for each in left) / ((len(whole) - 1) * (len(seeds) - 1))
    return math.sqrt(2 * variance / len(seeds))


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; the first column is text, the others are numbers.

    Raises:
        ValueError: a row has not one cell a column.
    """
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"row {row[0]}: {len(row)} cells, and there are {len(columns)} columns")
    ruler = ["---", *["---:"] * (len(columns) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (columns, ruler, *rows)) + "\n"


def online_table(found: Sequence[Record]) -> str:
    """The methods that sample, best first, after the model that they started from."""
    methods = by_method(found)
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
                _set(method.records[0]["set"]) + ("*" if method.edge else ""),
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
    error = chance(ran, reward_at), chance(ran, lambda r: r["held_out"]["after"]["reward"])
    if not math.isnan(error[0]):
        lines.append(
            f"By how the seeds differ, the standard error of the difference between two rows is {error[0]:.3f} for the "
            f"reward at 40k tokens and {error[1]:.3f} for the held-out reward: what is closer than twice that is not "
            "told apart.\n"
        )
    return "\n".join([*lines, *_failures(methods), _where(found)])


def grid_table(found: Sequence[Record]) -> str:
    """What each method's settings came to on its first seed, methods with the same settings in one table."""
    tables: dict[tuple[str, ...], dict[str, dict[str, str]]] = {}
    first: dict[str, int] = {}
    for record in found:
        name = record["method"]
        if record["seed"] == first.setdefault(name, record["seed"]):
            row = tables.setdefault(tuple(record["set"]), {}).setdefault(f"`{name}`", {})
            row[_set(record["set"])] = "failed" if "failed" in record else f"{last_reward(record):.3f}"
    parts: list[str] = []
    for rows in tables.values():
        columns = list(dict.fromkeys(column for row in rows.values() for column in row))
        cells = [[name, *(row.get(column, "") for column in columns)] for name, row in rows.items()]
        parts.append(markdown(["method", *columns], cells))
    return "\n".join(parts)


def offline_table(found: Sequence[Record]) -> str:
    """The methods of pairs, best first, after the model that they started from and rules without a model."""
    methods = by_method(found)
    ran = sorted((m for m in methods if m.records), key=lambda m: -m.mean(lambda r: r["held_out"]["accuracy"]))
    columns = ["method", "accuracy", "(seeds)", "better model's chosen", "… rejected", "likelier", "per token",
               "Δ log π chosen", "Δ log π rejected", "CPU s"]  # fmt: skip
    one = ran[0].records[0]
    told = one["held_out"]
    rules = [[f"*{name.replace('_', ' ')}*", f"{share:.3f}"] for name, share in one["baselines"].items()]
    were = (f"{told[name]:.3f}" for name in ("likelier_before", "likelier_per_token_before"))
    before = ["*start (SFT)*", "0.500", "", "–", "–", *were, "–", "–", "–"]
    rows = [*(row + [""] * (len(columns) - 2) for row in rules), before]
    for method in ran:
        values = [record["held_out"]["accuracy"] for record in method.records]
        shares = ("accuracy_better_chosen", "accuracy_better_rejected", "likelier", "likelier_per_token")
        means = [method.mean(lambda r, n=name: r["held_out"][n]) for name in shares]
        moved = [method.mean(lambda r, n=name: r["held_out"][n]) for name in ("chosen", "rejected")]
        rows.append(
            [
                f"`{method.name}`",
                f"{statistics.fmean(values):.3f}",
                f"{min(values):.3f} – {max(values):.3f}" if len(values) > 1 else f"seed {method.records[0]['seed']}",
                *("–" if math.isnan(mean) else f"{mean:.3f}" for mean in means),
                *(f"{mean:+.1f}".replace("-", "−") for mean in moved),
                f"{method.mean(lambda r: r['seconds']):.0f}",
            ]
        )
    error = statistics.fmean(record["held_out"]["accuracy_error"] for method in ran for record in method.records)
    text = f"{told['pairs']} held-out pairs; the standard error of an accuracy is {error:.3f}, by questions.\n"
    return "\n".join([markdown(columns, rows), text, *_failures(methods), _where(found)])


def inserted(page: str, name: str, text: str) -> str:
    """The page with the text in its place, between ``<!-- name -->`` and ``<!-- end of name -->``.

    Raises:
        ValueError: the page has no such place.
    """
    place = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end of {re.escape(name)} -->)", re.DOTALL)
    if not place.search(page):
        raise ValueError(f"the page has no place <!-- {name} --> … <!-- end of {name} -->")
    return place.sub(lambda found: found[1] + text + found[2], page)


def _set(given: Mapping[str, Any]) -> str:
    """What was set, in short: the learning rate alone, or an option with its name.

    >>> _set({"optimizer": {"learning_rate": 3e-4}}), _set({"options": {"delta": 0.01}})
    ('3e-4', 'delta 0.01')
    """
    if "optimizer" in given:
        return f"{given['optimizer']['learning_rate']:.0e}".replace("e-0", "e-")
    return ", ".join(f"{name} {value:g}" for name, value in given.get("options", {}).items())


def _failures(methods: Sequence[MethodRuns]) -> list[str]:
    return [f"`{method.name}` failed: {method.failed}\n" for method in methods if method.failed]


def _where(found: Sequence[Record]) -> str:
    """When and on what the results were measured, each way once."""
    ways = dict.fromkeys(
        f"{w['date']}, {w['threads']} thread of {w['cores']} cores ({w['machine']}), torch {w['torch']}, "
        f"Python {w['python']}"
        for w in (record["where"] for record in found)
    )
    return "Measured: " + "; ".join(ways) + ".\n"
