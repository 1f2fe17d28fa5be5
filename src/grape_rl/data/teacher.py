"""Synthetic demonstrations for tasks that have only answers: a simulated teacher that makes mistakes."""

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from grape_rl.data.rows import Row


def synthesize_demonstrations(rows: Sequence[Row], wrong: float, styles: Mapping[str, float], seed: int) -> list[Row]:
    """The rows with a ``completion``: the row's ``answer`` in one of the ``styles``, sampled by their weights.

    A random fraction ``wrong`` of the completions gives the answer of a random question of the same task. A model that
    imitates this teacher perfectly is right as often as the teacher. A model that is rewarded for right answers can do
    better.

    Raises:
        ValueError: no style, a style without ``{answer}``, or a row without an answer.
    """
    if not styles:
        raise ValueError("data.teacher.styles is empty: give at least one style that a completion is written in")
    if invalid := [style for style in styles if "{answer}" not in style]:
        raise ValueError(f"data.teacher.styles: {invalid[0]!r} does not contain {{answer}}")
    for index, row in enumerate(rows):
        if row.get("answer") is None:
            raise ValueError(f"row {index} (task {row.get('task')!r}) has no single answer to demonstrate")
    random = Random(f"teacher {seed}")
    answers: dict[Any, list[str]] = {}
    for row in rows:
        answers.setdefault(row.get("task"), []).append(row["answer"])
    demonstrations: list[Row] = []
    for row in rows:
        style = random.choices(list(styles), weights=list(styles.values()))[0]
        mistaken = random.random() < wrong
        answer = random.choice(answers[row.get("task")]) if mistaken else row["answer"]
        demonstrations.append({**row, "completion": style.replace("{answer}", answer)})
    return demonstrations
