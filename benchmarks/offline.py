"""Every method of pairs, on GSM8K: a right solution over a wrong one of the same question, of four models' solutions.

All start from one model, built from random weights and taught by SFT on right solutions to the training questions. The
held-out pairs are of other questions. Each run sees ``STEPS`` times ``PAIRS`` pairs, in an order that its seed draws.
"""

import json
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from grape_rl import ALGORITHMS, train
from grape_rl.config.files import merge
from grape_rl.data.preferences import Pair, collate_pairs, tokenize_pairs
from grape_rl.model.forward import ForwardContext
from grape_rl.model.load import load
from grape_rl.setup.policy import make_policy
from grape_rl.sources.preferences import Preferences
from grape_rl.training.pairs import pair_logprobs
from grape_rl.validation import load_config
from measured import Record, append, key, records, where
from online import quiet

MODELS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
"""Whose solutions the file has, from the least often right to the most often."""
HELD_OUT, OF_EACH = 180, 2
"""Questions with pairs, of which none is trained on, and the most pairs of one of them that a policy is tried on."""
STEPS, PAIRS, RATE = 30, 16, 3e-4
CONTEXT = 512
SCRATCH = {"tokenizer": "bpe", "vocabulary": 1024, "hidden": 96, "layers": 3, "heads": 4, "context": CONTEXT}
SMALL = {"sft": {"steps": 2, "prompts_per_step": 2}, "offline": {"steps": 1, "prompts_per_step": 2}}
"""What makes a run of seconds, to see that it works."""

Row = dict[str, Any]


def pair_methods() -> list[str]:
    """The rows of the table that learn from pairs of data."""
    return [name for name, row in ALGORITHMS.items() if row.source == Preferences()]


def solutions(row: Mapping[str, Any], right: bool) -> list[tuple[str, str]]:
    """The question's solutions that are right, or wrong, each with its model; none twice."""
    found = {row[model]["solution"].strip(): model for model in MODELS if row[model]["is_correct"] is right}
    return [(text, model) for text, model in found.items() if text]


