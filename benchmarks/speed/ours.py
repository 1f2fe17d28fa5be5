"""The grape-rl side of the comparison, a real run: ``python -m speed.ours SPEC OUT``; SPEC is ``Workload.spec``.

OUT has the fields that ``peer.py`` writes, plus the seconds of the parts of a step and lower bounds on its cost.
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
"""Seed of the order of the rows, which both sides share."""


def random_reward(completions: Sequence[str]) -> list[float]:
    """A random reward for each response."""
    return [random.random() for _ in completions]


def settings(spec: Spec, output: Path) -> dict[str, Any]:
    """Configuration of the run: the defaults, except for the spec's settings and the pass that only measures the KL."""
    config = {
        "method": spec["method"],
        "model": {"name": spec["model"]},
        "data": {"source": spec["data"], "max_length": spec["max_length"]},
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
    if spec["tokens_per_microbatch"]:
        config["tokens_per_microbatch"] = spec["tokens_per_microbatch"]
    if spec["method"] == "grpo":
        config |= {
            "group_size": spec["group"],
            "sampling": {"max_tokens": spec["new_tokens"]},
            "reward": {"function": "speed.ours:random_reward"},
        }
    return config


def main(spec: Spec, out: Path) -> None:
    """Train, and write the measurements."""
    with tempfile.TemporaryDirectory() as folder:
        metrics = train(settings(spec, Path(folder) / "run")).metrics
    result = measurements(spec, metrics) | {
        "peak": torch.cuda.max_memory_allocated() if spec["gpu"] else None,
        "versions": {name: version(name) for name in ("grape-rl", "transformers", "torch")},
    }
    out.write_text(json.dumps(result), encoding="utf-8")


def measurements(spec: Spec, metrics: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Seconds, tokens and operations of each step but the first. A step begins at the end of the step before."""
    later, model = metrics[1:], weightless(spec["model"])
    # DPO's reference reads all rows before the first step; each row occurs once, so each step is charged its share.
    reference = metrics[0].get("reference_seconds", 0.0) / len(metrics) if spec["method"] == "dpo" else 0.0
    result: dict[str, Any] = {
        "seconds": [b["time"] - a["time"] + reference for a, b in zip(metrics, later, strict=False)],
        "update_seconds": [step["update_seconds"] for step in later],
    }
    if spec["method"] == "grpo":
        rows, lengths = spec["per_step"] * spec["group"], [step["length"] for step in later]
        work = [step_work(spec, length) for length in lengths]
        width = 2 if spec["bf16"] else 4
        result |= {
            "tokens": [rows * (spec["prompt_tokens"] + length) for length in lengths],
            "length": lengths,
            "sample_seconds": [step["sample_seconds"] for step in later],
            "decode_bytes": [decode_bytes(model, spec, length, width) for length in lengths],
        }
    else:
        batches = read_steps(spec)[1:]
        work = [forward_work(batch) for batch in batches]
        result |= {"tokens": [read_tokens(batch) for batch in batches], "length": None}
    costs = [step_operations(model, spec["method"], one) for one in work]
    return result | {"operations": [c["step"] for c in costs], "update_operations": [c["update"] for c in costs]}


def read_steps(spec: Spec) -> list[Sequences]:
    """Demonstrations or pairs of each step in the order of the run, from a file in which each row occurs once."""
    rows = [json.loads(line) for line in Path(spec["data"]).read_text(encoding="utf-8").splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(spec["model"])
    steps = [rows_of_step(len(rows), spec["per_step"], step, SEED) for step in range(spec["steps"])]
    return [read_rows([rows[i] for i in indices], spec["method"], tokenizer, spec["max_length"]) for indices in steps]


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))
