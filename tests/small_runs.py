"""Runs small enough for a test: a two-layer model from scratch, a few sums as prompts, a rubric, a reward function."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

RUBRIC = """
schema: grape-rubric/1
categories:
  sums:
    items:
      - {id: even, weight: 3, check: {type: regex, pattern: "[02468]"}}
      - {id: brief, weight: 1, check: {type: length, max_tokens: 4}}
"""

REWARD = """
def digits(completions, **columns):
    return [float(sum(c.isdigit() for c in text)) for text in completions]
"""


def sums(count: int) -> list[dict[str, Any]]:
    """Rows with a prompt and a completion; prompts of two lengths."""
    return [{"prompt": f"{7 * i % 12}+{i % 5}=", "completion": str(7 * i % 12 + i % 5)} for i in range(count)]


def written(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """The rows as a JSON Lines file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def settings(folder: Path, method: str) -> dict[str, Any]:
    """A run of ``method`` on sums, its files in ``folder`` and its results in ``folder/run``."""
    (folder / "rubric.yaml").write_text(RUBRIC)
    return {
        "method": method,
        "model": {"scratch": {"hidden": 32, "layers": 2, "heads": 2, "context": 64}},
        "data": {"source": str(written(folder / "rows.jsonl", sums(12))), "max_length": 64},
        "reward": {"rubric": str(folder / "rubric.yaml")},
        "sampling": {"max_tokens": 10},
        "optimizer": {"learning_rate": 1e-2},
        "steps": 2,
        "prompts_per_step": 3,
        "group_size": 4,
        "output": str(folder / "run"),
        "device": "cpu",
    }


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint's model."""
    return load_file(checkpoint / "model.safetensors")


def lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file; none if it is not there."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
