"""One run: configuration → parts → fit. Everything that can be wrong is found before the first step."""

import inspect
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging

from grape_rl.algorithms import ALGORITHMS
from grape_rl.config import Config, dumped, loaded
from grape_rl.methods import Algorithm, Preferences, Responses, chosen_options, keywords, objective
from grape_rl.model.load import frozen, load
from grape_rl.model.sampler import Sampling, sample
from grape_rl.parts import (
    Policy,
    data_rows,
    demonstration_examples,
    pair_reference,
    policy,
    preference_pairs,
    sampling_prompts,
    scorer,
    start_policy,
)
from grape_rl.reward.strict import parsed
from grape_rl.training.checkpoint import checkpoints, restored_step, save_checkpoint
from grape_rl.training.evaluate import HeldOut, held_out, held_out_pairs, read_held_out
from grape_rl.training.fit import AnySource, Warn, fit
from grape_rl.training.log import Log, read_metrics
from grape_rl.training.optimizer import adamw, learning_rate, set_learning_rate
from grape_rl.training.pairs import PairExperience, pair_experience, preferences
from grape_rl.training.source import Experience, Sampler, demonstrations, reference_logprobs, responses, step_seed
from grape_rl.training.update import Limits
from grape_rl.types import Rollout

FREE = (
    "steps", "output", "device", "tokens_per_microbatch", "rows_at_once", "measure_kl", "checkpoint_every",
    "keep_checkpoints",
)  # fmt: skip
"""What may change when a run is resumed: memory, place and bookkeeping, which change no result."""


