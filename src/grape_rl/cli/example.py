"""One graded response of a run, item by item: from scores and confidences to the reward and the advantage."""

import json
from collections.abc import Mapping, Sequence
from statistics import mean, pstdev, stdev
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grape_rl.run import Run

Record = Mapping[str, Any]


def print_graded_example(run: "Run") -> None:
    """Print a response of the first step, if the rewards of its group depend on a critic's confidence."""
    from grape_rl.reward.rubric import load_rubric
    from grape_rl.training.display import table

    # Among the groups with an unsure critic and no missing verdict, the response whose scores differ most.
    file = min((run.folder / "rollouts").glob("step-*.jsonl"))
    records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    size = run.config.group_size
    groups = [records[start : start + size] for start in range(0, len(records), size)]
    groups = [group for group in groups if _complete(group) and min(confidences(group).values()) < 1]
    if not groups or not run.config.reward.rubric:
        return
    group, shown = max(
        ((group, record) for group in groups for record in group),
        key=lambda pair: (pstdev(verdict["score"] for verdict in pair[1]["verdicts"]), stdev(rewards(pair[0]))),
    )

    # Its items: the score, the group's mean confidence, the weight, and the product.
    rubric = load_rubric(run.config.reward.rubric, run.config.reward.allow)
    weights = {item.id: item.weight for item in rubric.categories[shown["category"]].rewarded}
    confidence = confidences(group)
    rows: list[list[str | float | int]] = [
        [verdict["item"], verdict["score"], confidence[verdict["item"]], f"{weights[verdict['item']]:g}"]
        for verdict in shown["verdicts"]
        if verdict["item"] in weights
    ]
    print(f"\nprompt: {' '.join(shown['prompt'].split()):.90}\nresponse: {shown['response']}")
    table(f"one response of the first step, in a group of {size}", ["item", "score", "confidence", "weight"], rows)
    print(f"reward = sum(weight x confidence x score) / sum(|weight| x confidence) = {shown['reward']:.3f}")
    print(
        f"advantage = (reward - mean of the group) / std of the group = ({shown['reward']:.4f} - "
        f"{mean(rewards(group)):.4f}) / {stdev(rewards(group)):.4f} = {shown['advantage']:+.2f}"
    )


def confidences(group: Sequence[Record]) -> dict[str, float]:
    """The mean confidence in each item over the group's verdicts."""
    by_item: dict[str, list[float]] = {}
    for verdict in (verdict for record in group for verdict in record["verdicts"]):
        by_item.setdefault(verdict["item"], []).append(verdict["confidence"])
    return {item: mean(values) for item, values in by_item.items()}


def rewards(group: Sequence[Record]) -> list[float]:
    """The reward of each response of the group."""
    return [record["reward"] for record in group]


def _complete(group: Sequence[Record]) -> bool:
    """True if no reward and no verdict of the group is missing, and two or more rewards differ."""
    numbers = [number for record in group for number in (record["reward"], *(v["score"] for v in record["verdicts"]))]
    return None not in numbers and len(set(rewards(group))) > 1
