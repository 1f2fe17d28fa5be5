"""Turns: each side of a row in a process of its own, one after the other, and what came of them as one record."""

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
from speed.rows import STARTS, Row

HERE = Path(__file__).resolve().parents[1]
OURS = [sys.executable, "-m", "speed.ours"]
MACHINE = [sys.executable, "-m", "speed.machine"]
GROWN = [sys.executable, "-m", "speed.grown"]
Told = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """Where the sides run: TRL's Python (None: it does not run), GSM8K, a folder for models, and steps a turn."""

    peer_python: Path | None
    data: Path
    folder: Path
    steps: int


def turn(row: Row, bench: Bench) -> Told:
    """One turn of both sides of a row, first TRL's; and what the machine reaches behind them.

    Raises:
        RuntimeError: a side failed; its last lines are in the message.
    """
    model = prepared_model(row.shape, bench)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        rows = prepared_rows(row, bench, model)
        ordered = rows if row.method == "grpo" else data.as_drawn(rows, row.per_step, seed=0)
        sides: Told = {}
        if bench.peer_python and row.peer is not None:
            script = [str(bench.peer_python), str(HERE / "speed" / "peer.py")]
            sides["peer"] = side(script, row.spec(model, written(place / "peer.jsonl", ordered), bench.steps), place)
        spec = row.spec(model, written(place / "ours.jsonl", rows), bench.steps)
        sides["ours"] = side(OURS, spec, place)
        sides["machine"] = side(MACHINE, spec, place)
    return sides


def prepared_model(shape: str, bench: Bench) -> Path:
    """The model's folder, made by a process of its own if it is not there yet."""
    folder = bench.folder / shape
    if (folder / "tokenizer.json").is_file():
        return folder
    finished([sys.executable, str(HERE / "shapes.py"), shape, str(folder), "--data", str(bench.data)])
    return folder


def prepared_rows(row: Row, bench: Bench, model: Path) -> list[data.Row]:
    """As many rows as the steps take, each once."""
    count = row.per_step * bench.steps
    if row.method == "grpo":
        return data.prompts(AutoTokenizer.from_pretrained(str(model)), row.prompt_tokens, count)
    return (data.demonstrations if row.method == "sft" else data.pairs)(bench.data, count)


def written(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """The rows as a file of JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def side(script: Sequence[str], spec: Mapping[str, Any], folder: Path) -> Told:
    """What one side writes of its steps; its peak is that of the process where the side tells none of a GPU."""
    told, out = folder / "spec.json", folder / "out.json"
    told.write_text(json.dumps(spec), encoding="utf-8")
    out.unlink(missing_ok=True)
    _, resident = finished([*script, str(told), str(out)])
    found = json.loads(out.read_text(encoding="utf-8"))
    return found | {"peak": found.get("peak") or resident}


def finished(command: Sequence[str]) -> tuple[float, int]:
    """Run a command to its end: its wall seconds, and the most bytes that it held at once.

    Raises:
        RuntimeError: it failed; its last lines are in the message.
    """
    paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "told.json"
        launch = [sys.executable, "-S", str(HERE / "speed" / "launch.py"), str(out), *command]
        said = subprocess.run(launch, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env, check=False)
        told = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {"code": said.returncode}
    if told["code"]:
        last = said.stdout.decode(errors="replace").strip().splitlines()[-15:]
        raise RuntimeError(f"{' '.join(command)}: exit code {told['code']}\n" + "\n".join(last))
    return told["seconds"], told["peak"]


def start_turn(name: str, bench: Bench) -> Told:
    """One turn of a row of ``STARTS``: how long each side's command takes from beginning to end."""
    ours, peer = STARTS[name]
    sides = {"peer": (peer, bench.peer_python), "ours": (ours, Path(sys.executable))}
    return {key: started(command, python) for key, (command, python) in sides.items() if python}


def started(command: str, python: Path) -> Told:
    """The seconds and the peak of an import, or of a command that is installed beside the Python."""
    if command.startswith(("import", "from")):
        words = [str(python), "-c", command]
    else:
        program, *rest = command.split()
        words = [str(python.with_name(program)), *rest]
    seconds, peak = finished(words)
    return {"seconds": [seconds], "peak": peak}


def disagreement(row: Row, sides: Mapping[str, Told]) -> str:
    """In what the sides did not do the same work: empty where they did. Responses may differ in length by chance."""
    if "peer" not in sides:
        return ""

    def read(told: Told) -> list[float]:
        lengths = told["length"] or [0] * len(told["tokens"])
        rows = row.per_step * row.group
        return [round(tokens - rows * length, 3) for tokens, length in zip(told["tokens"], lengths, strict=True)]

    ours, peer = read(sides["ours"]), read(sides["peer"])
    return "" if ours == peer else f"{row.name}: TRL read {peer} tokens a step, and we {ours}"
