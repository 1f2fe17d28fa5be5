"""The data of the benchmarks of speed: prompts of random text, and GSM8K's solutions as demonstrations and pairs."""

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from grape_rl.data.order import rows_of_step

Row = dict[str, Any]
TRAIN = ("gsm8k_train.jsonl", "train.jsonl")
SOLUTIONS = ("gsm8k_model_solutions.jsonl", "example_model_solutions.jsonl")
"""Files of github.com/openai/grade-school-math, under either name; the second name is theirs."""


def read(folder: Path, names: Sequence[str]) -> list[Row]:
    """The rows of the first of these files that the folder has.

    Raises:
        ValueError: it has none of them.
    """
    for path in (folder / name for name in names):
        if path.is_file():
            return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    raise ValueError(
        f"{folder}: neither {' nor '.join(names)} is there; both are in github.com/openai/grade-school-math, "
        "grade_school_math/data"
    )


def solved_texts(folder: Path) -> list[str]:
    """GSM8K's questions and answers, which tokenizers are made from."""
    return [row[key] for row in read(folder, TRAIN) for key in ("question", "answer")]


def demonstrations(folder: Path, count: int) -> list[Row]:
    """The first questions with their answers."""
    return [{"prompt": row["question"] + "\n", "completion": row["answer"]} for row in read(folder, TRAIN)[:count]]


def pairs(folder: Path, count: int) -> list[Row]:
    """The first questions that a model answered rightly and another wrongly, with one of each."""

    def every() -> Any:
        for row in read(folder, SOLUTIONS):
            told = [each for each in row.values() if isinstance(each, dict)]
            right = [each["solution"] for each in told if each["is_correct"]]
            wrong = [each["solution"] for each in told if not each["is_correct"]]
            if right and wrong:
                yield {"prompt": row["question"] + "\n", "chosen": right[0], "rejected": wrong[0]}

    return list(islice(every(), count))


def prompts(tokenizer: Any, tokens: int, count: int) -> list[Row]:
    """Prompts of random text, each of exactly so many tokens however it is read."""
    random = Random(0)
    special = set(tokenizer.all_special_ids)
    words = [tokenizer.decode([i]) for i in range(min(len(tokenizer), 4000)) if i not in special]
    words = [word for word in words if word.isascii() and word.isprintable()]
    found: list[Row] = []
    while len(found) < count:
        ids = tokenizer("".join(random.choices(words, k=2 * tokens)))["input_ids"][:tokens]
        text = tokenizer.decode(ids)
        if len(ids) == tokens and tokenizer(text)["input_ids"] == ids:  # cut elsewhere, it might be read otherwise
            found.append({"prompt": text})
    return found


def as_drawn(rows: Sequence[Row], per_step: int, seed: int) -> list[Row]:
    """The rows in the order in which a run of ours draws them: for who takes them as they stand."""
    steps = len(rows) // per_step
    return [rows[i] for step in range(steps) for i in rows_of_step(len(rows), per_step, step, seed)]
