"""Every method that samples, on the demo's tasks: the same start, the same prompts, as many responses.

One run is ``STEPS`` steps of ``PROMPTS`` prompts with ``GROUP`` responses each. All start from a model of the demo's
SFT phase: one for each seed, for the seed draws the tasks too, and what one seed holds out another trains on. What is
set on a method beside that (``grid``) is chosen on the first seed, by the reward of the last quarter of the steps.
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
from grape_rl.model.sampler import SamplingParams, sample
from grape_rl.rollout.source import reference_logprobs
from grape_rl.run import Run
from grape_rl.setup.policy import make_policy
from grape_rl.setup.sampling import sampling_prompts
from grape_rl.validation import load_rows
from measured import Record, append, key, records, where

STEPS, PROMPTS, GROUP = 32, 16, 8
RATES = (1e-4, 3e-4, 1e-3)
DELTAS = (0.003, 0.01, 0.03)
ONLINE = ("dpo", "ipo", "rpo", "simpo")
"""The losses whose online forms are run unasked: a logistic, a square, one of rewards, one without a reference."""
LEFT_OUT = ("phase", "step", "time", "reward_std", "missing", "learning_rate")
SMALL = {"sft": {"steps": 4, "data": {"rows": 60, "held_out_rows": 6}}, "online": {"steps": 1}}
"""What makes a run of seconds, to see that it works."""


def sampling_methods() -> list[str]:
    """The rows of the table that learn from rewards of their own responses; of online forms those of ``ONLINE``."""
    sampled = {name: row for name, row in ALGORITHMS.items() if row.source.samples}
    return [name for name, row in sampled.items() if not row.online_of or row.online_of in ONLINE]


def grid(row: Method) -> list[dict[str, Any]]:
    """What is tried on a method: learning rates, or where its update has none, the size of its step."""
    if "optimizer" in inspect.signature(row.update).parameters:
        return [{"optimizer": {"learning_rate": rate}} for rate in RATES]
    return [{"options": {"delta": delta}} for delta in DELTAS] if "delta" in method_options(row) else [{}]


@dataclass(frozen=True)
class Bench:
    """Where runs lie, where their results go, and whether they are only to see that all works."""

    folder: Path
    results: Path
    small: bool = False


def run_method(bench: Bench, seeds: list[int], method: str) -> None:
    """Run what is not in the results yet: the method's grid on the first seed, then the best of it on the others."""
    torch.set_num_threads(1)  # these models are too small for more
    tried = [once(bench, method, seeds[0], given) for given in grid(ALGORITHMS[method])]
    for seed in seeds[1:]:
        once(bench, method, seed, best(tried)["set"])


def best(tried: list[Record]) -> Record:
    """The run with the highest reward over the last quarter of its steps; one that failed is worse than any."""
    return max(tried, key=last_reward)


def last_reward(record: Record) -> float:
    """The mean training reward over the last quarter of a run's steps; −inf for a run that failed."""
    rewards = [each for each in record.get("curve", {}).get("reward", []) if each is not None]
    last = rewards[-max(1, len(rewards) // 4) :]
    return math.fsum(last) / len(last) if last else -math.inf


def start(bench: Bench, seed: int) -> Path:
    """The model of the demo's SFT phase with this seed, trained where it is not there yet."""
    home = bench.folder / f"start-{seed}"
    model = home / "checkpoints" / "last"
    if not model.exists():
        shutil.rmtree(home, ignore_errors=True)
        given: dict[str, Any] = {"seed": seed, "output": str(home), "checkpoint_every": 0, "device": "cpu"}
        given |= {"evaluation": {"samples": 1}}
        with quiet():
            train(resolve_config("sft", "demo", merge(given, SMALL["sft"] if bench.small else {})))
    return model


def once(bench: Bench, method: str, seed: int, given: Mapping[str, Any]) -> Record:
    """One run's result: from the file, or else measured and added to it."""
    run = {"method": method, "seed": seed, "set": dict(given)}
    for record in records(bench.results):
        if key(record) == key(run):
            return record
    model = start(bench, seed)
    home = bench.folder / f"{method}-{seed}-{time.time_ns()}"
    try:
        with quiet():
            record = run | measured(settings(method, seed, given, model, home, bench.small), model) | {"where": where()}
    except RuntimeError as error:  # a gradient that is not finite is a result too
        record = run | {"failed": str(error), "where": where()}
    finally:
        shutil.rmtree(home, ignore_errors=True)
    append(bench.results, record)
    print(f"{method}, seed {seed}, {given}: {record.get('failed') or f'reward {last_reward(record):.3f}'}", flush=True)
    return record


def settings(method: str, seed: int, given: Mapping[str, Any], model: Path, home: Path, small: bool = False) -> Config:
    """The demo's configuration of a method, with what all methods of the benchmark share."""
    shared: dict[str, Any] = {
        "model": {"name": str(model)},
        "steps": STEPS,
        "prompts_per_step": PROMPTS,
        "group_size": GROUP,
        # constant, so that a run that is cut at some number of tokens is as good as one that was planned so
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
    """Train, and say what came of it: curves over the steps, held-out results, and the seconds of CPU that it took."""
    began = time.process_time()
    run = train(config)
    seconds = time.process_time() - began
    steps = run.metrics
    names = [n for n in dict.fromkeys(n for told in steps for n in told) if not n.startswith("item/")]
    curve = {n: [told.get(n, math.nan) for told in steps] for n in names if n not in LEFT_OUT and "seconds" not in n}
    first, last = run.evaluations[0], run.evaluations[config.steps]
    held_out = {"before": first, "after": last}
    told = {
        when: {"reward": each.reward, "length": each.length, "truncated": each.truncated}
        | {item: each.mean(item) for item in dict.fromkeys(i.item for i in each.items)}
        for when, each in held_out.items()
    }
    return {"curve": curve, "held_out": told, "end": end(run, model), "seconds": seconds}


def end(run: Run, model: Path) -> dict[str, float]:
    """The trained policy on held-out prompts: its entropy, and its KL (k3) from the start, in nats a token.

    Both over all tokens of its responses, for every method alike; a run's own metric of entropy is over the responses
    that the update ran on.
    """
    config = run.config
    cpu = torch.device("cpu")
    now = make_policy(*load(str(run.model), cpu))
    method = ALGORITHMS[config.method]
    sampling = SamplingParams(**config.sampling.model_dump(), generation_batch_size=config.generation_batch_size)
    _, test_rows = load_rows(config, method, resolve_options(method, config.options))
    prompts = sampling_prompts(test_rows, now, sampling.max_tokens, "held-out data")
    rollout = sample(now.model, [p.tokens for p in prompts], 2, sampling, now.end_tokens, config.seed)
    reference = reference_logprobs(
        load(str(model), cpu)[0], ForwardContext(config.tokens_per_microbatch, temperature=sampling.temperature)
    )
    kl = k3(rollout.behavior_logp, reference(rollout))[rollout.mask].mean()
    return {"entropy": float(-rollout.behavior_logp[rollout.mask].mean()), "kl": float(kl)}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the lines that a run shows of itself."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
