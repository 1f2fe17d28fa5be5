"""Benchmark of all methods under equal conditions.

    python benchmarks/methods.py online  [--methods NAMES] [--seeds 0,1,2] [--jobs 1] [--small]
    python benchmarks/methods.py offline --data FILE [--methods NAMES] [--seeds 0,1,2] [--jobs 1] [--small]
    python benchmarks/methods.py report

``online`` runs the methods that sample, on the demo tasks. ``offline`` runs the methods that learn from preference
pairs, on GSM8K; FILE is OpenAI's example_model_solutions.jsonl (github.com/openai/grade-school-math). NAMES are
methods, separated by commas; the default is all methods, with a few of the online forms. Recorded runs are skipped.
``report`` writes the tables and the figure of docs/benchmarks/methods.md.

--folder   folder for runs in progress and for the initial models (runs/benchmark)
--results  folder of the result files, one line a run (benchmarks/results/methods)
--jobs     number of methods that run in parallel
--small    smoke test of a step or two; the results are meaningless
"""

import multiprocessing
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import offline
import online
from grape_rl.algorithms import ALGORITHMS
from grape_rl.cli.arguments import listed, parsed_arguments
from grape_rl.schema import nearest
from result_file import read_records
from tables import by_method, grid_table, inserted, offline_table, online_table

HERE = Path(__file__).resolve().parent


def main(arguments: Sequence[str]) -> None:
    """Run the command line.

    Raises:
        ValueError: an unknown command, flag or method, or a missing flag.
    """
    known = ["methods", "seeds", "jobs", "folder", "results", "data"]
    if not arguments or "--help" in arguments:
        print(__doc__)
        return
    words, own, _ = parsed_arguments(arguments, ["small"], known=known)
    if len(words) != 1 or words[0] not in ("online", "offline", "report"):
        raise ValueError(f"name one of online, offline and report, not {words or 'none'}")
    results = Path(str(own.get("results", HERE / "results" / "methods")))
    folder = Path(str(own.get("folder", "runs/benchmark")))
    seeds = [int(seed) for seed in listed(own.get("seeds", "0,1,2"))]
    small, jobs = bool(own.get("small")), int(own.get("jobs", 1))
    if words[0] == "online":
        workspace = online.Workspace(folder, results / "online.jsonl", small)
        for seed in seeds:
            online.initial_model(workspace, seed)
        run = partial(online.run_method, workspace, seeds)
        run_all(run, selected(own.get("methods"), online.sampling_methods()), jobs)
    elif words[0] == "offline":
        if "data" not in own:
            raise ValueError("offline needs --data FILE, OpenAI's example_model_solutions.jsonl of GSM8K")
        workspace = offline.PairWorkspace(Path(str(own["data"])), folder, results / "offline.jsonl", small)
        offline.prepared(workspace)
        run = partial(offline.run_method, workspace, seeds)
        run_all(run, selected(own.get("methods"), offline.pair_methods()), jobs)
    else:
        report(results, HERE.parent / "docs" / "benchmarks" / "methods.md")


def report(results: Path, page: Path) -> None:
    """Write the tables and the figure into the page, whose own text stays as it is."""
    text = page.read_text(encoding="utf-8")
    if records := read_records(results / "online.jsonl"):
        from learning_curves import draw  # imports matplotlib, which only the report needs

        text = inserted(inserted(text, "online", online_table(records)), "grid", grid_table(records))
        draw(by_method(records), page.with_name("methods.png"))
    if records := read_records(results / "offline.jsonl"):
        text = inserted(text, "offline", offline_table(records))
    page.write_text(text, encoding="utf-8")
    print(page)


def selected(value: str | bool | None, default: list[str]) -> list[str]:
    """Methods in the value of a flag, or the default ones.

    Raises:
        ValueError: an unknown method.
    """
    names = listed(value) if value else default
    for name in names:
        if name not in ALGORITHMS:
            raise ValueError(f"unknown method {name!r}{nearest(name, ALGORITHMS)}")
    return names


def run_all(run: Callable[[str], None], methods: list[str], jobs: int) -> None:
    """Call ``run`` for each method, ``jobs`` in parallel, each in a process of its own."""
    if jobs == 1:
        for method in methods:
            run(method)
        return
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        list(pool.map(run, methods))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ValueError as error:
        sys.exit(f"{error}")
