"""Benchmark of the methods that learn from preference pairs, on GSM8K.

A pair is a correct and a wrong solution to one question, from the solutions of four models. All methods start from one
model: random weights, then SFT on correct solutions to the training questions. Held-out pairs are of other questions.
Each run has ``STEPS`` steps of ``PAIRS`` pairs, in an order drawn by its seed.
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
from online import quiet
from result_file import Record, append_record, environment, read_records, run_key

MODELS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
"""The models whose solutions the file contains, from the least to the most accurate."""
HELD_OUT, PAIRS_PER_QUESTION = 180, 2
"""Number of held-out questions, and maximum number of held-out pairs of a question."""
STEPS, PAIRS, RATE = 30, 16, 3e-4
CONTEXT = 512
SCRATCH = {"tokenizer": "bpe", "vocabulary": 1024, "hidden": 96, "layers": 3, "heads": 4, "context": CONTEXT}
SMALL = {"sft": {"steps": 2, "prompts_per_step": 2}, "offline": {"steps": 1, "prompts_per_step": 2}}
"""Settings of a smoke test."""

Row = dict[str, Any]


def pair_methods() -> list[str]:
    """Names of the methods that learn from preference pairs in data."""
    return [name for name, method in ALGORITHMS.items() if method.source == Preferences()]


def solutions(row: Mapping[str, Any], right: bool) -> list[tuple[str, str]]:
    """Distinct correct (or wrong) solutions to a question, each with its model."""
    by_text = {row[model]["solution"].strip(): model for model in MODELS if row[model]["is_correct"] is right}
    return [(text, model) for text, model in by_text.items() if text]


def preference_rows(rows: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Pairs of every correct with every wrong solution to each question, and the models that wrote them.

    The rewards are 1 and 0, for the methods that read rewards.
    """
    return [
        {
            "prompt": row["question"].strip() + "\n",
            "chosen": good,
            "rejected": bad,
            "chosen_reward": 1.0,
            "rejected_reward": 0.0,
            "models": [good_model, bad_model],
        }
        for row in rows
        for good, good_model in solutions(row, True)
        for bad, bad_model in solutions(row, False)
        if good != bad
    ]


def subsample(rows: list[Row], random: Random) -> list[Row]:
    """Random ``PAIRS_PER_QUESTION`` of the rows, or all if there are fewer."""
    return random.sample(rows, min(PAIRS_PER_QUESTION, len(rows)))


def split(rows: Sequence[Mapping[str, Any]], held_out: int) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """Training questions, and ``held_out`` held-out questions that have pairs; a fixed split.

    Raises:
        ValueError: no question with pairs remains for training.
    """
    order = list(rows)
    Random(0).shuffle(order)
    with_pairs = [row for row in order if preference_rows([row])]
    if len(with_pairs) <= held_out:
        raise ValueError(
            f"{len(with_pairs)} questions have a correct and a wrong solution; more than {held_out} are required"
        )
    test = with_pairs[:held_out]
    return [row for row in order if row not in test], test


def baselines(rows: Sequence[Row]) -> dict[str, float]:
    """Accuracy of two rules without a policy; a tie counts half.

    ``shorter`` prefers the response with fewer characters, ``better_model`` the response of the more accurate model.
    """

    def share(scores: Sequence[float]) -> float:
        return math.fsum(0.5 * (math.copysign(1, s) if s else 0) + 0.5 for s in scores) / len(scores)

    return {
        "shorter": share([len(row["rejected"]) - len(row["chosen"]) for row in rows]),
        "better_model": share([MODELS.index(row["models"][0]) - MODELS.index(row["models"][1]) for row in rows]),
    }


@dataclass(frozen=True)
class PairWorkspace:
    """File of solutions, folder for runs in progress, result file, and True for a smoke test."""

    data: Path
    folder: Path
    results: Path
    small: bool = False


