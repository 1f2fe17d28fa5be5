"""``grape demo``: SFT and GRAPE on built-in tasks, from random weights."""

import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grape_rl.cli.arguments import parsed_arguments

HELP = """usage: grape demo [--seed N] [--output FOLDER] [--small]

Build a small language model and its tokenizer, teach it three kinds of reasoning-gym tasks from an imperfect teacher's
demonstrations (SFT), then train it with GRAPE on a rubric. Prints held-out results before and after.

options:
  --seed N         seed of the data, the weights and the sampling (0); several, as in 0,1,2, run one after the other
  --output FOLDER  folder of the results (runs/demo-DATE-TIME)
  --small          run only a few steps, to check that everything works; the results are meaningless
"""

SMALL_SETTINGS = {
    "sft": {"steps": 20, "data": {"rows": 60, "held_out_rows": 12}, "evaluation": {"samples": 1}},
    "grape": {
        "steps": 4,
        "prompts_per_step": 6,
        "data": {"rows": 60, "held_out_rows": 12},
        "evaluation": {"samples": 1},
    },
}
"""Settings of ``--small`` for each of the two runs."""


def main(arguments: Sequence[str]) -> None:
    """Run the demo for each seed, print the results and the next commands to try."""
    if "--help" in arguments or "-h" in arguments:
        print(HELP, end="")
        return
    words, flags, _ = parsed_arguments(arguments, ["small"], known=["seed", "output"])
    if words:
        raise ValueError(f"grape demo takes no words, got {words[0]!r}")
    try:
        seeds = [int(seed) for seed in str(flags.get("seed", "0")).split(",")]
    except ValueError:
        raise ValueError(f"--seed {flags['seed']}: should be whole numbers, as in --seed 0,1,2") from None
    if min(seeds) < 0:
        raise ValueError(f"--seed {flags['seed']}: a seed must be at least 0")
    folder = Path(str(flags.get("output", time.strftime("runs/demo-%Y%m%d-%H%M%S"))))
    if folder.exists():
        raise ValueError(f"{folder}: already exists; name a new folder with --output")
    results = [demonstration(seed, folder / f"seed-{seed}", bool(flags.get("small"))) for seed in seeds]
    print_results(seeds, results, folder)
    print(next_commands(folder / f"seed-{seeds[0]}"))


def demonstration(seed: int, folder: Path, small: bool) -> Mapping[str, Any]:
    """Train one seed by SFT and GRAPE into ``folder``: held-out results of both, and the seconds they took."""
    from grape_rl.cli.example import print_graded_example
    from grape_rl.cli.results import print_held_out
    from grape_rl.cli.train import resolve_config
    from grape_rl.run import train

    began = time.perf_counter()
    sft_settings = {"seed": seed, "output": str(folder / "sft")}
    sft = train(resolve_config("sft", "demo", _merged(sft_settings, SMALL_SETTINGS["sft"] if small else {})))
    grape_settings = {"seed": seed, "output": str(folder / "grape"), "model": {"name": str(sft.model)}}
    grape = train(resolve_config("grape", "demo", _merged(grape_settings, SMALL_SETTINGS["grape"] if small else {})))
    first, last = grape.evaluations[min(grape.evaluations)], grape.evaluations[max(grape.evaluations)]
    print()
    print_held_out(grape.evaluations, {min(grape.evaluations): "SFT", max(grape.evaluations): "GRAPE"})
    print_graded_example(grape)
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
    """Print the held-out accuracy of every seed, and the folder of the runs."""
    from grape_rl.training.display import table

    rows: list[list[str | float | int]] = []
    for seed, result in zip(seeds, results, strict=True):
        before, after = result["accuracy"]["sft"], result["accuracy"]["grape"]
        change = f"{100 * (after - before):+.1f} points"
        rows.append([seed, f"{before:.1%}", f"{after:.1%}", change, f"{result['seconds']:.0f} s"])
    print()
    table("held-out accuracy, mean over the categories", ["seed", "SFT", "GRAPE", "change", "time"], rows)
    print(f"\nrun: {folder}")


def next_commands(run: Path) -> str:
    """Two commands to try after the demo: read about GRAPE, and train the demo's SFT model with another method."""
    grape = "grape" if shutil.which("grape") else sys.argv[0]
    return (
        "\nnext, read how GRAPE works, or train the SFT model with another method:\n"
        f"  {grape} explain grape\n"
        f"  {grape} train grpo --config demo --model.name {run / 'sft' / 'checkpoints' / 'last'}"
    )


def _merged(*layers: dict[str, Any]) -> dict[str, Any]:
    from grape_rl.config.files import merge

    data: dict[str, Any] = {}
    for layer in layers:
        data = merge(data, layer)
    return data