@dataclass(frozen=True)
class Run:
    """A run that ended: where it lies, and its held-out results by the step that they were taken at."""

    folder: Path
    config: Config
    evaluations: Mapping[int, HeldOut]

    @property
    def model(self) -> Path:
        """The trained model, in Hugging Face layout."""
        return self.folder / "checkpoints" / "last"

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One dict a step."""
        return read_metrics(self.folder)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' own progress bars in the midst of the run's."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@_quiet()
def train(config: Config | Mapping[str, Any], resume: bool = False) -> Run:
    """Train as ``config`` says, into its own folder.

    With ``resume``, a run of the same configuration goes on from its last checkpoint; on one CPU machine to the same
    bits as if it had never stopped.

    Raises:
        ValueError: anything wrong with the configuration, the data, the model or the rubric, before any training.
        RuntimeError: too many verdicts of a step are missing.
    """
    config = config if isinstance(config, Config) else loaded(dict(config))
    row = ALGORITHMS[config.method]
    chosen = chosen_options(row, config.options)
    checkpoint = _claimable(config, resume)
    train_rows, test_rows = data_rows(config, row)
    start = start_policy(config, train_rows)
    grader = None
    if isinstance(row.source, Responses) or (test_rows and (config.reward.rubric or config.reward.function)):
        grader = scorer(config, row, chosen, [*train_rows, *test_rows])
    warnings: list[tuple[str, str]] = []
    now = policy(*load(str(checkpoint), start.model.device)) if checkpoint else start
    source = _source(config, row, chosen, start, now, grader, train_rows, warnings)
    test_prompts = sampling_prompts(test_rows, now, config.sampling.max_tokens, "held-out data") if grader else []
    test_pairs = None
    if test_rows and isinstance(row.source, Preferences):
        found, _ = preference_pairs(config, test_rows, now, row, chosen, "held-out data")
        reference = pair_reference(config, row, chosen, start, partial(_precision, config, now))
        test_pairs = pair_experience(found, reference)
    optimizer = adamw(now.model, config.optimizer.weight_decay, config.optimizer.betas)
    done = restored_step(checkpoint, optimizer) if checkpoint else 0
    if done >= config.steps:
        raise ValueError(f"{config.folder}: its {done} steps are done already; ask for more with steps")

    folder = config.folder
    (folder / "rollouts").mkdir(parents=True, exist_ok=True)
    _write(folder / "config.yaml", dumped(config))
    earlier = read_held_out(folder / "held_out.json")
    evaluations = {step: found for step, found in earlier.items() if done and step <= done}

    def evaluate(step: int) -> None:
        found = HeldOut(0, math.nan, math.nan, math.nan, ())
        if grader and test_prompts:
            own = config.evaluation.temperature
            sampling = Sampling(config.sampling.max_tokens, config.sampling.temperature if own is None else own)
            sampler, seed = _sampler(config, now, sampling), step_seed(config.seed, 0, "evaluate")
            found = held_out(test_prompts, sampler, grader, now.tokenizer, config.evaluation.samples, seed, step)
        if test_pairs:
            of_pairs = held_out_pairs(now.model, test_pairs, config.tokens_per_microbatch, limits.precision)
            found = replace(found, items=(*found.items, *of_pairs))
        if not (found.responses or found.items):
            return
        evaluations[step] = found
        told = {str(s): e.as_json() for s, e in evaluations.items()}
        _write(folder / "held_out.json", json.dumps(told, indent=1))

    def update(experience: Experience | PairExperience, step: int, warn: Warn) -> dict[str, float]:
        rate = learning_rate(
            step, config.steps, config.optimizer.learning_rate, config.optimizer.warmup, config.optimizer.schedule
        )
        set_learning_rate(optimizer, rate)
        at_hand = {
            "model": now.model, "optimizer": optimizer, "experience": experience, "objective": goal,
            "limits": limits, "step": step, "warn": warn,
        }  # fmt: skip
        needed = {name: at_hand[name] for name in inspect.signature(row.update).parameters if name in at_hand}
        changed = row.update(**needed, **keywords(row.update, chosen))
        return changed | ({"learning_rate": rate} if "optimizer" in needed else {})

    def ended(step: int, experience: Experience | PairExperience) -> None:
        if experience.records:
            lines = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in experience.records)
            _write(folder / "rollouts" / f"step-{step:06d}.jsonl", lines)
        if step == config.steps or (config.evaluation.every and step % config.evaluation.every == 0):
            evaluate(step)
        if step == config.steps or (config.checkpoint_every and step % config.checkpoint_every == 0):
            save_checkpoint(folder / "checkpoints", step, now.model, now.tokenizer, optimizer, config.keep_checkpoints)

    goal = objective(row, chosen)
    limits = Limits(
        _training_temperature(config, row), _longest(config, row), config.tokens_per_microbatch,
        config.optimizer.max_grad_norm, config.seed, partial(_precision, config, now),
    )  # fmt: skip
    with Log(folder, config.method, config.steps, done) as log:
        if not done:
            for key, message in warnings:
                log.warn(key, message)
            evaluate(0)
        fit(source, update, log, done, config.steps, ended)
    return Run(folder, config, evaluations)


def _claimable(config: Config, resume: bool) -> Path | None:
    """The checkpoint to go on from, if any; refuses a folder that holds another run."""
    folder = config.folder
    saved = folder / "config.yaml"
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: is a file; name a folder with --output")
    if not resume:
        # A run that failed before its first step has left no more than these, and may be tried again.
        barren = {"config.yaml", "rollouts", "warnings.jsonl", "held_out.json"}
        if folder.exists() and any(path.name not in barren for path in folder.iterdir()):
            raise ValueError(f"{folder}: holds another run; name a new folder with --output, or --resume that run")
        return None
    if not saved.is_file():
        raise ValueError(f"{folder}: holds no run to resume")
    before, after = _flat(loaded(parsed(saved), str(saved)).model_dump()), _flat(config.model_dump())
    both = dict.fromkeys([*after, *before])
    if changed := [key for key in both if before.get(key) != after.get(key) and key not in FREE]:
        raise ValueError(f"{folder}: was run with another {', '.join(changed)}; resume it with the same configuration")
    found = checkpoints(folder / "checkpoints")
    return found[-1] if found else None


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    out: dict[str, Any] = {}
    for key, value in data.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return out


def _source(
    config: Config,
    row: Algorithm,
    chosen: dict[str, Any],
    start: Policy,
    now: Policy,
    grader: Any,
    rows: list[dict[str, Any]],
    warnings: list[tuple[str, str]],
) -> AnySource:
    if getattr(now.tokenizer, "chat_template", None) and isinstance(rows[0]["prompt"], str):
        warnings.append(
            ("plain", "the model has a chat template, and the prompts are plain text: --data.chat true uses it")
        )
    if isinstance(row.source, Preferences):
        preferred, told = preference_pairs(config, rows, now, row, chosen)
        warnings += told
        reference = pair_reference(config, row, chosen, start, partial(_precision, config, now))
        return preferences(preferred, reference, config.prompts_per_step, config.seed)
    if not isinstance(row.source, Responses):
        found, told = demonstration_examples(rows, now, config.data.max_length)
        warnings += told
        return demonstrations(found, config.prompts_per_step, config.seed)
    chosen_sampling = Sampling(**config.sampling.model_dump())
    uncut = not config.sampling.top_k and config.sampling.top_p == 1 and config.sampling.temperature > 0
    needs_reference = any("reference_logp" in term.parameters for term in objective(row, chosen).terms)
    reference = None
    if needs_reference or (config.measure_kl and uncut):
        reference = reference_logprobs(
            frozen(start.model), config.sampling.temperature, config.tokens_per_microbatch,
            partial(_precision, config, now),
        )  # fmt: skip
    return responses(
        sampling_prompts(rows, now, config.sampling.max_tokens, "data"),
        _sampler(config, now, chosen_sampling),
        grader,
        partial(row.source.draws, **keywords(row.source.draws, chosen)),
        partial(row.source.advantage, **keywords(row.source.advantage, chosen)),
        now.tokenizer,
        reference,
        config.prompts_per_step,
        config.group_size,
        config.sampling.max_tokens,
        config.seed,
        config.reward.failure_limit,
    )


def _sampler(config: Config, at: Policy, sampling: Sampling) -> Sampler:
    def sampler(prompts: Sequence[Tensor], n: int, seed: int, version: int) -> Rollout:
        with _precision(config, at):
            return sample(at.model, prompts, n, sampling, at.end, seed, version, config.rows_at_once)

    return sampler


def _training_temperature(config: Config, row: Algorithm) -> float:
    """A policy gradient is of the distribution that was sampled; imitation is of the model as it is used, at 1."""
    own = isinstance(row.source, Responses) and not row.source.any_sampler
    return config.sampling.temperature if own else 1.0


def _longest(config: Config, row: Algorithm) -> int:
    return config.sampling.max_tokens if isinstance(row.source, Responses) else config.data.max_length


def _precision(config: Config, now: Policy) -> AbstractContextManager[Any]:
    """What one forward pass runs in. Never more: autocast keeps its copies of the weights until it is left, so that
    around a whole run it would go on with those of the first step."""
    return torch.autocast(now.model.device.type, torch.bfloat16, enabled=config.precision == "bf16")


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)