def prepared(workspace: PairWorkspace) -> tuple[Path, Path, Path]:
    """Initial model, and files of training and held-out pairs; creates the ones that do not exist.

    Raises:
        ValueError: the data file does not exist, or lacks the questions or the solutions of the four models.
    """
    data = workspace.data
    if not data.is_file():
        raise ValueError(f"{data}: no such file; it should be OpenAI's example_model_solutions.jsonl")
    rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    if missing := [name for name in ("question", *MODELS) if name not in rows[0]]:
        raise ValueError(f"{data}: its rows have no {', '.join(missing)}")
    train_rows, test_rows = split(rows, 2 if workspace.small else HELD_OUT)
    texts = [
        {"prompt": row["question"].strip() + "\n", "completion": text}
        for row in train_rows
        for text, _ in solutions(row, True)
    ]
    home = workspace.folder / "offline"
    home.mkdir(parents=True, exist_ok=True)
    random = Random(0)
    test = [pair for row in test_rows for pair in subsample(preference_rows([row]), random)]
    files = {"sft": texts, "train": preference_rows(train_rows), "test": test}
    for name, content in files.items():
        (home / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
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
            train(load_config(merge(settings, SMALL["sft"] if workspace.small else {})))
    return model, home / "train.jsonl", home / "test.jsonl"


def run_method(workspace: PairWorkspace, seeds: list[int], method: str) -> None:
    """Run the method with each seed; skips recorded runs."""
    torch.set_num_threads(1)  # these models are too small for more
    for seed in seeds:
        run = {"method": method, "seed": seed, "set": {"optimizer": {"learning_rate": RATE}}}
        if run_key(run) in map(run_key, read_records(workspace.results)):
            continue
        home = workspace.folder / f"{method}-{seed}-{time.time_ns()}"
        try:
            with quiet():
                record = run | measured(workspace, method, seed, home) | {"where": environment()}
        except RuntimeError as error:  # a non-finite gradient is a result too
            record = run | {"failed": str(error), "where": environment()}
        finally:
            shutil.rmtree(home, ignore_errors=True)
        append_record(workspace.results, record)
        print(f"{method}, seed {seed}: {record.get('failed') or record['held_out']}", flush=True)


def measured(workspace: PairWorkspace, method: str, seed: int, home: Path) -> Record:
    """Train with a method, and return its curves and the evaluation on held-out pairs."""
    model, train_file, test_file = prepared(workspace)
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
    run = train(load_config(merge(settings, SMALL["offline"] if workspace.small else {})))
    seconds = time.process_time() - began
    rows = [json.loads(line) for line in test_file.read_text(encoding="utf-8").splitlines()]
    names = ("loss", "accuracy", "margin", "grad_norm", "entropy", "tokens")
    curve = {name: [metrics.get(name, math.nan) for metrics in run.metrics] for name in names}
    held_out = evaluated(str(run.model), str(model), rows)
    return {"curve": curve, "held_out": held_out, "baselines": baselines(rows), "seconds": seconds}


def evaluated(model: str, initial: str, rows: Sequence[Row]) -> dict[str, float]:
    """Evaluation of a trained policy and of the initial one on pairs; a tie counts half.

    ``accuracy`` is the share of pairs whose chosen response gained more log-probability than the rejected one, and
    ``accuracy_error`` its standard error, clustered by question. ``accuracy_better_chosen`` is over the pairs whose
    chosen response is from the more accurate model, ``accuracy_better_rejected`` over those whose rejected response is:
    the two separate preferring a model from preferring correct solutions.

    ``likelier`` is the share of pairs whose chosen response has the higher log-probability, in sum or per token, after
    training and before. ``chosen`` and ``rejected`` are the mean changes of log-probability, in nats per response.
    """
    examples, chosen, rejected = pair_logp(model, tuple(map(json.dumps, rows)))
    _, chosen_before, rejected_before = pair_logp(initial, tuple(map(json.dumps, rows)))
    length = torch.tensor([[len(pair.chosen), len(pair.rejected)] for pair in examples])
    better = torch.tensor([MODELS.index(row["models"][0]) - MODELS.index(row["models"][1]) for row in rows])
    gained = ((chosen - chosen_before) - (rejected - rejected_before)).sign() / 2 + 0.5
    return {
        "pairs": len(examples),
        "accuracy": float(gained.mean()),
        "accuracy_error": clustered_error(gained.tolist(), [row["prompt"] for row in rows]),
        "accuracy_better_chosen": float(gained[better > 0].mean()),
        "accuracy_better_rejected": float(gained[better < 0].mean()),
        "likelier_before": win_rate(chosen_before, rejected_before),
        "likelier": win_rate(chosen, rejected),
        "likelier_per_token_before": win_rate(chosen_before / length[:, 0], rejected_before / length[:, 1]),
        "likelier_per_token": win_rate(chosen / length[:, 0], rejected / length[:, 1]),
        "chosen": float((chosen - chosen_before).mean()),
        "rejected": float((rejected - rejected_before).mean()),
    }


@cache  # for the initial model, which every run evaluates
def pair_logp(model: str, rows: tuple[str, ...]) -> tuple[list[Pair], Float[Tensor, " p"], Float[Tensor, " p"]]:
    """Tokenized pairs, and the log-probabilities (nats) of the chosen and of the rejected responses."""
    loaded_policy = make_policy(*load(model, torch.device("cpu")))
    columns = ("chosen_reward", "rejected_reward")
    context = min(CONTEXT, loaded_policy.context)
    data = list(map(json.loads, rows))
    end = loaded_policy.end_tokens
    examples, _ = tokenize_pairs(data, loaded_policy.tokenizer, end, context, columns, "held out")
    sequences = collate_pairs(examples)
    logp = (
        pair_logprobs(loaded_policy.model, sequences, ForwardContext(8192)).masked_fill(~sequences.mask, 0).sum(dim=1)
    )
    chosen, rejected = logp.chunk(2)
    return examples, chosen, rejected


def win_rate(a: Float[Tensor, " p"], b: Float[Tensor, " p"]) -> float:
    """Share of entries in which ``a`` is larger; a tie counts half."""
    return float(((a - b).sign() + 1).mean() / 2)


def clustered_error(values: Sequence[float], cluster: Sequence[str]) -> float:
    """Standard error of the mean of values that may be correlated within a cluster.

    >>> clustered_error([1.0, 1.0, 0.0, 0.0], ["a", "a", "b", "b"]) == clustered_error([1.0, 0.0], ["a", "b"])
    True
    """
    mean = math.fsum(values) / len(values)
    sums: dict[str, float] = {}
    for value, name in zip(values, cluster, strict=True):
        sums[name] = sums.get(name, 0.0) + value - mean
    return math.sqrt(math.fsum(total * total for total in sums.values())) / len(values)
