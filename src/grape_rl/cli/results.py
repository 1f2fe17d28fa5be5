"""Held-out results as a table."""

import math
from collections.abc import Mapping

from grape_rl.rollout.evaluation import HeldOut
from grape_rl.training.display import table


def print_held_out(evaluations: Mapping[int, HeldOut], names: Mapping[int, str] | None = None) -> None:
    """Print the mean score of each item at each evaluated step, and the change from the first step to the last.

    ``evaluations`` maps steps to results; ``names`` replaces "step N" in the header. If a critic judges an item, a
    column has the mean confidence in each item at the last step.
    """
    if not evaluations:
        return
    steps = sorted(evaluations)
    first, last = evaluations[steps[0]], evaluations[steps[-1]]
    headers = [(names or {}).get(step, f"step {step}") for step in steps]
    several = len(steps) > 1
    confidence = {(item.category, item.item): item.confidence for item in last.items}
    judged = any(value < 1 for value in confidence.values())
    rows: list[list[str | float]] = []
    means = [{(item.category, item.item): item.mean for item in evaluations[step].items} for step in steps]
    # A critic may assign a prompt's category at one step and fail to at another, so an item can appear or disappear.
    for category, item in dict.fromkeys(key for by_item in (means[-1], *means) for key in by_item):
        history = [by_item.get((category, item), math.nan) for by_item in means]
        sure = [confidence.get((category, item), math.nan)] if judged else []
        rows.append([category, item, *history, *([_change(history)] if several else []), *sure])
    if first.responses:
        rewards = [evaluations[step].reward for step in steps]
        lengths = [evaluations[step].length for step in steps]
        blank = [""] if judged else []
        rows.append(["all", "reward", *rewards, *([_change(rewards)] if several else []), *blank])
        rows.append(["all", "tokens", *[f"{length:.1f}" for length in lengths], *([""] if several else []), *blank])
    missing = sum(sum(item.missing.values()) for item in last.items)
    subject = f"mean scores of {first.responses} responses" if first.responses else last.items[0].category
    title = f"held-out: {subject}" + (f", {missing} missing" if missing else "")
    table(
        title,
        ["category", "item", *headers, *(["change"] if several else []), *(["confidence"] if judged else [])],
        rows,
    )


def _change(means: list[float]) -> str:
    change = means[-1] - means[0]
    return "-" if math.isnan(change) else f"{change:+.3f}"
