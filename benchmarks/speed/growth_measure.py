"""Measure one point of growth.py, a short GRPO run or the LM head alone: ``python -m speed.growth_measure SPEC OUT``.

Memory is the peak of the process minus its memory after the imports: weights, gradients, optimizer state and whatever
a step needs.
"""

import json
import statistics
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from grape_rl import train
from grape_rl.model.lm_head import lm_head_of, token_logprobs
from shapes import model
from speed.floors import step_operations, step_work, weightless
from speed.ours import settings

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def process_memory(name: str) -> int:
    """Bytes of resident memory of this process: now (VmRSS) or at its peak (VmHWM).

    Raises:
        ValueError: the system is not Linux.
    """
    if not STATUS.is_file():
        raise ValueError(f"{STATUS} does not exist: memory is measured on Linux only")
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return 1024 * int(line.split()[1])


def reset_peak() -> int:
    """Reset the peak memory of this process to its present memory; returns the present bytes."""
    CLEAR_REFS.write_text("5")
    return process_memory("VmRSS")


def step_point(spec: Mapping[str, Any]) -> dict[str, float]:
    """Median seconds of sampling and of the update, peak memory, and operations of a step."""
    before = reset_peak()
    with tempfile.TemporaryDirectory() as folder:
        later = train(settings(spec, Path(folder) / "run")).metrics[1:]
    memory = process_memory("VmHWM") - before
    length = statistics.median(step["length"] for step in later)
    bound = step_operations(weightless(spec["model"]), "grpo", step_work(spec, length))
    return {
        "sampling": statistics.median(step["sample_seconds"] for step in later),
        "update": statistics.median(step["update_seconds"] for step in later),
        "memory": memory,
        "operations": bound["step"],
        "length": length,
    }


def head_point(spec: Mapping[str, Any]) -> dict[str, float]:
    """Peak memory of the LM head alone, forward and backward, above its inputs and their gradients."""
    built = model({**spec["shape"], "num_hidden_layers": 1})
    head, generator = lm_head_of(built), torch.Generator().manual_seed(0)

    def peak(tokens: int) -> int:
        hidden = torch.randn(tokens, spec["shape"]["hidden_size"], generator=generator).requires_grad_()
        targets = torch.randint(spec["shape"]["vocab_size"], (tokens,), generator=generator)
        hidden.grad = torch.zeros_like(hidden)
        before = reset_peak()
        logp, entropy = token_logprobs(head, hidden, targets)
        (logp.sum() + entropy.detach().sum()).backward()
        return process_memory("VmHWM") - before

    peak(8)  # warm-up: allocates the gradient of the weights and the workspaces of the libraries
    return {"memory": peak(spec["tokens"])}


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    point = head_point(given) if "tokens" in given else step_point(given)
    Path(sys.argv[2]).write_text(json.dumps(point), encoding="utf-8")
