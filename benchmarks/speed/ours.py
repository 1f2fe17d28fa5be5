"""Our side of the comparison, a real run: ``python -m speed.ours SPEC OUT``, with what ``rows.Row.spec`` says in SPEC.

It writes what ``peer.py`` writes, and beside that what the step's parts took, and what it costs at the least.
"""

import json
import random
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from grape_rl import train
from grape_rl.data.order import rows_of_step
from grape_rl.estimate.flops import forward_work
from grape_rl.types import Sequences
from speed.floors import decode_bytes, read_rows, read_tokens, step_operations, step_work, weightless

Spec = Mapping[str, Any]
SEED = 0
"""Of the rows' order, which is the other side's too."""


def by_chance(completions: Sequence[str]) -> list[float]:
    """A random reward for each response."""
    return [random.random() for _ in completions]


def settings(spec: Spec, output: Path) -> dict[str, Any]:
    """The run's configuration: defaults, but for what the spec says, and without the pass that only measures the KL."""
    found = {
        "method": spec["method"],
        "model": {"name": spec["model"]},
        "data": {"source": spec["data"], "max_length": spec["longest"]},
        "steps": spec["steps"],
        "seed": SEED,
        "prompts_per_step": spec["per_step"],
        "optimizer": {"learning_rate": spec["rate"]},
        "precision": "bf16" if spec["bf16"] else "fp32",
        "device": "cuda" if spec["gpu"] else "cpu",
        "log_kl": False,
        "checkpoint_every": 0,
        "output": str(output),
    }
    if spec["positions"]:
        found["tokens_per_microbatch"] = spec["positions"]
    if spec["method"] == "grpo":
        found |= {
            "group_size": spec["group"],
            "sampling": {"max_tokens": spec["new_tokens"]},
            "reward": {"function": "speed.ours:by_chance"},
        }
    return found


def main(spec: Spec, out: Path) -> None:
    """Train, and write the account of it."""
    with tempfile.TemporaryDirectory() as folder:
        metrics = train(settings(spec, Path(folder) / "run")).metrics
    told = account(spec, metrics) | {
        "peak": torch.cuda.max_memory_allocated() if spec["gpu"] else None,
        "versions": {name: version(name) for name in ("grape-rl", "transformers", "torch")},
    }
    out.write_text(json.dumps(told), encoding="utf-8")


def account(spec: Spec, metrics: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """What each step but the first took, read and needed. A step lasts from the end of one to the end of the next."""
    later, model = metrics[1:], weightless(spec["model"])
    # DPO's reference reads all rows, each of which comes up once, before the first step: each step bears its share.
    ahead = metrics[0].get("reference_seconds", 0.0) / len(metrics) if spec["method"] == "dpo" else 0.0
    told: dict[str, Any] = {
        "seconds": [b["time"] - a["time"] + ahead for a, b in zip(metrics, later, strict=False)],
        "update_seconds": [each["update_seconds"] for each in later],
    }
    if spec["method"] == "grpo":
        rows, length = spec["per_step"] * spec["group"], [each["length"] for each in later]
        work = [step_work(spec, each) for each in length]
        width = 2 if spec["bf16"] else 4
        told |= {
            "tokens": [rows * (spec["prompt_tokens"] + each) for each in length],
            "length": length,
            "sample_seconds": [each["sample_seconds"] for each in later],
            "decode_bytes": [decode_bytes(model, spec, each, width) for each in length],
        }
    else:
        batches = read_steps(spec)[1:]
        work = [forward_work(each) for each in batches]
        told |= {"tokens": [read_tokens(each) for each in batches], "length": None}
    costs = [step_operations(model, spec["method"], each) for each in work]
    return told | {"operations": [c["step"] for c in costs], "update_operations": [c["update"] for c in costs]}


def read_steps(spec: Spec) -> list[Sequences]:
    """The demonstrations or pairs of each step, as the run drew them: a file of rows that each come up once."""
    rows = [json.loads(line) for line in Path(spec["data"]).read_text(encoding="utf-8").splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(spec["model"])
    drawn = [rows_of_step(len(rows), spec["per_step"], step, SEED) for step in range(spec["steps"])]
    return [read_rows([rows[i] for i in each], spec["method"], tokenizer, spec["longest"]) for each in drawn]


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))
