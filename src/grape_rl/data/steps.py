"""Stepwise data: a prompt, the steps of a solution, and for each whether it is right; as text and as tokens."""

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
from grape_rl.data.unembedded_tokens import require_embeddings
from grape_rl.schema import did_you_mean
from grape_rl.types import Sequences

Row = dict[str, Any]


@dataclass(frozen=True)
class LabeledSolution:
    """A solution in tokens; ``label`` is 1 or 0 at the last token of each step that is learned from, else NaN."""

    prompt: Int[Tensor, " p"]
    tokens: Int[Tensor, " t"]
    label: Float[Tensor, " t"]


def with_steps(
    rows: Sequence[Mapping[str, Any]], completions: str = "completions", labels: str = "labels", source: str = "data"
) -> list[Row]:
    """The rows with ``completions`` (their steps, texts) and ``labels`` (a boolean each) made of the columns so named.

    TRL's stepwise datasets load unchanged.

    Raises:
        ValueError: a column is missing, is no list of texts or of booleans, or the two differ in number.

    >>> with_steps([{"prompt": "1+1+1=", "completions": ["2+1=", "4"], "labels": [True, False]}])[0]["labels"]
    [True, False]
    """
    made: list[Row] = []
    for index, row in enumerate(rows):
        where = f"{source}: row {index}"
        for column in (completions, labels):
            if column not in row:
                raise ValueError(
                    f"{where} has no column {column!r}: stepwise data needs the steps of a solution and a label for "
                    f"each; it has {', '.join(map(repr, row)) or 'none'}{did_you_mean(column, row)}"
                )
        steps, right = row[completions], row[labels]
        if not isinstance(steps, list) or not steps or not all(isinstance(s, str) and s.strip() for s in steps):
            raise ValueError(f"{where}: {completions!r} must be a list of steps, each a text; got {steps!r:.80}")
        if not isinstance(right, list) or not all(isinstance(each, bool) for each in right):
            raise ValueError(f"{where}: {labels!r} must be a list of true and false, one a step; got {right!r:.80}")
        if len(steps) != len(right):
            raise ValueError(
                f"{where}: {len(steps)} steps in {completions!r} and {len(right)} labels in {labels!r}: each step "
                "needs one label"
            )
        made.append({**row, "completions": steps, "labels": right})
    return made


def step_tokens(
    tokenizer: Tokenizer, steps: Sequence[str], separator: str, where: str = "data"
) -> list[Int[Tensor, " _"]]:
    """The tokens of each step with the separator that ends it, each step by itself: no later step changes its tokens.

    Raises:
        ValueError: a step of no tokens, or with one that the model has no embedding for.
    """
    told = [tokenizer(step + separator, add_special_tokens=False)["input_ids"] for step in steps]
    if empty := [step for step, ids in zip(steps, told, strict=True) if not ids]:
        raise ValueError(f"{where}: the step {empty[0] + separator!r} has no tokens")
    return [torch.tensor(require_embeddings(tokenizer, ids, where), dtype=torch.int64) for ids in told]


