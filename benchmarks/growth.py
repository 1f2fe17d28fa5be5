"""Scaling of a GRPO step: time and memory as prompts, groups, responses, the vocabulary or the batch grow.

    python benchmarks/growth.py run    [--only NAMES] [--turns 3] [--steps 5]
    python benchmarks/growth.py report

The base is one step of a small model. Each dimension in turn is doubled several times while all others stay fixed.
Every point is a process of its own. It measures the seconds of sampling and of the update (the minimum over turns of
the median over steps, without the first step), and the peak memory minus the memory of the imported libraries. The
memory of the LM head is measured alone. Points that have a result are skipped. ``report`` writes
docs/benchmarks/growth.md and its figure.

--folder   folder for the models (runs/speed)
--results  result file, one line a point (benchmarks/results/growth.jsonl)
--small    smoke test: two sizes of each dimension, two steps; the results are meaningless
"""

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grape_rl.cli.arguments import listed, parsed_arguments
from grape_rl.schema import nearest
from result_file import append_record, environment, read_records
from shapes import letters, model
from speed import data, growth_points
from speed.turns import GROWTH_MEASURE, run_side, write_rows
from speed.workloads import Workload

HERE = Path(__file__).resolve().parent


def main(arguments: Sequence[str]) -> None:
    """Run the command line.

    Raises:
        ValueError: an unknown command, flag or dimension.
    """
    if not arguments or "--help" in arguments:
        print(__doc__)
        return
    words, own, _ = parsed_arguments(arguments, ["small"], known=["only", "turns", "steps", "folder", "results"])
    if words not in (["run"], ["report"]):
        raise ValueError(f"name one of run and report, not {' '.join(words) or 'none'}")
    small, results = bool(own.get("small")), Path(str(own.get("results", HERE / "results" / "growth.jsonl")))
    if words == ["report"]:
        from speed.growth_page import report  # imports matplotlib, which only the report needs

        report(read_records(results), HERE.parent / "docs" / "benchmarks" / "growth.md")
        return
    if small and "results" not in own:
        raise ValueError("--small is a smoke test: give it a file of its own with --results")
    sizes = growth_points.SIZES
    names = listed(own.get("only", ",".join(sizes)))
    for name in names:
        if name not in sizes:
            raise ValueError(f"unknown dimension {name!r}{nearest(name, sizes)}; choose from {', '.join(sizes)}")
    steps = 2 if small else int(own.get("steps", 5))
    if steps < 2:
        raise ValueError(f"--steps {steps}: the first step does not count; give at least 2")
    folder = Path(str(own.get("folder", "runs/speed")))
    for turn in range(1 if small else int(own.get("turns", 3))):
        for name in names:
            for size in sizes[name][:2] if small else sizes[name]:
                measure_point(name, size, turn, steps, folder, results)


def measure_point(name: str, size: int, turn: int, steps: int, folder: Path, results: Path) -> None:
    """Measure one point and append its record, unless the file has it. The base is a point of every dimension."""
    point = growth_points.point_at(name, size)
    if any(record["point"] == point and record["turn"] == turn for record in read_records(results)):
        return
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        head = {"shape": growth_points.HEAD, "tokens": size}
        spec = head if name == "head" else step_spec(point, steps, folder, scratch)
        result = run_side(GROWTH_MEASURE, spec, scratch)
    append_record(results, {"point": point, "turn": turn, "steps": steps, **result, "where": environment()})
    print(name, size, {key: value for key, value in result.items() if key != "peak"}, flush=True)


def step_spec(point: Mapping[str, int], steps: int, folder: Path, scratch: Path) -> dict[str, Any]:
    """Specification of a point for ``speed.growth_measure``; writes its model and its prompts."""
    tokenizer, model_folder = letters(), folder / f"growth-{point['vocabulary']}"
    if not (model_folder / "tokenizer.json").is_file():
        model({**growth_points.SHAPE, "vocab_size": point["vocabulary"]}).save_pretrained(model_folder)
        tokenizer.save_pretrained(model_folder)
    rows = data.prompts(tokenizer, point["prompt"], point["batch"] * steps)
    sizes = (point["batch"], point["group"], point["prompt"], point["completion"])
    workload = Workload("growth", "grpo", "growth", *sizes)
    return workload.spec(model_folder, write_rows(scratch / "prompts.jsonl", rows), steps)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, RuntimeError) as error:
        sys.exit(f"{error}")
