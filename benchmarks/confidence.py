"""Does it help to weight a rubric's items by the critic's confidence in them? GRAPE with critics of known noise.

    python benchmarks/confidence.py run    [--arms NAMES] [--seeds 0,1,…] [--jobs 1] [--small]
    python benchmarks/confidence.py report

What was laid down before any of its results were seen:

The question. GRAPE (arXiv 2509.04501) weights each item by the critic's mean confidence in it. With critics that are
right more or less often, does the policy learn more of what is *true* at equal samples, than with weights of
importance alone (``off``)?

The set-up. The demo's tasks, from a model of its SFT phase (one a seed). Five critics judge whether the answer is
right, one its form and one its brevity; each item's verdict is the wrong way round at a rate of its own, 0.05 to
0.45, another one in each category (``noisy.FLIPPED``). What a critic says of its confidence is overconfident,
squeezed into about 0.75 to 1, off by a bias of each critic and category, and by a jitter of each verdict. A seed's
tasks, start, sampling seeds and verdicts are the same in every arm: the same response gets the same verdict.

The arms differ in the confidence alone, and ``clean`` in the noise:

    off                every item by its importance (power 0)
    raw                as the critic says it: the paper's GRAPE
    chance             2c − 1: what lies above a coin's ½
    calibrated         P(right | c), isotonic, from 20 labeled verdicts of each critic in each category, one curve
    calibrated_chance  2 P(right | c) − 1
    shuffled           calibrated_chance's, each category's dealt to its items at random, once a seed
    oracle             1 − 2 · the item's true flip rate
    clean              no noise, confidence 1: the ceiling

The measure: on held-out prompts after the last step, the true reward (6 correct + 1 format + 1 brevity, over 8,
without noise) and the true accuracy; beside them the true reward of the training responses, as a curve. The test:
each arm's mean difference to ``off``, paired by seed, with a 95 % interval of Student's t. The first comparison is
raw − off, the paper's claim; the others explain it, and their intervals are not corrected for being several. Every
seed that was begun and every arm is told. The learning rate is that which the benchmark of methods chose for grape
without noise; rates of noise and length were set by looking at ``off`` and ``clean`` alone, on a seed that is none of
the experiment's.
"""

import json
import multiprocessing
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import noisy
import online
from grape_rl import train
from grape_rl.cli.arguments import listed, parsed_arguments
from grape_rl.config.files import merge
from grape_rl.maths.advantage import group_relative
from grape_rl.rollout.evaluation import HeldOut
from grape_rl.run import Run
from measured import Record, append, key, records, where

HERE = Path(__file__).resolve().parent
ARMS = {
    "off": "one",
    "raw": "raw",
    "chance": "chance",
    "calibrated": "calibrated",
    "calibrated_chance": "calibrated_chance",
    "shuffled": "shuffled",
    "oracle": "oracle",
    "clean": "one",
}
"""Each arm with how its confidences are made."""
SEEDS = tuple(range(10))
STEPS, RATE, LABELS, SAMPLES = 60, 3e-4, 20, 8


@dataclass(frozen=True)
class Bench:
    """Where runs lie, where their results go, and whether they are only to see that all works."""

    folder: Path
    results: Path
    small: bool = False


def main(arguments: Sequence[str]) -> None:
    """Run what the command line asks for.

    Raises:
        ValueError: an unknown command, flag or arm.
    """
    if not arguments or "--help" in arguments:
        print(__doc__)
        return
    words, own, _ = parsed_arguments(arguments, ["small"], known=["arms", "seeds", "jobs", "folder", "results"])
    if len(words) != 1 or words[0] not in ("run", "report"):
        raise ValueError(f"name one of run and report, not {words or 'none'}")
    folder = Path(str(own.get("folder", "runs/benchmark")))
    bench = Bench(folder, Path(str(own.get("results", HERE / "results" / "confidence"))), bool(own.get("small")))
    if words[0] == "report":
        from confidence_page import report  # matplotlib, which nothing else needs

        report(bench.results / "runs.jsonl", HERE.parent / "docs" / "benchmarks" / "confidence.md")
        return
    arms = listed(own["arms"]) if "arms" in own else list(ARMS)
    if unknown := set(arms) - ARMS.keys():
        raise ValueError(f"unknown arm {sorted(unknown)[0]!r}: there are {', '.join(ARMS)}")
    seeds = [int(seed) for seed in listed(own["seeds"])] if "seeds" in own else list(SEEDS)
    # Seeds outermost: what is done when it is stopped has every arm of some seeds.
    side_by_side(bench, [(arm, seed) for seed in seeds for arm in arms], int(own.get("jobs", 1)))


