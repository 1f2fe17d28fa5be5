"""Runs small enough for a test: a two-layer model from scratch, sums as prompts, a rubric, a reward function."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from grape_rl import train
from grape_rl.run import Run
from grape_rl.training.log import Log

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
    """Rows with a prompt and a completion; the prompts have two lengths."""
    return [{"prompt": f"{7 * i % 12}+{i % 5}=", "completion": str(7 * i % 12 + i % 5)} for i in range(count)]


def written(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write the rows to a JSON Lines file; returns its path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def settings(folder: Path, method: str) -> dict[str, Any]:
    """The configuration of a run of ``method`` on sums, with files in ``folder`` and results in ``folder/run``."""
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
    """The objects of a JSON Lines file; none if there is no such file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def killed_and_resumed(config: Mapping[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Run, Run]:
    """A run that is killed after logging step 3 and resumed, and one that is not killed, in ``straight``.

    Asserts that both have equal weights, held-out results, and metrics except for times.
    """
    straight = train({**config, "output": str(folder / "straight")})
    log_step = Log.step

    def dying(self: Log, number: int, metrics: Mapping[str, float]) -> None:
        log_step(self, number, metrics)
        if number == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Log, "step", dying)
        train(config)
    run = train(config, resume=True)
    one, other = weights(run.model), weights(straight.model)
    assert all(torch.equal(one[key], other[key]) for key in one)
    results = [each_run.folder / "held_out.json" for each_run in (run, straight)]
    assert results[0].exists() == results[1].exists()
    assert not results[0].exists() or results[0].read_bytes() == results[1].read_bytes()
    assert timeless_metrics(run) == timeless_metrics(straight)
    return run, straight


def timeless_metrics(run: Run) -> str:
    """A run's metrics without times, as text, in which NaN equals NaN."""
    return str([{k: v for k, v in line.items() if not k.endswith(("time", "seconds"))} for line in run.metrics])
