"""Accuracy of the cost estimate: each case is estimated as by ``grape train … --dry-run``, then run.

    python benchmarks/estimate.py [CASE ...] --data FOLDER [--folder runs/speed] [--steps 5]

FOLDER has GSM8K (see speed/data.py); the models are built under --folder. The script prints the estimate of each case,
the measurement, and their ratio. Estimate and run are processes of their own: the memory is the peak of the process,
and the time of a step is the median over all steps but the first. Responses are random text of the maximum length,
except for ``tiny``, where one token in 81 ends the response: the estimate assumes the maximum length.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from grape_rl import train
from grape_rl.estimate.plan import estimated
from grape_rl.model.load import no_progress_bars
from grape_rl.validation import load_config
from speed.ours import settings
from speed.turns import Bench, prepared_model, prepared_rows, write_rows
from speed.workloads import Workload

HERE = Path(__file__).resolve().parent
GRPO = Workload("grpo", "grpo", "wide", 4, 8, 256, 64)
SFT = Workload("sft", "sft", "gsm", 16, max_length=512)
CASES: dict[str, tuple[Workload, dict[str, Any]]] = {
    "tiny": (replace(GRPO, shape="tiny"), {}),
    "wide": (GRPO, {}),
    "gsm": (replace(GRPO, shape="gsm"), {}),
    "wide-reference": (GRPO, {"log_kl": True}),
    "wide-bf16": (replace(GRPO, bf16=True), {}),
    "wide-ppo": (GRPO, {"method": "ppo"}),
    "sft": (SFT, {}),
    "sft-small": (replace(SFT, max_length=1024, tokens_per_microbatch=1024), {}),
}
"""Each case: a workload, and settings that a workload does not have."""


def case_config(case: str, bench: Bench, folder: Path) -> dict[str, Any]:
    """Configuration of a case; writes its data into ``folder``."""
    workload, extra = CASES[case]
    model = prepared_model(workload.shape, bench)
    rows = write_rows(folder / "rows.jsonl", prepared_rows(workload, bench, model))
    return settings(workload.spec(model, rows, bench.steps), folder / "run") | extra


def estimate(config: dict[str, Any]) -> dict[str, Any]:
    """Estimate of a run."""
    with no_progress_bars():
        cost = estimated(load_config(config))
    return {"memory": dict(cost.memory), "seconds": dict(cost.seconds), "text": str(cost)}


def measure(config: dict[str, Any]) -> dict[str, Any]:
    """Peak memory and seconds a step of a run in this process."""
    run = train(config)
    times = [metrics["time"] for metrics in run.metrics]
    timed = [name for name in run.metrics[-1] if name.endswith("_seconds")]
    return {
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        "seconds": statistics.median(after - before for before, after in pairwise(times)),
        "parts": {name: statistics.median(metrics[name] for metrics in run.metrics[1:]) for name in timed},
        "length": statistics.mean(metrics.get("length", 0.0) for metrics in run.metrics),
    }


def main() -> None:
    """Print estimate, measurement and ratio of each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", choices=[[], *CASES], default=["tiny", "wide", "sft"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--folder", type=Path, default=Path("runs/speed"))
    parser.add_argument("--steps", type=int, default=5)
    given = parser.parse_args()
    bench = Bench(None, given.data.resolve(), given.folder.resolve(), given.steps)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for case in given.cases:
        expected, measured = (in_process(function, case, bench) for function in ("estimate", "measure"))
        memory, seconds = sum(expected["memory"].values()), sum(expected["seconds"].values())
        parts = ", ".join(f"{name.removesuffix('_seconds')} {value:.3g}" for name, value in measured["parts"].items())
        print(f"\n{case}: {expected['text']}")
        size, length = measured["memory"] / 1e9, measured["length"]
        print(f"  measured: {size:.2f} GB, {measured['seconds']:.3g} s ({parts}), length {length:.0f}")
        ratios = f"memory {memory / measured['memory']:.2f}, time {seconds / measured['seconds']:.2f}"
        print(f"  estimate / measured: {ratios}", flush=True)


def in_process(function: str, case: str, bench: Bench) -> dict[str, Any]:
    """Result of ``estimate`` or ``measure`` in a process of its own, so that the peak memory belongs to it alone."""
    code = f"import json, sys, estimate; print(json.dumps(estimate.{function}(json.loads(sys.argv[1]))))"
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", code, json.dumps(case_config(case, bench, Path(folder)))]
        process = subprocess.run(command, cwd=HERE, capture_output=True, text=True)
    if process.returncode:
        sys.exit(f"{case}: {process.stderr[-2000:]}")
    return json.loads(process.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
