"""``grape demo``: the main job on built-in tasks, from random weights to a model trained by GRAPE."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grape_rl.cli.arguments import parsed_arguments

HELP = """usage: grape demo [--seed N] [--output FOLDER] [--small]

Builds a small language model and its tokenizer, teaches it three kinds of task of reasoning-gym from an imperfect
teacher's demonstrations (SFT), then trains it by GRAPE on a rubric. Prints held-out results before and after.

--seed    data, weights and sampling (0); several, "0,1,2", run one after the other
--output  the folder (runs/demo-DATE-TIME)
--small   few steps, to see that it works: the results mean nothing then
"""

SMALL = {
    "sft": {"steps": 20, "data": {"rows": 60, "held_out_rows": 12}, "evaluation": {"samples": 1}},
    "grape": {
        "steps": 4,
        "prompts_per_step": 6,
        "data": {"rows": 60, "held_out_rows": 12},
        "evaluation": {"samples": 1},
    },
}


def main(arguments: Sequence[str]) -> None:
    """Run the demo for each seed, and print what came of it."""
    if "--help" in arguments or "-h" in arguments:
        print(HELP)
        return
    words, own, _ = parsed_arguments(arguments, ["small"], known=["seed", "output"])
    if words:
        raise ValueError(f"grape demo takes no words, and got {words[0]!r}")
    try:
        seeds = [int(seed) for seed in str(own.get("seed", "0")).split(",")]
    except ValueError:
        raise ValueError(f"--seed {own['seed']}: should be whole numbers, as in --seed 0,1,2") from None
    if min(seeds) < 0:
        raise ValueError(f"--seed {own['seed']}: a seed must be at least 0")
    folder = Path(str(own.get("output", time.strftime("runs/demo-%Y%m%d-%H%M%S"))))
    if folder.exists():
        raise ValueError(f"{folder}: is there already; name a new folder with --output")
    results = [demonstration(seed, folder / f"seed-{seed}", bool(own.get("small"))) for seed in seeds]
    print_results(seeds, results, folder)


def demonstration(seed: int, folder: Path, small: bool) -> Mapping[str, Any]:
    """SFT and GRAPE of one seed, into ``folder``: the held-out accuracy of each and the seconds it took."""
    from grape_rl.cli.results import print_held_out
    from grape_rl.cli.train import resolved
    from grape_rl.run import train

    began = time.perf_counter()
    shared: dict[str, Any] = {"seed": seed}
    sft = train(resolved("sft", "demo", _over(shared, {"output": str(folder / "sft")}, SMALL["sft"] if small else {})))
    start = {"output": str(folder / "grape"), "model": {"name": str(sft.model)}}
    grape = train(resolved("grape", "demo", _over(shared, start, SMALL["grape"] if small else {})))
    first, last = grape.evaluations[min(grape.evaluations)], grape.evaluations[max(grape.evaluations)]
    print()
    print_held_out(grape.evaluations, {min(grape.evaluations): "SFT", max(grape.evaluations): "GRAPE"})
    result = {
        "seed": seed,
        "seconds": time.perf_counter() - began,
        "accuracy": {"sft": first.mean("correct"), "grape": last.mean("correct")},
        "reward": {"sft": first.reward, "grape": last.reward},
        "held_out": {"sft": first.as_json(), "grape": last.as_json()},
    }
    (folder / "results.json").write_text(json.dumps(result, indent=1))
    return result


def print_results(seeds: Sequence[int], results: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """The held-out accuracy of every seed, and where the runs lie."""
    from grape_rl.training.display import table

    rows: list[list[str | float | int]] = []
    for seed, result in zip(seeds, results, strict=True):
        before, after = result["accuracy"]["sft"], result["accuracy"]["grape"]
        change = f"{100 * (after - before):+.1f} points"
        rows.append([seed, f"{before:.1%}", f"{after:.1%}", change, f"{result['seconds']:.0f} s"])
    print()
    table("held-out accuracy, mean over the categories", ["seed", "SFT", "GRAPE", "change", "time"], rows)
    print(f"\nrun: {folder}")


def _over(*layers: dict[str, Any]) -> dict[str, Any]:
    from grape_rl.config.files import merge

    data: dict[str, Any] = {}
    for layer in layers:
        data = merge(data, layer)
    return data