def tokenize_solutions(
    rows: Sequence[Mapping[str, Any]],
    tokenizer: Tokenizer,
    max_length: int,
    source: str,
    separator: Annotated[str, Field(min_length=1)] = "\n",
    train_on_last_step_only: bool = False,
) -> tuple[list[LabeledSolution], TruncationStats]:
    """The rows' solutions as tokens, every step ended by ``separator``, its label at the separator's last token.

    No end token follows: a solution that its author broke off at the first mistake would be known by it. Steps that do
    not fit into ``max_length`` with the prompt and all before them are left out, and rows of which no label is left.
    With ``train_on_last_step_only`` the last step alone has a label.

    Raises:
        ValueError: no row has a step that fits, and as ``prompt_tokens``, naming the row.
    """
    kept: list[LabeledSolution] = []
    truncated = 0
    for index, row in enumerate(rows):
        where = f"{source}: row {index}"
        prompt = prompt_tokens(tokenizer, row["prompt"], where)
        steps = step_tokens(tokenizer, row["completions"], separator, where)
        ends = torch.tensor([len(step) for step in steps]).cumsum(0)
        tokens = torch.cat(steps)
        label = torch.full((len(tokens),), math.nan)
        label[ends - 1] = torch.tensor(row["labels"], dtype=label.dtype)
        if train_on_last_step_only:
            label[:-1] = math.nan
        fits = ends[ends + len(prompt) <= max_length]
        width = int(fits[-1]) if len(fits) else 0
        truncated += 0 < width < len(tokens)
        if not label[:width].isnan().all():
            kept.append(LabeledSolution(prompt, tokens[:width].clone(), label[:width].clone()))
    if not kept:
        raise ValueError(
            f"{source}: none of the {len(rows)} solutions has a labeled step within the {max_length} tokens of "
            "max_length; raise it"
        )
    return kept, TruncationStats(len(rows), truncated, len(rows) - len(kept), sum(len(each.tokens) for each in kept))


def collate_solutions(found: Sequence[LabeledSolution]) -> tuple[Sequences, Float[Tensor, "b t"]]:
    """The solutions as one batch, padded on the right with 0 (masked), and their labels, NaN where there is none.

    Raises:
        ValueError: there are no solutions.
    """
    if not found:
        raise ValueError("no solutions to stack")
    tokens = [each.tokens for each in found]
    mask = pad_sequence([torch.ones_like(each, dtype=torch.bool) for each in tokens], batch_first=True)
    prompts = tuple(each.prompt for each in found)
    sequences = Sequences(prompts, pad_sequence(tokens, batch_first=True), mask, torch.arange(len(found)))
    return sequences, pad_sequence([each.label for each in found], batch_first=True, padding_value=math.nan)


def response_steps(text: str, separator: str) -> list[str]:
    """The steps of a response: what stands between separators, without what is blank. One empty step if all is.

    >>> response_steps("2+1=\\n\\n3", "\\n")
    ['2+1=', '3']
    """
    return [step for step in text.split(separator) if step.strip()] or [""]


def synthesize_steps(rows: Sequence[Row], wrong: float, seed: int) -> list[Row]:
    """The rows with ``completions`` and ``labels``: the row's ``answer`` number by number, or letter by letter.

    A share ``wrong`` of them, drawn at random, goes over to another answer of the same task somewhere. A step is right
    as long as what is written so far is how the right answer begins.

    Raises:
        ValueError: a row without an answer, or a task whose rows all have the same one.
    """
    random = Random(f"steps {seed}")
    answers: dict[Any, list[list[str]]] = {}
    for index, row in enumerate(rows):
        if row.get("answer") is None:
            raise ValueError(f"row {index} (task {row.get('task')!r}) has no single answer to write step by step")
        answers.setdefault(row.get("task"), []).append(_pieces(row["answer"]))
    for task, found in answers.items():
        if wrong > 0 and all(each == found[0] for each in found):
            raise ValueError(f"task {task!r}: all of its rows have the same answer: none is a wrong one")
    made: list[Row] = []
    for row in rows:
        right = steps = _pieces(row["answer"])
        if random.random() < wrong:
            while steps == right:
                other = random.choice(answers[row.get("task")])
                at = random.randrange(min(len(other), len(right)))
                steps = [*right[:at], *other[at:]]
        labels = [steps[: i + 1] == right[: i + 1] for i in range(len(steps))]
        made.append({**row, "completions": steps, "labels": labels})
    return made


def _pieces(answer: str) -> list[str]:
    """The answer cut behind each number and each letter.

    >>> _pieces("sun"), _pieces("['4.0', '12']")
    (['s', 'u', 'n'], ["['4.0", "', '12']"])
    """
    found = re.findall(r"\W*(?:\d[\d.]*|\w)", answer)
    return [*found[:-1], found[-1] + answer[len("".join(found)) :]] if found else [answer]
