"""Demonstrations for tasks that have only answers, written by a teacher who makes mistakes."""

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

Row = dict[str, Any]


def synthesize_demonstrations(rows: Sequence[Row], wrong: float, styles: Mapping[str, float], seed: int) -> list[Row]:
    """The rows with a ``completion``: the row's ``answer`` in one of the ``styles``, drawn by their weights.

    A share ``wrong`` of them, drawn at random, gives the answer of another question of the same task instead. A model
    that imitates this teacher is at best as often right as the teacher; one that is rewarded for being right can be
    better.

    Raises:
        ValueError: no style, a style without ``{answer}``, or a row without an answer.
    """
    if not styles:
        raise ValueError("data.teacher.styles is empty: at least one style must say how a completion is written")
    if bad := [style for style in styles if "{answer}" not in style]:
        raise ValueError(f"data.teacher.styles: {bad[0]!r} has no {{answer}} in it")
    for index, row in enumerate(rows):
        if row.get("answer") is None:
            raise ValueError(f"row {index} (task {row.get('task')!r}) has no single answer to demonstrate")
    random = Random(f"teacher {seed}")
    answers: dict[Any, list[str]] = {}
    for row in rows:
        answers.setdefault(row.get("task"), []).append(row["answer"])
    taught: list[Row] = []
    for row in rows:
        style = random.choices(list(styles), weights=list(styles.values()))[0]
        mistaken = random.random() < wrong
        answer = random.choice(answers[row.get("task")]) if mistaken else row["answer"]
        taught.append({**row, "completion": style.replace("{answer}", answer)})
    return taught
