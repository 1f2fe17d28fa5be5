"""One run: configuration → parts → fit. Everything that can be wrong is found before the first step."""

import inspect
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from grape_rl.algorithms import ALGORITHMS
from grape_rl.config import Config, dumped, loaded
from grape_rl.methods import Responses, chosen_options, keywords, objective
from grape_rl.model.load import load
from grape_rl.model.sampler import Sampling
from grape_rl.parts.folder import resumable, write
from grape_rl.parts.kinds import kind_of
from grape_rl.parts.policy import policy, start_policy
from grape_rl.parts.responses import sampler, sampling_prompts
from grape_rl.parts.scoring import scorer
from grape_rl.parts.setup import Setup
from grape_rl.training.checkpoint import restored_step, save_checkpoint
from grape_rl.training.evaluate import HeldOut, held_out, read_held_out
from grape_rl.training.fit import AnyExperience, Update, Warn, fit
from grape_rl.training.log import Log, read_metrics
from grape_rl.training.optimizer import adamw, learning_rate, set_learning_rate
from grape_rl.training.source import step_seed
from grape_rl.training.update import Limits


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
    checkpoint = resumable(config, resume)
    setup = _setup(config, checkpoint)
    source, warnings = kind_of(setup.row).source(setup)
    evaluate = _evaluation(setup)
    now = setup.now
    optimizer = adamw(now.model, config.optimizer.weight_decay, config.optimizer.betas)
    done = restored_step(checkpoint, optimizer) if checkpoint else 0
    if done >= config.steps:
        raise ValueError(f"{config.folder}: its {done} steps are done already; ask for more with steps")

    folder = config.folder
    (folder / "rollouts").mkdir(parents=True, exist_ok=True)
    write(folder / "config.yaml", dumped(config))
    earlier = read_held_out(folder / "held_out.json")
    evaluations = {step: found for step, found in earlier.items() if done and step <= done}

    def evaluated(step: int) -> None:
        if found := evaluate(step):
            evaluations[step] = found
            told = {str(s): e.as_json() for s, e in evaluations.items()}
            write(folder / "held_out.json", json.dumps(told, indent=1))

    def ended(step: int, experience: AnyExperience) -> None:
        if experience.records:
            lines = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in experience.records)
            write(folder / "rollouts" / f"step-{step:06d}.jsonl", lines)
        if step == config.steps or (config.evaluation.every and step % config.evaluation.every == 0):
            evaluated(step)
        if step == config.steps or (config.checkpoint_every and step % config.checkpoint_every == 0):
            save_checkpoint(folder / "checkpoints", step, now.model, now.tokenizer, optimizer, config.keep_checkpoints)

    with Log(folder, config.method, config.steps, done) as log:
        if not done:
            for key, message in [*_template_unused(setup), *warnings]:
                log.warn(key, message)
            evaluated(0)
        fit(source, _update(setup, optimizer), log, done, config.steps, ended)
    return Run(folder, config, evaluations)


def _setup(config: Config, checkpoint: Path | None) -> Setup:
    """What the run is set up with; its policy as in the checkpoint, if there is one."""
    row = ALGORITHMS[config.method]
    chosen = chosen_options(row, config.options)
    train_rows, test_rows = kind_of(row).rows(config, row)
    start = start_policy(config, train_rows)
    graded = isinstance(row.source, Responses) or (test_rows and (config.reward.rubric or config.reward.function))
    grader = scorer(config, row, chosen, [*train_rows, *test_rows]) if graded else None
    now = policy(*load(str(checkpoint), start.model.device)) if checkpoint else start
    return Setup(config, row, chosen, train_rows, test_rows, start, now, grader)


def _template_unused(setup: Setup) -> Iterator[tuple[str, str]]:
    """A warning where plain prompts go to a model that has a chat template."""
    if getattr(setup.now.tokenizer, "chat_template", None) and isinstance(setup.train[0].get("prompt"), str):
        yield "plain", "the model has a chat template, and the prompts are plain text: --data.chat true uses it"


def _evaluation(setup: Setup) -> Callable[[int], HeldOut | None]:
    """A function of the steps done: what the policy, as it is then, does on the held-out rows. None without any."""
    config, grader, now = setup.config, setup.scorer, setup.now
    of_kind = kind_of(setup.row).held_out
    standing = of_kind(setup) if of_kind and setup.test else None
    own = config.evaluation.temperature
    sampling = Sampling(config.sampling.max_tokens, config.sampling.temperature if own is None else own)
    prompts = sampling_prompts(setup.test, now, sampling.max_tokens, "held-out data") if grader else []

    def evaluation(step: int) -> HeldOut | None:
        found = HeldOut(0, math.nan, math.nan, math.nan, ())
        if grader and prompts:
            drawn, seed = sampler(setup, sampling), step_seed(config.seed, 0, "evaluate")
            found = held_out(prompts, drawn, grader, now.tokenizer, config.evaluation.samples, seed, step)
        if standing:
            found = replace(found, items=(*found.items, *standing()))
        return found if found.responses or found.items else None

    return evaluation


def _update(setup: Setup, optimizer: torch.optim.Optimizer) -> Update:
    """The row's update, given what its parameters ask for, at the step's learning rate."""
    config, row = setup.config, setup.row
    limits = Limits(
        _training_temperature(setup), _longest(setup), config.tokens_per_microbatch,
        config.optimizer.max_grad_norm, config.seed, setup.precision,
    )  # fmt: skip
    fixed = {"model": setup.now.model, "optimizer": optimizer, "objective": objective(row, setup.chosen)}
    fixed |= {"limits": limits} | keywords(row.update, setup.chosen)
    asked = inspect.signature(row.update).parameters

    def update(experience: AnyExperience, step: int, warn: Warn) -> dict[str, float]:
        of = config.optimizer
        rate = learning_rate(step, config.steps, of.learning_rate, of.warmup, of.schedule)
        set_learning_rate(optimizer, rate)
        at_hand = fixed | {"experience": experience, "step": step, "warn": warn}
        changed = row.update(**{name: value for name, value in at_hand.items() if name in asked})
        return changed | ({"learning_rate": rate} if "optimizer" in asked else {})

    return update


def _training_temperature(setup: Setup) -> float:
    """A policy gradient is of the distribution that was sampled; imitation is of the model as it is used, at 1."""
    own = isinstance(setup.row.source, Responses) and not setup.row.source.any_sampler
    return setup.config.sampling.temperature if own else 1.0


def _longest(setup: Setup) -> int:
    config = setup.config
    return config.sampling.max_tokens if isinstance(setup.row.source, Responses) else config.data.max_length
