"""Held-out results as a table."""

import math
from collections.abc import Mapping

from grape_rl.rollout.evaluation import HeldOut
from grape_rl.training.display import table


def print_held_out(evaluations: Mapping[int, HeldOut], names: Mapping[int, str] | None = None) -> None:
    """Each category's items before, after, and the change; the steps in between too, if there were evaluations."""
    if not evaluations:
        return
    steps = sorted(evaluations)
    first, last = evaluations[steps[0]], evaluations[steps[-1]]
    heads = [(names or {}).get(step, f"step {step}") for step in steps]
    several = len(steps) > 1
    rows: list[list[str | float]] = []
    found = [{(item.category, item.item): item.mean for item in evaluations[step].items} for step in steps]
    # An item may be new, or gone: which category a prompt is of can come to be known later, or not this time.
    for category, item in dict.fromkeys(key for those in (found[-1], *found) for key in those):
        means = [those.get((category, item), math.nan) for those in found]
        rows.append([category, item, *means, *([_change(means)] if several else [])])
    if first.responses:
        rewards = [evaluations[step].reward for step in steps]
        lengths = [evaluations[step].length for step in steps]
        rows.append(["all", "reward", *rewards, *([_change(rewards)] if several else [])])
        rows.append(["all", "tokens", *[f"{length:.1f}" for length in lengths], *([""] if several else [])])
    missing = sum(sum(item.missing.values()) for item in last.items)
    graded = f"mean scores of {first.responses} responses" if first.responses else last.items[0].category
    title = f"held-out: {graded}" + (f", {missing} missing" if missing else "")
    table(title, ["category", "item", *heads, *(["change"] if several else [])], rows)


def _change(means: list[float]) -> str:
    change = means[-1] - means[0]
    return "-" if math.isnan(change) else f"{change:+.3f}"
