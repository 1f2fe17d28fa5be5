"""Benchmark of the methods that sample, on the demo tasks: equal initial models, prompts and numbers of responses.

One run is ``STEPS`` steps of ``PROMPTS`` prompts with ``GROUP`` responses each. The initial model is the result of the
demo's SFT phase, one a seed: the seed also draws the tasks, and held-out tasks of one seed are training tasks of
another. The settings in ``grid`` are selected on the first seed, by the reward over the last quarter of the steps.
"""

import contextlib
import inspect
import io
import math
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from grape_rl import ALGORITHMS, train
from grape_rl.cli.train import resolve_config
from grape_rl.config.config import Config
from grape_rl.config.files import merge
from grape_rl.maths.divergence import k3
from grape_rl.methods import Method, method_options, resolve_options
from grape_rl.model.forward import ForwardContext
from grape_rl.model.load import load
from grape_rl.model.reference_logprobs import reference_logprobs
from grape_rl.model.sampler import SamplingParams, sample
from grape_rl.run import Run
from grape_rl.setup.policy import make_policy
from grape_rl.setup.sampling import sampling_prompts
from grape_rl.validation import load_rows
from result_file import Record, append_record, environment, read_records, run_key

STEPS, PROMPTS, GROUP = 32, 16, 8
RATES = (1e-4, 3e-4, 1e-3)
DELTAS = (0.003, 0.01, 0.03)
ONLINE = ("dpo", "ipo", "rpo", "simpo")
"""Losses whose online forms run by default: logistic, squared, reward-aware, and reference-free."""
NOT_RECORDED = ("phase", "step", "time", "reward_std", "missing", "missing_verdicts", "learning_rate")
"""Metrics that a record leaves out, in addition to seconds and items."""
SMALL = {"sft": {"steps": 4, "data": {"rows": 60, "held_out_rows": 6}}, "online": {"steps": 1}}
"""Settings of a smoke test."""


def sampling_methods() -> list[str]:
    """Names of the methods that learn from rewards of their own responses; of the online forms only ``ONLINE``."""
    sampled = {name: method for name, method in ALGORITHMS.items() if method.source.samples}
    return [name for name, method in sampled.items() if not method.online_of or method.online_of in ONLINE]


def grid(method: Method) -> list[dict[str, Any]]:
    """Settings to try on a method: learning rates, or step sizes if its update has no optimizer."""
    if "optimizer" in inspect.signature(method.update).parameters:
        return [{"optimizer": {"learning_rate": rate}} for rate in RATES]
    return [{"options": {"delta": delta}} for delta in DELTAS] if "delta" in method_options(method) else [{}]


@dataclass(frozen=True)
class Workspace:
    """Folder for runs in progress, result file (or folder), and True for a smoke test."""

    folder: Path
    results: Path
    small: bool = False


def run_method(workspace: Workspace, seeds: list[int], method: str) -> None:
    """Run the method's grid on the first seed, then the best setting on all further seeds; skips recorded runs."""
    torch.set_num_threads(1)  # these models are too small for more
    tried = [recorded_run(workspace, method, seeds[0], given) for given in grid(ALGORITHMS[method])]
    for seed in seeds[1:]:
        recorded_run(workspace, method, seed, best(tried)["set"])


def best(tried: list[Record]) -> Record:
    """Run with the highest reward over the last quarter of its steps; a failed run ranks last."""
    return max(tried, key=last_reward)


