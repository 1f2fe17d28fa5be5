"""One point of growth.py: ``python -m speed.grown SPEC OUT``, a short GRPO run, or the head alone.

The memory is what the process came to hold beside the libraries that it had imported: weights, gradients, the
optimizer's state and whatever a step needs.
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

STATUS, FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def held(name: str) -> int:
    """Bytes that this process holds at present (VmRSS), or held at most (VmHWM).

    Raises:
        ValueError: the system does not tell: it is no Linux.
    """
    if not STATUS.is_file():
        raise ValueError(f"{STATUS} is not there: memory is measured on Linux")
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return 1024 * int(line.split()[1])


def from_here() -> int:
    """Bytes held at present; what was held at most is counted from here on."""
    FORGET.write_text("5")
    return held("VmRSS")


def step_point(spec: Mapping[str, Any]) -> dict[str, float]:
    """Median seconds of sampling and of the update, the memory, and the operations that a step needs."""
    before = from_here()
    with tempfile.TemporaryDirectory() as folder:
        later = train(settings(spec, Path(folder) / "run")).metrics[1:]
    memory = held("VmHWM") - before
    length = statistics.median(each["length"] for each in later)
    needed = step_operations(weightless(spec["model"]), "grpo", step_work(spec, length))
    return {
        "sampling": statistics.median(each["sample_seconds"] for each in later),
        "update": statistics.median(each["update_seconds"] for each in later),
        "memory": memory,
        "operations": needed["step"],
        "length": length,
    }


def head_point(spec: Mapping[str, Any]) -> dict[str, float]:
    """Forward and backward of the head alone: the memory above what goes in and the gradients that come out."""
    made = model({**spec["shape"], "num_hidden_layers": 1})
    head, generator = lm_head_of(made), torch.Generator().manual_seed(0)

    def once(tokens: int) -> int:
        hidden = torch.randn(tokens, spec["shape"]["hidden_size"], generator=generator).requires_grad_()
        chosen = torch.randint(spec["shape"]["vocab_size"], (tokens,), generator=generator)
        hidden.grad = torch.zeros_like(hidden)
        before = from_here()
        logp, entropy = token_logprobs(head, hidden, chosen)
        (logp.sum() + entropy.detach().sum()).backward()
        return held("VmHWM") - before

    once(8)  # the gradient of the weights is there from here on, and what libraries set up when first used
    return {"memory": once(spec["tokens"])}


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    point = head_point(given) if "tokens" in given else step_point(given)
    Path(sys.argv[2]).write_text(json.dumps(point), encoding="utf-8")
