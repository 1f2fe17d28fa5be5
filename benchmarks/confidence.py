"""Experiment: weighting rubric items by the critic's confidence (GRAPE), with simulated critics of known error rates.

    python benchmarks/confidence.py run    [--arms NAMES] [--seeds 0,1,…] [--jobs 1] [--small]
    python benchmarks/confidence.py report

The protocol was fixed before any result was known:

Question. GRAPE (arXiv 2509.04501) weights each item by the critic's mean confidence in it. If critics differ in
accuracy, does the policy learn more of the *true* reward from the same number of samples than with the items'
importance alone (``off``)?

Setup. The demo tasks, from a model of the demo's SFT phase, one a seed. Five critics judge correctness, one format and
one brevity. Each item's verdict is flipped at a rate of its own, 0.05 to 0.45, which differs between categories
(``noisy.FLIP_RATES``). A critic's stated confidence is overconfident: compressed into about 0.75 to 1, with a bias per
critic and category and a jitter per verdict. Tasks, initial model, sampling seeds and verdicts of a seed are equal in
all arms: the same response gets the same verdict.

Arms. They differ in the confidence alone; ``clean`` also has no noise:

    off                every item by its importance (power 0)
    raw                the stated confidence c: the paper's GRAPE
    chance             2c − 1: corrected for guessing between two labels
    calibrated         P(right | c), isotonic regression on 20 labeled verdicts per critic and category, one curve
    calibrated_chance  2 P(right | c) − 1
    shuffled           those of calibrated_chance, randomly permuted among the items of a category, once a seed
    oracle             1 − 2 · the item's true flip rate
    clean              no noise, confidence 1: the upper bound

Measures. True reward (6 correct + 1 format + 1 brevity, over 8, without noise) and true accuracy on held-out prompts
after the last step, and the curve of the true reward of the training responses.

Test. Each arm's mean difference to ``off``, paired by seed, with a 95 % interval of Student's t. The primary comparison
is raw − off, the paper's claim. The further comparisons explain it, and their intervals are not corrected for multiple
testing. Every started seed and every arm is reported. The learning rate is the one that the benchmark of methods
selected for grape without noise. The noise rates and the length were chosen by looking at ``off`` and ``clean`` alone,
on a seed outside the experiment.
"""

import json
import multiprocessing
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import noisy
import online
from arms import ARMS, LABELS, advantage_correlation, true_reward
from grape_rl import train
from grape_rl.cli.arguments import listed, parsed_arguments
from grape_rl.config.files import merge
from grape_rl.maths.advantage import group_relative
from grape_rl.rollout.evaluation import HeldOut
from grape_rl.run import Run
from online import Workspace
from result_file import Record, append_record, environment, read_records, run_key

HERE = Path(__file__).resolve().parent
SEEDS = tuple(range(10))
STEPS, RATE, SAMPLES = 60, 3e-4, 8


