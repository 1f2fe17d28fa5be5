"""The methods side by side, measured.

    python benchmarks/methods.py online  [--methods NAMES] [--seeds 0,1,2] [--jobs 1] [--small]
    python benchmarks/methods.py offline --data FILE [--methods NAMES] [--seeds 0,1,2] [--jobs 1] [--small]
    python benchmarks/methods.py report

``online`` runs the methods that sample on the demo's tasks, ``offline`` those of pairs on GSM8K; FILE is OpenAI's
example_model_solutions.jsonl (github.com/openai/grade-school-math). Without NAMES (with commas between them) it is all
of the table's, of online forms only a few. What is measured already is not run again. ``report`` writes the tables and
the picture of docs/benchmarks/methods.md.

--folder   where the runs lie while they last, and the models that they start from (runs/benchmark)
--results  where the results are written, one line a run (benchmarks/results/methods)
--jobs     how many methods run side by side
--small    a step or two, to see that it works: the results mean nothing then
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
from measured import records
from tables import by_method, grid_table, inserted, offline_table, online_table

HERE = Path(__file__).resolve().parent


def main(arguments: Sequence[str]) -> None:
    """Run what the command line asks for.

    Raises:
        ValueError: an unknown command, flag or method, or a flag that is missing.
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
        bench = online.Bench(folder, results / "online.jsonl", small)
        for seed in seeds:
            online.start(bench, seed)
        run = partial(online.run_method, bench, seeds)
        side_by_side(run, named(own.get("methods"), online.sampling_methods()), jobs)
    elif words[0] == "offline":
        if "data" not in own:
            raise ValueError("offline needs --data FILE, OpenAI's example_model_solutions.jsonl of GSM8K")
        pairs = offline.Bench(Path(str(own["data"])), folder, results / "offline.jsonl", small)
        offline.prepared(pairs)
        side_by_side(partial(offline.run_method, pairs, seeds), named(own.get("methods"), offline.pair_methods()), jobs)
    else:
        report(results, HERE.parent / "docs" / "benchmarks" / "methods.md")


def report(results: Path, page: Path) -> None:
    """Write the tables and the picture of what is measured into the page, whose own text stays as it is."""
    text = page.read_text(encoding="utf-8")
    if found := records(results / "online.jsonl"):
        from picture import draw  # matplotlib, which nothing else needs

        text = inserted(inserted(text, "online", online_table(found)), "grid", grid_table(found))
        draw(by_method(found), page.with_name("methods.png"))
    if found := records(results / "offline.jsonl"):
        text = inserted(text, "offline", offline_table(found))
    page.write_text(text, encoding="utf-8")
    print(page)


def named(value: str | bool | None, every: list[str]) -> list[str]:
    """The methods that a flag names, or all of them.

    Raises:
        ValueError: a method that the table has not.
    """
    names = listed(value) if value else every
    for name in names:
        if name not in ALGORITHMS:
            raise ValueError(f"unknown method {name!r}{nearest(name, ALGORITHMS)}")
    return names


def side_by_side(run: Callable[[str], None], methods: list[str], jobs: int) -> None:
    """Run for each method, ``jobs`` of them at a time, each in a process of its own."""
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