def last_reward(record: Record) -> float:
    """Mean training reward over the last quarter of a run's steps; −inf for a failed run."""
    rewards = [reward for reward in record.get("curve", {}).get("reward", []) if reward is not None]
    last = rewards[-max(1, len(rewards) // 4) :]
    return math.fsum(last) / len(last) if last else -math.inf


def initial_model(workspace: Workspace, seed: int) -> Path:
    """Folder of the model after the demo's SFT phase with this seed; trains it if it does not exist."""
    home = workspace.folder / f"start-{seed}"
    model = home / "checkpoints" / "last"
    if not model.exists():
        shutil.rmtree(home, ignore_errors=True)
        given: dict[str, Any] = {"seed": seed, "output": str(home), "checkpoint_every": 0, "device": "cpu"}
        given |= {"evaluation": {"samples": 1}}
        with quiet():
            train(resolve_config("sft", "demo", merge(given, SMALL["sft"] if workspace.small else {})))
    return model


def recorded_run(workspace: Workspace, method: str, seed: int, given: Mapping[str, Any]) -> Record:
    """Record of one run, from the result file, or from a new run that is appended to the file."""
    run = {"method": method, "seed": seed, "set": dict(given)}
    for record in read_records(workspace.results):
        if run_key(record) == run_key(run):
            return record
    model = initial_model(workspace, seed)
    home = workspace.folder / f"{method}-{seed}-{time.time_ns()}"
    try:
        with quiet():
            config = settings(method, seed, given, model, home, workspace.small)
            record = run | measured(config, model) | {"where": environment()}
    except RuntimeError as error:  # a non-finite gradient is a result too
        record = run | {"failed": str(error), "where": environment()}
    finally:
        shutil.rmtree(home, ignore_errors=True)
    append_record(workspace.results, record)
    print(f"{method}, seed {seed}, {given}: {record.get('failed') or f'reward {last_reward(record):.3f}'}", flush=True)
    return record


def settings(method: str, seed: int, given: Mapping[str, Any], model: Path, home: Path, small: bool = False) -> Config:
    """Demo configuration of a method, with the settings that all methods of the benchmark share."""
    shared: dict[str, Any] = {
        "model": {"name": str(model)},
        "steps": STEPS,
        "prompts_per_step": PROMPTS,
        "group_size": GROUP,
        # Constant: the first n tokens of a run are then the same as a run that was planned for n tokens.
        "optimizer": {"warmup": 3, "schedule": "constant"},
        "checkpoint_every": 0,
        "seed": seed,
        "output": str(home),
        "device": "cpu",
    }
    if small:
        shared = merge(shared, {"data": SMALL["sft"]["data"]} | SMALL["online"])
    return resolve_config(method, "demo", merge(shared, dict(given)))


def measured(config: Config, model: Path) -> Record:
    """Train, and return the curves over steps, the held-out results, the final KL and entropy, and the CPU seconds."""
    began = time.process_time()
    run = train(config)
    seconds = time.process_time() - began
    steps = run.metrics
    names = [n for n in dict.fromkeys(n for metrics in steps for n in metrics) if not n.startswith("item/")]
    names = [n for n in names if n not in NOT_RECORDED and "seconds" not in n]
    curve = {n: [metrics.get(n, math.nan) for metrics in steps] for n in names}
    evaluations = {"before": run.evaluations[0], "after": run.evaluations[config.steps]}
    held_out = {
        when: {"reward": result.reward, "length": result.length, "truncated": result.truncated}
        | {item: result.mean(item) for item in dict.fromkeys(i.item for i in result.items)}
        for when, result in evaluations.items()
    }
    return {"curve": curve, "held_out": held_out, "end": final_policy(run, model), "seconds": seconds}


def final_policy(run: Run, model: Path) -> dict[str, float]:
    """Entropy of the trained policy on held-out prompts, and its KL (k3) from the initial model, in nats per token.

    Both are over all tokens of its responses, for every method alike. A run's own entropy metric covers only the
    responses in the update.
    """
    config = run.config
    cpu = torch.device("cpu")
    trained = make_policy(*load(str(run.model), cpu))
    method = ALGORITHMS[config.method]
    sampling = SamplingParams(**config.sampling.model_dump(), generation_batch_size=config.generation_batch_size)
    _, test_rows = load_rows(config, method, resolve_options(method, config.options))
    prompts = sampling_prompts(test_rows, trained, sampling.max_tokens, "held-out data")
    rollout = sample(trained.model, [p.tokens for p in prompts], 2, sampling, trained.end_tokens, config.seed)
    reference = reference_logprobs(
        load(str(model), cpu)[0], ForwardContext(config.tokens_per_microbatch, temperature=sampling.temperature)
    )
    kl = k3(rollout.behavior_logp, reference(rollout))[rollout.mask].mean()
    return {"entropy": float(-rollout.behavior_logp[rollout.mask].mean()), "kl": float(kl)}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress the output of a run."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
