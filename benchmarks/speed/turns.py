"""Turns: each side of a workload runs once in a process of its own, one after the other, and gives one record."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from speed import data
from speed.workloads import STARTS, Workload

HERE = Path(__file__).resolve().parents[1]
OURS = [sys.executable, "-m", "speed.ours"]
MACHINE = [sys.executable, "-m", "speed.machine"]
GROWTH_MEASURE = [sys.executable, "-m", "speed.growth_measure"]
Measurements = dict[str, Any]
"""The measurements of one side, as it writes them."""


@dataclass(frozen=True)
class Bench:
    """The setup of the sides: TRL's Python (None: TRL does not run), GSM8K's folder, a folder for models, and steps."""

    peer_python: Path | None
    data: Path
    folder: Path
    steps: int


def turn(workload: Workload, bench: Bench) -> Measurements:
    """One turn of both sides of a workload, TRL first, followed by the rates of the machine.

    Raises:
        RuntimeError: a side failed; the message has its last lines.
    """
    model = prepared_model(workload.shape, bench)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = prepared_rows(workload, bench, model)
        ordered = rows if workload.method == "grpo" else data.in_training_order(rows, workload.per_step, seed=0)
        sides: Measurements = {}
        if bench.peer_python and workload.peer is not None:
            script = [str(bench.peer_python), str(HERE / "speed" / "peer.py")]
            spec = workload.spec(model, write_rows(folder / "peer.jsonl", ordered), bench.steps)
            sides["peer"] = run_side(script, spec, folder)
        spec = workload.spec(model, write_rows(folder / "ours.jsonl", rows), bench.steps)
        sides["ours"] = run_side(OURS, spec, folder)
        sides["machine"] = run_side(MACHINE, spec, folder)
    return sides


def prepared_model(shape: str, bench: Bench) -> Path:
    """Folder of the model; a process of its own builds the model if the folder does not have it."""
    folder = bench.folder / shape
    if (folder / "tokenizer.json").is_file():
        return folder
    run_command([sys.executable, str(HERE / "shapes.py"), shape, str(folder), "--data", str(bench.data)])
    return folder


def prepared_rows(workload: Workload, bench: Bench, model: Path) -> list[data.Row]:
    """Rows for all steps, each used once."""
    count = workload.per_step * bench.steps
    if workload.method == "grpo":
        return data.prompts(AutoTokenizer.from_pretrained(str(model)), workload.prompt_tokens, count)
    return (data.demonstrations if workload.method == "sft" else data.pairs)(bench.data, count)


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write the rows as JSON Lines; returns the path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def run_side(script: Sequence[str], spec: Mapping[str, Any], folder: Path) -> Measurements:
    """Run one side and read its measurements. ``peak`` is the peak memory of the process, or of the GPU if reported."""
    spec_file, out = folder / "spec.json", folder / "out.json"
    spec_file.write_text(json.dumps(spec), encoding="utf-8")
    out.unlink(missing_ok=True)
    _, resident = run_command([*script, str(spec_file), str(out)])
    result = json.loads(out.read_text(encoding="utf-8"))
    return result | {"peak": result.get("peak") or resident}


def run_command(command: Sequence[str]) -> tuple[float, int]:
    """Run a command; returns its wall-clock seconds and its peak memory in bytes.

    Raises:
        RuntimeError: the command failed; the message has its last lines.
    """
    paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "usage.json"
        launch = [sys.executable, "-S", str(HERE / "speed" / "launch.py"), str(out), *command]
        process = subprocess.run(launch, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env, check=False)
        usage = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {"code": process.returncode}
    if usage["code"]:
        last = process.stdout.decode(errors="replace").strip().splitlines()[-15:]
        raise RuntimeError(f"{' '.join(command)}: exit code {usage['code']}\n" + "\n".join(last))
    return usage["seconds"], usage["peak"]


def start_turn(name: str, bench: Bench) -> Measurements:
    """One turn of an entry of ``STARTS``: seconds and memory of each side's command, from start to exit."""
    ours, peer = STARTS[name]
    sides = {"peer": (peer, bench.peer_python), "ours": (ours, Path(sys.executable))}
    return {key: measured_start(command, python) for key, (command, python) in sides.items() if python}


def measured_start(command: str, python: Path) -> Measurements:
    """Seconds and peak memory of an import, or of a command installed in the same folder as ``python``."""
    if command.startswith(("import", "from")):
        words = [str(python), "-c", command]
    else:
        program, *rest = command.split()
        words = [str(python.with_name(program)), *rest]
    seconds, peak = run_command(words)
    return {"seconds": [seconds], "peak": peak}


def disagreement(workload: Workload, sides: Mapping[str, Measurements]) -> str:
    """Message if the sides did different work, else "". Lengths of responses are random and may differ."""
    if "peer" not in sides:
        return ""

    def read(result: Measurements) -> list[float]:
        lengths = result["length"] or [0] * len(result["tokens"])
        rows = workload.per_step * workload.group
        return [round(tokens - rows * length, 3) for tokens, length in zip(result["tokens"], lengths, strict=True)]

    ours, peer = read(sides["ours"]), read(sides["peer"])
    return "" if ours == peer else f"{workload.name}: TRL read {peer} tokens a step, grape-rl {ours}"