def preference_rows(rows: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Each question's right solutions over each of its wrong ones, with the models that wrote them.

    The rewards are 1 and 0, for the methods that read some.
    """
    return [
        {
            "prompt": row["question"].strip() + "\n",
            "chosen": good,
            "rejected": bad,
            "chosen_reward": 1.0,
            "rejected_reward": 0.0,
            "models": [of_good, of_bad],
        }
        for row in rows
        for good, of_good in solutions(row, True)
        for bad, of_bad in solutions(row, False)
        if good != bad
    ]


def few(rows: list[Row], order: Random) -> list[Row]:
    """``OF_EACH`` of the rows by chance, or all if they are fewer."""
    return order.sample(rows, min(OF_EACH, len(rows)))


def split(rows: Sequence[Mapping[str, Any]], held_out: int) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """The questions to train on, and ``held_out`` of those that make pairs; the same ones every time.

    Raises:
        ValueError: no question is left that makes pairs to train on.
    """
    order = list(rows)
    Random(0).shuffle(order)
    telling = [row for row in order if preference_rows([row])]
    if len(telling) <= held_out:
        raise ValueError(f"{len(telling)} questions have a right and a wrong solution; {held_out} are to be held out")
    test = telling[:held_out]
    return [row for row in order if row not in test], test


def baselines(rows: Sequence[Row]) -> dict[str, float]:
    """How often a rule without a model prefers the chosen response, a tie counting half.

    ``shorter`` in characters, and ``better_model``: the one of the model that is right more often.
    """

    def share(scores: Sequence[float]) -> float:
        return math.fsum(0.5 * (math.copysign(1, s) if s else 0) + 0.5 for s in scores) / len(scores)

    return {
        "shorter": share([len(row["rejected"]) - len(row["chosen"]) for row in rows]),
        "better_model": share([MODELS.index(row["models"][0]) - MODELS.index(row["models"][1]) for row in rows]),
    }


@dataclass(frozen=True)
class Bench:
    """The file of solutions, where runs lie, where results go, and whether they are only to see that all works."""

    data: Path
    folder: Path
    results: Path
    small: bool = False


def prepared(bench: Bench) -> tuple[Path, Path, Path]:
    """The start model, and the files of training and held-out pairs; made where they are not there yet.

    Raises:
        ValueError: no such file, or not one of questions with the four models' solutions.
    """
    if not bench.data.is_file():
        raise ValueError(f"{bench.data}: no such file; it should be OpenAI's example_model_solutions.jsonl")
    rows = [json.loads(line) for line in bench.data.read_text(encoding="utf-8").splitlines()]
    if missing := [name for name in ("question", *MODELS) if name not in rows[0]]:
        raise ValueError(f"{bench.data}: its rows have no {', '.join(missing)}")
    train_rows, test_rows = split(rows, 2 if bench.small else HELD_OUT)
    texts = [
        {"prompt": row["question"].strip() + "\n", "completion": text}
        for row in train_rows
        for text, _ in solutions(row, True)
    ]
    home = bench.folder / "offline"
    home.mkdir(parents=True, exist_ok=True)
    some = Random(0)
    test = [row for each in test_rows for row in few(preference_rows([each]), some)]
    files = {"sft": texts, "train": preference_rows(train_rows), "test": test}
    for name, made in files.items():
        (home / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
    model = home / "start" / "checkpoints" / "last"
    if not model.exists():
        shutil.rmtree(home / "start", ignore_errors=True)
        settings: dict[str, Any] = {
            "method": "sft",
            "model": {"scratch": SCRATCH},
            "data": {"source": str(home / "sft.jsonl"), "max_length": CONTEXT},
            "steps": 200,
            "prompts_per_step": 16,
            "optimizer": {"learning_rate": 3e-3, "warmup": 20, "schedule": "linear", "weight_decay": 0.1},
            "checkpoint_every": 0,
            "output": str(home / "start"),
            "device": "cpu",
        }
        with quiet():
            train(load_config(merge(settings, SMALL["sft"] if bench.small else {})))
    return model, home / "train.jsonl", home / "test.jsonl"


def run_method(bench: Bench, seeds: list[int], method: str) -> None:
    """Run what is not in the results yet: the method with each seed."""
    torch.set_num_threads(1)  # these models are too small for more
    for seed in seeds:
        run = {"method": method, "seed": seed, "set": {"optimizer": {"learning_rate": RATE}}}
        if key(run) in map(key, records(bench.results)):
            continue
        home = bench.folder / f"{method}-{seed}-{time.time_ns()}"
        try:
            with quiet():
                record = run | measured(bench, method, seed, home) | {"where": where()}
        except RuntimeError as error:  # a gradient that is not finite is a result too
            record = run | {"failed": str(error), "where": where()}
        finally:
            shutil.rmtree(home, ignore_errors=True)
        append(bench.results, record)
        print(f"{method}, seed {seed}: {record.get('failed') or record['held_out']}", flush=True)


def measured(bench: Bench, method: str, seed: int, home: Path) -> Record:
    """Train by a method, and say how the start and the trained policy stand to the held-out pairs."""
    model, train_file, test_file = prepared(bench)
    settings: dict[str, Any] = {
        "method": method,
        "model": {"name": str(model)},
        "data": {"source": str(train_file), "max_length": CONTEXT},
        "steps": STEPS,
        "prompts_per_step": PAIRS,
        "optimizer": {"learning_rate": RATE, "warmup": 5, "schedule": "linear"},
        "checkpoint_every": 0,
        "seed": seed,
        "output": str(home),
        "device": "cpu",
    }
    began = time.process_time()
    run = train(load_config(merge(settings, SMALL["offline"] if bench.small else {})))
    seconds = time.process_time() - began
    rows = [json.loads(line) for line in test_file.read_text(encoding="utf-8").splitlines()]
    names = ("loss", "accuracy", "margin", "grad_norm", "entropy", "tokens")
    curve = {name: [told.get(name, math.nan) for told in run.metrics] for name in names}
    held_out = standing(str(run.model), str(model), rows)
    return {"curve": curve, "held_out": held_out, "baselines": baselines(rows), "seconds": seconds}


def standing(model: str, start: str, rows: Sequence[Row]) -> dict[str, float]:
    """How a policy stands to pairs, beside the one that it started from; a tie counts half.

    ``accuracy``: how often the chosen response has gained more log-probability than the rejected one, with its standard
    error, for which pairs of one question are no independent ones; and the same where the chosen response is of the
    model that is right more often, and where the rejected one is: they tell what was learned of who is right from what
    was learned of what is. ``likelier``, and
    ``likelier_per_token``: how often it has more of it, before and after. ``chosen`` and ``rejected``: the mean change
    of their log-probabilities, in nats a response.
    """
    found, chosen, rejected = summed(model, tuple(map(json.dumps, rows)))
    _, was_chosen, was_rejected = summed(start, tuple(map(json.dumps, rows)))
    length = torch.tensor([[len(pair.chosen), len(pair.rejected)] for pair in found])
    better = torch.tensor([MODELS.index(row["models"][0]) - MODELS.index(row["models"][1]) for row in rows])
    gained = ((chosen - was_chosen) - (rejected - was_rejected)).sign() / 2 + 0.5
    return {
        "pairs": len(found),
        "accuracy": float(gained.mean()),
        "accuracy_error": clustered_error(gained.tolist(), [row["prompt"] for row in rows]),
        "accuracy_better_chosen": float(gained[better > 0].mean()),
        "accuracy_better_rejected": float(gained[better < 0].mean()),
        "likelier_before": wins(was_chosen, was_rejected),
        "likelier": wins(chosen, rejected),
        "likelier_per_token_before": wins(was_chosen / length[:, 0], was_rejected / length[:, 1]),
        "likelier_per_token": wins(chosen / length[:, 0], rejected / length[:, 1]),
        "chosen": float((chosen - was_chosen).mean()),
        "rejected": float((rejected - was_rejected).mean()),
    }


@cache  # for the start, which every run asks for
def summed(model: str, rows: tuple[str, ...]) -> tuple[list[Pair], Float[Tensor, " p"], Float[Tensor, " p"]]:
    """The pairs in tokens, and the log-probability of each one's chosen response, and of its rejected one."""
    at = make_policy(*load(model, torch.device("cpu")))
    columns = ("chosen_reward", "rejected_reward")
    found, _ = tokenize_pairs(
        list(map(json.loads, rows)), at.tokenizer, at.end_tokens, min(CONTEXT, at.context), columns, "held out"
    )
    sequences = collate_pairs(found)
    chosen, rejected = (
        pair_logprobs(at.model, sequences, ForwardContext(8192)).masked_fill(~sequences.mask, 0).sum(dim=1).chunk(2)
    )
    return found, chosen, rejected


def wins(one: Float[Tensor, " p"], other: Float[Tensor, " p"]) -> float:
    """How often the one is larger, a tie counting half."""
    return float(((one - other).sign() + 1).mean() / 2)


def clustered_error(values: Sequence[float], cluster: Sequence[str]) -> float:
    """The standard error of the mean of values of which those of one cluster may go together.

    >>> clustered_error([1.0, 1.0, 0.0, 0.0], ["a", "a", "b", "b"]) == clustered_error([1.0, 0.0], ["a", "b"])
    True
    """
    mean = math.fsum(values) / len(values)
    sums: dict[str, float] = {}
    for value, each in zip(values, cluster, strict=True):
        sums[each] = sums.get(each, 0.0) + value - mean
    return math.sqrt(math.fsum(each * each for each in sums.values())) / len(values)
