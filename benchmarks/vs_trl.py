"""How fast grape-rl is beside TRL, on one machine: the same models, data, lengths and precision, turn by turn.

    python benchmarks/vs_trl.py run    --data FOLDER --peer-python PYTHON [--only ROWS] [--turns 3] [--steps 6] [--gpu]
    python benchmarks/vs_trl.py report

PYTHON is that of an environment with trl==1.16.0 (and the same torch); without it our side runs alone. FOLDER has
GSM8K: train.jsonl and example_model_solutions.jsonl of github.com/openai/grade-school-math. ROWS are names with commas
between them (speed/rows.py), by default all for this machine: those on a GPU are run with --gpu, and no others.

A turn runs each side once in a new process: TRL, then us. A side's seconds are the median of its whole steps but the
first; a record is one turn. ``report`` writes the tables of benchmarks/README.md from the last run of each row.

--folder   where the models are made (runs/speed)
--results  where the records go (benchmarks/results/vs_trl.jsonl)
--small    a tiny model and little of everything, on the CPU, to see that it works: the results mean nothing then
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grape_rl.cli.arguments import listed, parsed_arguments
from grape_rl.schema import nearest
from measured import append, records, where
from speed.page import report, summary
from speed.rows import ROWS, STARTS, Row
from speed.turns import Bench, disagreement, start_turn, turn

HERE = Path(__file__).resolve().parent


def main(arguments: Sequence[str]) -> None:
    """Run what the command line asks for.

    Raises:
        ValueError: an unknown command, flag or row, or a flag that is missing.
    """
    known = ["data", "peer_python", "only", "turns", "steps", "folder", "results"]
    if not arguments or "--help" in arguments:
        print(__doc__)
        return
    words, own, _ = parsed_arguments(arguments, ["gpu", "small"], known=known)
    if words not in (["run"], ["report"]):
        raise ValueError(f"name one of run and report, not {' '.join(words) or 'none'}")
    small, results = bool(own.get("small")), Path(str(own.get("results", HERE / "results" / "vs_trl.jsonl")))
    if words == ["report"]:
        report(records(results), HERE / "README.md")
        return
    if "data" not in own:
        raise ValueError("run needs --data FOLDER, with train.jsonl and example_model_solutions.jsonl of GSM8K")
    if small and "results" not in own:
        raise ValueError("--small measures nothing: name a file for it with --results")
    steps, turns = int(own.get("steps", 6)), int(own.get("turns", 3))
    if steps < 2:
        raise ValueError(f"--steps {steps}: the first step does not count, so at least 2 are needed")
    peer = Path(str(own["peer_python"])).absolute() if "peer_python" in own else None
    bench = Bench(peer, Path(str(own["data"])), Path(str(own.get("folder", "runs/speed"))), steps)
    run(chosen(own.get("only"), bool(own.get("gpu"))), bench, turns, small, results)


def chosen(only: str | bool | None, gpu: bool) -> list[str]:
    """The rows to run: those named, or all for the machine.

    Raises:
        ValueError: there is no such row.
    """
    every = [row.name for row in ROWS] + list(STARTS)
    for name in listed(only) if only else []:
        if name not in every:
            raise ValueError(f"unknown row {name!r}{nearest(name, every)}; there are {', '.join(every)}")
    here = [row.name for row in ROWS if row.gpu] if gpu else [row.name for row in ROWS if not row.gpu] + list(STARTS)
    return listed(only) if only else here


def run(names: Sequence[str], bench: Bench, turns: int, small: bool, results: Path) -> None:
    """Run the rows, and write down each turn. A row of which a side fails is left, and the next one begun.

    Raises:
        RuntimeError: rows failed, each with what its side said last.
    """
    failed: list[str] = []
    began = time.strftime("%Y-%m-%d %H:%M:%S")
    rows: dict[str, Row] = {row.name: row.small() if small else row for row in ROWS}
    for name in names:
        row, done = rows.get(name), list[dict[str, Any]]()
        try:
            for number in range(turns):
                sides = turn(row, bench) if row else start_turn(name, bench)
                unlike = disagreement(row, sides) if row else ""
                record = {"row": name, "run": began, "turn": number, "steps": bench.steps, "unlike": unlike, **sides}
                append(results, record | {"where": where()})
                done.append(record)
            print(summary(done), flush=True)
        except RuntimeError as error:
            failed.append(f"{name}: {error}")
    if failed:
        raise RuntimeError("\n".join(failed))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, RuntimeError) as error:
        sys.exit(f"{error}")
