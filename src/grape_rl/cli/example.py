"""One graded response of a run, item by item: from scores and confidences to the reward and the advantage."""

import json
import math
from collections.abc import Mapping, Sequence
from statistics import stdev
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grape_rl.run import Run

Record = Mapping[str, Any]


def print_graded_example(run: "Run") -> None:
    """Print a response of the first step whose reward depends on a critic's confidence; nothing without such a one."""
    from grape_rl.reward.rubric import load_rubric
    from grape_rl.training.display import table

    # The group with the largest spread of rewards among those with an unsure critic, and its best response.
    file = min((run.folder / "rollouts").glob("step-*.jsonl"))
    records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    size = run.config.group_size
    groups = [records[start : start + size] for start in range(0, len(records), size)]
    groups = [group for group in groups if min(confidences(group).values(), default=1.0) < 1 and _spread(group) > 0]
    if not groups or not run.config.reward.rubric:
        return
    group = max(groups, key=_spread)
    best = max(group, key=lambda record: record["reward"] or -math.inf)

    # Its items: the score, the group's mean confidence, the weight, and the product.
    rubric = load_rubric(run.config.reward.rubric, run.config.reward.allow)
    weights = {item.id: item.weight for item in rubric.categories[best["category"]].rewarded}
    confidence = confidences(group)
    rows: list[list[str | float | int]] = [
        [verdict["item"], verdict["score"], confidence[verdict["item"]], f"{weights[verdict['item']]:g}"]
        for verdict in best["verdicts"]
        if verdict["item"] in weights
    ]
    print(f"\nprompt: {' '.join(best['prompt'].split()):.90}\nresponse: {best['response']}")
    table(f"one response of the first step, in a group of {size}", ["item", "score", "confidence", "weight"], rows)
    rewards = [record["reward"] for record in group if record["reward"] is not None]
    print(f"reward = sum(weight x confidence x score) / sum(weight x confidence) = {best['reward']:.3f}")
    print(
        f"advantage = (reward - mean of the group) / std of the group = "
        f"({best['reward']:.3f} - {sum(rewards) / len(rewards):.3f}) / {_spread(group):.3f} = {best['advantage']:+.2f}"
    )


def confidences(group: Sequence[Record]) -> dict[str, float]:
    """The mean confidence in each item over a group's verdicts that are not missing."""
    by_item: dict[str, list[float]] = {}
    for record in group:
        for verdict in record["verdicts"]:
            if verdict["confidence"] is not None:
                by_item.setdefault(verdict["item"], []).append(verdict["confidence"])
    return {item: sum(values) / len(values) for item, values in by_item.items()}


def _spread(group: Sequence[Record]) -> float:
    """The standard deviation of the group's rewards, with Bessel's correction; 0 with fewer than two."""
    rewards = [record["reward"] for record in group if record["reward"] is not None]
    return stdev(rewards) if len(rewards) > 1 else 0.0