def main(arguments: Sequence[str]) -> None:
    """Run the command line.

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
    results = Path(str(own.get("results", HERE / "results" / "confidence")))
    workspace = Workspace(folder, results / "runs.jsonl", bool(own.get("small")))
    if words[0] == "report":
        from confidence_page import report  # imports matplotlib, which only the report needs

        report(workspace.results, HERE.parent / "docs" / "benchmarks" / "confidence.md")
        return
    arms = listed(own["arms"]) if "arms" in own else list(ARMS)
    if unknown := set(arms) - ARMS.keys():
        raise ValueError(f"unknown arm {sorted(unknown)[0]!r}; choose from {', '.join(ARMS)}")
    seeds = [int(seed) for seed in listed(own["seeds"])] if "seeds" in own else list(SEEDS)
    # Seeds outermost: an interrupted experiment has all arms of its first seeds.
    run_all(workspace, [(arm, seed) for seed in seeds for arm in arms], int(own.get("jobs", 1)))


def run_all(workspace: Workspace, runs: Sequence[tuple[str, int]], jobs: int) -> None:
    """Run the (arm, seed) pairs without a result, ``jobs`` in parallel, each in a process of its own."""
    done = {run_key(record) for record in read_records(workspace.results)}
    missing = [run for run in runs if run_key(run_identity(*run)) not in done]
    for seed in dict.fromkeys(seed for _, seed in missing):
        online.initial_model(workspace, seed)
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        for ended in as_completed([pool.submit(run_arm, workspace, *run) for run in missing]):
            record = ended.result()
            append_record(workspace.results, record)
            print(f"{record['set']['arm']}, seed {record['seed']}: {record['seconds']:.0f} s", flush=True)


def run_identity(arm: str, seed: int) -> Record:
    """The fields that identify a run."""
    return {"method": "grape", "seed": seed, "set": {"arm": arm}}


def run_arm(workspace: Workspace, arm: str, seed: int) -> Record:
    """Record of one run."""
    torch.set_num_threads(1)  # these models are too small for more
    home = workspace.folder / f"confidence-{arm}-{seed}-{time.time_ns()}"
    try:
        return {**run_identity(arm, seed), **measured(workspace, arm, seed, home), "where": environment()}
    finally:
        shutil.rmtree(home, ignore_errors=True)


def measured(workspace: Workspace, arm: str, seed: int, home: Path) -> Record:
    """Train one arm on one seed, and return the true scores of its training and held-out responses."""
    began = time.process_time()
    model = online.initial_model(workspace, seed)
    write_rubric(home, arm, seed)
    given: dict[str, Any] = {
        "steps": 2 if workspace.small else STEPS,
        "reward": {"rubric": str(home / "rubric.json"), "allow": ["noisy.py"]},
        "optimizer": {"learning_rate": RATE},
        "options": {"power": 0.0 if arm in ("off", "clean") else 1.0},
        "evaluation": {"samples": 1 if workspace.small else SAMPLES},
        "log_kl": False,
    }
    small = {"data": online.SMALL["sft"]["data"]} if workspace.small else {}
    config = online.settings("grape", seed, merge(given, small), model, home / "run")
    with online.quiet():
        run = train(config)
    held_out = {"before": true_scores(run.evaluations[0]), "after": true_scores(run.evaluations[config.steps])}
    return {"held_out": held_out, "curve": curves(run, config.group_size), "seconds": time.process_time() - began}


def write_rubric(home: Path, arm: str, seed: int) -> None:
    """Write the rubric of a run, the module of the critics and their settings into ``home``."""
    home.mkdir(parents=True)
    knots, heights = noisy.fitted(seed, LABELS)
    critics = noisy.Critics(seed, ARMS[arm], arm != "clean", knots, heights)
    (home / "critics.json").write_text(json.dumps(asdict(critics)))
    (home / "rubric.json").write_text(json.dumps(noisy.rubric()))
    shutil.copy(HERE / "noisy.py", home / "noisy.py")


def true_scores(result: HeldOut) -> dict[str, float]:
    """Mean true scores over all held-out responses, the true reward, and the reward from the noisy critics."""
    scores: dict[str, float] = {}
    for name in noisy.TRUE:
        items = [item for item in result.items if item.item == name]
        scores[name] = sum(item.mean * item.graded for item in items) / sum(item.graded for item in items)
    return scores | {"reward": true_reward(scores), "judged": result.reward}


def curves(run: Run, group_size: int) -> dict[str, list[float]]:
    """Curves over steps: true reward, accuracy, and correlation of the advantage with the true advantage."""
    result: dict[str, list[float]] = {"reward": [], "correct": [], "agreement": []}
    for path in sorted((run.folder / "rollouts").glob("step-*.jsonl")):
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        scores = [{verdict["item"]: verdict["score"] for verdict in line["verdicts"]} for line in lines]
        true = torch.tensor([true_reward(items) for items in scores], dtype=torch.float64)
        group = torch.arange(len(lines)) // group_size
        advantage = torch.tensor([line["advantage"] for line in lines], dtype=torch.float64)
        result["reward"].append(float(true.mean()))
        result["correct"].append(statistics.fmean(items["correct"] for items in scores))
        result["agreement"].append(advantage_correlation(advantage, group_relative(true, group)))
    return result


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ValueError as error:
        sys.exit(f"{error}")