def side_by_side(bench: Bench, runs: Sequence[tuple[str, int]], jobs: int) -> None:
    """The runs that are not in the results yet, ``jobs`` at a time, each in a process of its own."""
    file = bench.results / "runs.jsonl"
    done = {key(record) for record in records(file)}
    left = [run for run in runs if key(named(*run)) not in done]
    for seed in dict.fromkeys(seed for _, seed in left):
        online.start(online.Bench(bench.folder, bench.results, bench.small), seed)
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        for ended in as_completed([pool.submit(once, bench, *run) for run in left]):
            record = ended.result()
            append(file, record)
            print(f"{record['set']['arm']}, seed {record['seed']}: {record['seconds']:.0f} s", flush=True)


def named(arm: str, seed: int) -> Record:
    """What tells a run from all others."""
    return {"method": "grape", "seed": seed, "set": {"arm": arm}}


def once(bench: Bench, arm: str, seed: int) -> Record:
    """One run's result."""
    torch.set_num_threads(1)  # these models are too small for more
    home = bench.folder / f"confidence-{arm}-{seed}-{time.time_ns()}"
    try:
        return {**named(arm, seed), **measured(bench, arm, seed, home), "where": where()}
    finally:
        shutil.rmtree(home, ignore_errors=True)


def measured(bench: Bench, arm: str, seed: int, home: Path) -> Record:
    """Train one arm on one seed, and say what is true of its responses, in training and on held-out prompts."""
    began = time.process_time()
    model = online.start(online.Bench(bench.folder, bench.results, bench.small), seed)
    written(home, arm, seed)
    given: dict[str, Any] = {
        "steps": 2 if bench.small else STEPS,
        "reward": {"rubric": str(home / "rubric.json"), "allow": ["noisy.py"]},
        "optimizer": {"learning_rate": RATE},
        "options": {"power": 0.0 if arm in ("off", "clean") else 1.0},
        "evaluation": {"samples": 1 if bench.small else SAMPLES},
        "log_kl": False,
    }
    small = {"data": online.SMALL["sft"]["data"]} if bench.small else {}
    config = online.settings("grape", seed, merge(given, small), model, home / "run")
    with online.quiet():
        run = train(config)
    told = {"before": true_held_out(run.evaluations[0]), "after": true_held_out(run.evaluations[config.steps])}
    return {"held_out": told, "curve": curves(run, config.group_size), "seconds": time.process_time() - began}


def written(home: Path, arm: str, seed: int) -> None:
    """The rubric of a run, with the critics' file and what is set on them beside it."""
    home.mkdir(parents=True)
    knots, heights = noisy.fitted(seed, LABELS)
    critics = noisy.Critics(seed, ARMS[arm], arm != "clean", knots, heights)
    (home / "critics.json").write_text(json.dumps(asdict(critics)))
    (home / "rubric.json").write_text(json.dumps(noisy.rubric()))
    shutil.copy(HERE / "noisy.py", home / "noisy.py")


def true_held_out(told: HeldOut) -> dict[str, float]:
    """The true items' means over all held-out responses, and the true reward made of them."""
    found: dict[str, float] = {}
    for name in noisy.TRUE:
        items = [each for each in told.items if each.item == name]
        found[name] = sum(each.mean * each.graded for each in items) / sum(each.graded for each in items)
    return found | {"reward": true_reward(found), "judged": told.reward}


def true_reward(scores: dict[str, float]) -> float:
    """The reward without noise, of the true items' scores.

    >>> true_reward({"correct": 1, "format": 1, "brevity": 0})
    0.875
    """
    return sum(weight * scores[name] for name, weight in noisy.TRUE.items()) / sum(noisy.TRUE.values())


def curves(run: Run, group_size: int) -> dict[str, list[float]]:
    """Step by step: the responses' mean true reward, accuracy, and how their advantage goes with the true one."""
    found: dict[str, list[float]] = {"reward": [], "correct": [], "agreement": []}
    for path in sorted((run.folder / "rollouts").glob("step-*.jsonl")):
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        scores = [{each["item"]: each["score"] for each in line["verdicts"]} for line in lines]
        true = torch.tensor([true_reward(each) for each in scores], dtype=torch.float64)
        group = torch.arange(len(lines)) // group_size
        advantage = torch.tensor([line["advantage"] for line in lines], dtype=torch.float64)
        found["reward"].append(float(true.mean()))
        found["correct"].append(statistics.fmean(each["correct"] for each in scores))
        found["agreement"].append(correlation(advantage, group_relative(true, group)))
    return found


def correlation(one: torch.Tensor, other: torch.Tensor) -> float:
    """How two advantages go together, −1 to 1: both have the mean 0 in every group."""
    return float((one * other).sum() / (one.norm() * other.norm()))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ValueError as error:
        sys.exit(f"{error}")
