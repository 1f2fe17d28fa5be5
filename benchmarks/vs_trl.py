"""Speed and memory of grape-rl and TRL on one machine, with the same models, data, lengths and precision.

    python benchmarks/vs_trl.py run    --data FOLDER --peer-python PYTHON [--only NAMES] [--turns 3] [--steps 6] [--gpu]
    python benchmarks/vs_trl.py report

PYTHON is the interpreter of an environment with trl==1.16.0 and the same torch; without it the grape-rl side runs
alone. FOLDER has GSM8K: train.jsonl and example_model_solutions.jsonl of github.com/openai/grade-school-math. NAMES are
workloads of speed/workloads.py, separated by commas. The default is all CPU workloads, or with --gpu all GPU workloads.

A turn runs each side once in a new process: TRL first, then grape-rl. The seconds of a side are the median over its
steps, without the first; a record is one turn. ``report`` writes the tables of benchmarks/README.md from the last run
of each workload.

--folder   folder for the models (runs/speed)
--results  result file (benchmarks/results/vs_trl.jsonl)
--small    smoke test on the CPU with a tiny model and tiny steps; the results are meaningless
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grape_rl.cli.arguments import listed, parsed_arguments
from grape_rl.schema import nearest
from result_file import append_record, environment, read_records
from speed.page import report, summary
from speed.turns import Bench, disagreement, start_turn, turn
from speed.workloads import STARTS, WORKLOADS, Workload

HERE = Path(__file__).resolve().parent


def main(arguments: Sequence[str]) -> None:
    """Run the command line.

    Raises:
        ValueError: an unknown command, flag or workload, or a missing flag.
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
        report(read_records(results), HERE / "README.md")
        return
    if "data" not in own:
        raise ValueError("run needs --data FOLDER, with train.jsonl and example_model_solutions.jsonl of GSM8K")
    if small and "results" not in own:
        raise ValueError("--small is a smoke test: give it a file of its own with --results")
    steps, turns = int(own.get("steps", 6)), int(own.get("turns", 3))
    if steps < 2:
        raise ValueError(f"--steps {steps}: the first step does not count; give at least 2")
    peer = Path(str(own["peer_python"])).absolute() if "peer_python" in own else None
    bench = Bench(peer, Path(str(own["data"])), Path(str(own.get("folder", "runs/speed"))), steps)
    run(selected(own.get("only"), bool(own.get("gpu"))), bench, turns, small, results)


def selected(only: str | bool | None, gpu: bool) -> list[str]:
    """Names of the workloads to run: the given ones, or all for the device.

    Raises:
        ValueError: an unknown workload.
    """
    names = [workload.name for workload in WORKLOADS] + list(STARTS)
    for name in listed(only) if only else []:
        if name not in names:
            raise ValueError(f"unknown workload {name!r}{nearest(name, names)}; choose from {', '.join(names)}")
    on_device = [workload.name for workload in WORKLOADS if workload.gpu == gpu] + ([] if gpu else list(STARTS))
    return listed(only) if only else on_device


def run(names: Sequence[str], bench: Bench, turns: int, small: bool, results: Path) -> None:
    """Run the workloads and append a record per turn. If a side fails, the run continues with the next workload.

    Raises:
        RuntimeError: workloads failed; the message has the last lines of each failed side.
    """
    failed: list[str] = []
    began = time.strftime("%Y-%m-%d %H:%M:%S")
    workloads: dict[str, Workload] = {w.name: w.small() if small else w for w in WORKLOADS}
    for name in names:
        workload, done = workloads.get(name), list[dict[str, Any]]()
        try:
            for number in range(turns):
                sides = turn(workload, bench) if workload else start_turn(name, bench)
                unlike = disagreement(workload, sides) if workload else ""
                record = {"row": name, "run": began, "turn": number, "steps": bench.steps, "unlike": unlike, **sides}
                append_record(results, record | {"where": environment()})
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
