"""Stepwise supervision: a prompt, the steps of a solution, and a label for each step; as rows and as tokens."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Annotated, Any

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from grape_rl.data.chat import Tokenizer, TruncationStats, prompt_tokens
from grape_rl.data.chat_template import template_arguments, token_ids
from grape_rl.data.rows import Row
from grape_rl.data.unembedded_tokens import require_embeddings
from grape_rl.schema import did_you_mean
from grape_rl.types import Sequences


@dataclass(frozen=True)
class LabeledSolution:
    """A solution in tokens; ``label`` is 1 or 0 at the last token of each step used in training, and NaN elsewhere."""

    prompt: Int[Tensor, " p"]
    tokens: Int[Tensor, " t"]
    label: Float[Tensor, " t"]


def with_steps(
    rows: Sequence[Mapping[str, Any]], completions: str = "completions", labels: str = "labels", source: str = "data"
) -> list[Row]:
    """The rows with ``completions`` (the steps) and ``labels`` (a boolean per step) from the columns with these names.

    Other columns are kept. TRL's stepwise datasets load unchanged.

    Raises:
        ValueError: a column is missing, or is not a list of texts or of booleans; or their lengths differ.

    >>> with_steps([{"prompt": "1+1+1=", "completions": ["2+1=", "4"], "labels": [True, False]}])[0]["labels"]
    [True, False]
    """
    stepwise: list[Row] = []
    for index, row in enumerate(rows):
        where = f"{source}: row {index}"
        for column in (completions, labels):
            if column not in row:
                raise ValueError(
                    f"{where} has no column {column!r}: stepwise data needs the steps of a solution and a label for "
                    f"each; it has {', '.join(map(repr, row)) or 'none'}{did_you_mean(column, row)}"
                )
        steps, correct = row[completions], row[labels]
        if not isinstance(steps, list) or not steps or not all(isinstance(s, str) and s.strip() for s in steps):
            raise ValueError(
                f"{where}: {completions!r} must be a list of non-empty texts, one per step; got {steps!r:.80}"
            )
        if not isinstance(correct, list) or not all(isinstance(label, bool) for label in correct):
            raise ValueError(f"{where}: {labels!r} must be a list of true and false, one per step; got {correct!r:.80}")
        if len(steps) != len(correct):
            raise ValueError(
                f"{where}: {len(steps)} steps in {completions!r} but {len(correct)} labels in {labels!r}; give each "
                "step one label"
            )
        stepwise.append({**row, "completions": steps, "labels": correct})
    return stepwise


def step_tokens(
    tokenizer: Tokenizer, steps: Sequence[str], separator: str, where: str = "data"
) -> list[Int[Tensor, " _"]]:
    """The tokens of each step followed by the separator. Each step is tokenized alone, independent of later steps.

    Raises:
        ValueError: a step without tokens, or with a token that has no embedding in the model.
    """
    ids = [token_ids(tokenizer, step + separator) for step in steps]
    if empty := [step for step, tokens in zip(steps, ids, strict=True) if not tokens]:
        raise ValueError(f"{where}: the step {empty[0] + separator!r} has no tokens")
    return [torch.tensor(require_embeddings(tokenizer, tokens, where), dtype=torch.int64) for tokens in ids]


def tokenize_solutions(
    rows: Sequence[Mapping[str, Any]],
    tokenizer: Tokenizer,
    max_length: int,
    source: str,
    separator: Annotated[str, Field(min_length=1)] = "\n",
    train_on_last_step_only: bool = False,
) -> tuple[list[LabeledSolution], TruncationStats]:
    """The rows' solutions in tokens; ``separator`` ends every step, and its last token carries the step's label.

    No end token follows: it would mark solutions that were cut off at their first mistake. Steps that exceed
    ``max_length`` with the prompt and all earlier steps are dropped. A row is dropped if no label is left. With
    ``train_on_last_step_only``, only the last step has a label.

    Raises:
        ValueError: no row has a labeled step that fits; and as ``prompt_tokens``, naming the row.
    """
    solutions: list[LabeledSolution] = []
    truncated = 0
    for index, row in enumerate(rows):
        where = f"{source}: row {index}"
        # Tokens, with each step's label at its last token.
        prompt = prompt_tokens(tokenizer, row["prompt"], where, template_arguments(row, where))
        steps = step_tokens(tokenizer, row["completions"], separator, where)
        ends = torch.tensor([len(step) for step in steps]).cumsum(0)
        tokens = torch.cat(steps)
        label = torch.full((len(tokens),), math.nan)
        label[ends - 1] = torch.tensor(row["labels"], dtype=label.dtype)
        if train_on_last_step_only:
            label[:-1] = math.nan
        # Only whole steps within max_length.
        fits = ends[ends + len(prompt) <= max_length]
        width = int(fits[-1]) if len(fits) else 0
        truncated += 0 < width < len(tokens)
        if not label[:width].isnan().all():
            solutions.append(LabeledSolution(prompt, tokens[:width].clone(), label[:width].clone()))
    if not solutions:
        raise ValueError(
            f"{source}: none of the {len(rows)} solutions has a labeled step within the {max_length} tokens of "
            "max_length; raise it"
        )
    tokens = sum(len(solution.tokens) for solution in solutions)
    return solutions, TruncationStats(len(rows), truncated, len(rows) - len(solutions), tokens)


def collate_solutions(solutions: Sequence[LabeledSolution]) -> tuple[Sequences, Float[Tensor, "b t"]]:
    """The solutions as one batch, padded on the right with 0 (masked), and their labels, NaN where there is none.

    Raises:
        ValueError: there are no solutions.
    """
    if not solutions:
        raise ValueError("no solutions to collate")
    sequences = Sequences(
        prompts=tuple(solution.prompt for solution in solutions),
        tokens=pad_sequence([solution.tokens for solution in solutions], batch_first=True),
        mask=pad_sequence([torch.ones_like(s.tokens, dtype=torch.bool) for s in solutions], batch_first=True),
        group=torch.arange(len(solutions)),
    )
    return sequences, pad_sequence([s.label for s in solutions], batch_first=True, padding_value=math.nan)


def response_steps(text: str, separator: str) -> list[str]:
    """The non-blank steps of a response, split at the separator. A blank response is one empty step.

    >>> response_steps("2+1=\\n\\n3", "\\n")
    ['2+1=', '3']
    """
    return [step for step in text.split(separator) if step.strip()] or [""]


def synthesize_steps(rows: Sequence[Row], wrong: float, seed: int) -> list[Row]:
    """The rows with ``completions`` and ``labels`` from the ``answer``: one step per number, or per letter.

    A random fraction ``wrong`` of the solutions switches to another answer of the same task at a random step. A step
    is right as long as the steps so far are the beginning of the right answer.

    Raises:
        ValueError: a row without an answer, or a task whose rows all have the same answer.
    """
    random = Random(f"steps {seed}")
    answers: dict[Any, list[list[str]]] = {}
    for index, row in enumerate(rows):
        if row.get("answer") is None:
            raise ValueError(f"row {index} (task {row.get('task')!r}) has no single answer to write step by step")
        answers.setdefault(row.get("task"), []).append(_answer_steps(row["answer"]))
    for task, solutions in answers.items():
        if wrong > 0 and all(solution == solutions[0] for solution in solutions):
            raise ValueError(f"task {task!r}: all of its rows have the same answer, so there is no wrong answer")
    stepwise: list[Row] = []
    for row in rows:
        right = steps = _answer_steps(row["answer"])
        if random.random() < wrong:
            while steps == right:
                other = random.choice(answers[row.get("task")])
                position = random.randrange(min(len(other), len(right)))
                steps = [*right[:position], *other[position:]]
        labels = [steps[: i + 1] == right[: i + 1] for i in range(len(steps))]
        stepwise.append({**row, "completions": steps, "labels": labels})
    return stepwise


def _answer_steps(answer: str) -> list[str]:
    """The answer split after each number and each letter.

    >>> _answer_steps("sun"), _answer_steps("['4.0', '12']")
    (['s', 'u', 'n'], ["['4.0", "', '12']"])
    """
    pieces = re.findall(r"\W*(?:\d[\d.]*|\w)", answer)
    return [*pieces[:-1], pieces[-1] + answer[len("".join(pieces)) :]] if pieces else [answer]
