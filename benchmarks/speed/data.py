"""Data of the speed benchmarks: prompts of random text, and GSM8K solutions as demonstrations and preference pairs."""

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from grape_rl.data.order import rows_of_step

Row = dict[str, Any]
TRAIN = ("gsm8k_train.jsonl", "train.jsonl")
SOLUTIONS = ("gsm8k_model_solutions.jsonl", "example_model_solutions.jsonl")
"""File names of github.com/openai/grade-school-math; the second of each pair is the original name."""


def read(folder: Path, names: Sequence[str]) -> list[Row]:
    """Rows of the first of these files that exists in the folder.

    Raises:
        ValueError: none of the files exists.
    """
    for path in (folder / name for name in names):
        if path.is_file():
            return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    raise ValueError(
        f"{folder}: neither {' nor '.join(names)} exists; download the folder grade_school_math/data of "
        "github.com/openai/grade-school-math"
    )


def solved_texts(folder: Path) -> list[str]:
    """Questions and answers of GSM8K, the training text of the tokenizers."""
    return [row[key] for row in read(folder, TRAIN) for key in ("question", "answer")]


def demonstrations(folder: Path, count: int) -> list[Row]:
    """The first ``count`` questions with their answers."""
    return [{"prompt": row["question"] + "\n", "completion": row["answer"]} for row in read(folder, TRAIN)[:count]]


def pairs(folder: Path, count: int) -> list[Row]:
    """One pair, of a correct and a wrong model solution, for each of the first ``count`` questions that have both."""

    def all_pairs() -> Iterator[Row]:
        for row in read(folder, SOLUTIONS):
            solutions = [value for value in row.values() if isinstance(value, dict)]
            right = [solution["solution"] for solution in solutions if solution["is_correct"]]
            wrong = [solution["solution"] for solution in solutions if not solution["is_correct"]]
            if right and wrong:
                yield {"prompt": row["question"] + "\n", "chosen": right[0], "rejected": wrong[0]}

    return list(islice(all_pairs(), count))


def prompts(tokenizer: Any, tokens: int, count: int) -> list[Row]:
    """Prompts of random text, each of exactly ``tokens`` tokens even if its text is tokenized again."""
    random = Random(0)
    special = set(tokenizer.all_special_ids)
    words = [tokenizer.decode([i]) for i in range(min(len(tokenizer), 4000)) if i not in special]
    words = [word for word in words if word.isascii() and word.isprintable()]
    rows: list[Row] = []
    while len(rows) < count:
        ids = tokenizer("".join(random.choices(words, k=2 * tokens)))["input_ids"][:tokens]
        text = tokenizer.decode(ids)
        if len(ids) == tokens and tokenizer(text)["input_ids"] == ids:  # a truncated text may be tokenized differently
            rows.append({"prompt": text})
    return rows


def in_training_order(rows: Sequence[Row], per_step: int, seed: int) -> list[Row]:
    """Rows in the order in which a grape-rl run draws them, for a trainer that reads its file from top to bottom."""
    steps = len(rows) // per_step
    return [rows[i] for step in range(steps) for i in rows_of_step(len(rows), per_step, step, seed)]
