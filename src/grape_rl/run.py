"""One run: configuration → parts → fit. Everything that can be wrong is found before the first step."""

import inspect
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from grape_rl.algorithms import ALGORITHMS
from grape_rl.config import Config, dumped, loaded
from grape_rl.data.order import derive_seed
from grape_rl.methods import (
    Sampled,
    SampledPreferences,
    in_force,
    keywords,
    objective,
    resolve_options,
    start_memory,
)
from grape_rl.model.gradient_checkpointing import enable_gradient_checkpointing
from grape_rl.model.load import no_progress_bars
from grape_rl.model.malloc import keep_freed_memory
from grape_rl.model.sampler import SamplingParams
from grape_rl.setup.graders import grader
from grape_rl.setup.policy import policy_at, start_policy
from grape_rl.setup.run_folder import resumable, write
from grape_rl.setup.setup import Setup
from grape_rl.setup.value_function import value_function, value_settings
from grape_rl.sources.held_out import HeldOut, held_out, read_held_out
from grape_rl.sources.kinds import kind_of
from grape_rl.sources.responses import sampler, sampling_prompts
from grape_rl.training.checkpoint import TrainingState, restore_trainer, save_checkpoint
from grape_rl.training.experience import Experience
from grape_rl.training.fit import Update, Warn, fit
from grape_rl.training.log import Log, read_metrics
from grape_rl.training.optimizer import adamw, learning_rate, set_learning_rate
from grape_rl.training.update import UpdateSettings
from grape_rl.training.value import frozen_parameters


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


@no_progress_bars()
@keep_freed_memory()
def train(config: Config | Mapping[str, Any], resume: bool = False) -> Run:
    """Train as ``config`` says, into its own folder.

    With ``resume``, a run of the same configuration goes on from its last checkpoint; on one CPU machine to the same
    bits as if it had never stopped.

    Raises:
        ValueError: anything wrong with the configuration, the data, the model or the rubric, before any training.
        RuntimeError: too many verdicts of a step are missing. The steps before it have a checkpoint, to resume from.
    """
    config = config if isinstance(config, Config) else loaded(dict(config))
    checkpoint = resumable(config, resume)
    setup = _setup(config, checkpoint)
    source, warnings = kind_of(setup.row).source(setup)
    evaluate = _evaluation(setup)
    now = setup.now
    rate = setup.chosen.get("value_learning_rate") or config.optimizer.learning_rate
    of = config.optimizer
    optimizer = adamw(setup.trained, of.weight_decay, of.betas, rate / of.learning_rate)
    done = restore_trainer(checkpoint, optimizer, setup.memory) if checkpoint else 0
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

    def saved(step: int) -> None:
        state = TrainingState(now.model, now.tokenizer, optimizer, setup.memory, setup.value)
        save_checkpoint(folder / "checkpoints", step, state, config.keep_checkpoints)

    def kept(step: int) -> Experience:
        try:
            return source(step)
        except RuntimeError:  # no update has begun: the steps before are whole
            if step > done and not (config.checkpoint_every and step % config.checkpoint_every == 0):
                saved(step)
            raise

    def ended(step: int, experience: Experience) -> None:
        if experience.records:
            lines = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in experience.records)
            write(folder / "rollouts" / f"step-{step:06d}.jsonl", lines)
        if step == config.steps or (config.evaluation.every and step % config.evaluation.every == 0):
            evaluated(step)
        fooled(step, log)
        if step == config.steps or (config.checkpoint_every and step % config.checkpoint_every == 0):
            saved(step)

    def fooled(step: int, log: Log) -> None:
        every = config.reward.canary_every
        if every and step % every == 0 and setup.grader and setup.grader.canaries:
            for each in setup.grader.canaries():
                if each.fooled or each.verdict.missing:
                    log.warn(f"canary {each.category}/{each.item}", each.finding)

    with closing(setup), Log(folder, config.method, config.steps, done) as log:
        setup.begin(log.warn)
        if not done:
            for key, message in [*_template_unused(setup), *warnings]:
                log.warn(key, message)
            fooled(0, log)
            evaluated(0)
        fit(kept, _update(setup, optimizer), log, done, config.steps, ended)
    return Run(folder, config, evaluations)


def _setup(config: Config, checkpoint: Path | None) -> Setup:
    """What the run is set up with; its policy as in the checkpoint, if there is one."""
    row = ALGORITHMS[config.method]
    chosen = resolve_options(row, config.options)
    kind, named = kind_of(row), config.reward
    train_rows, test_rows = kind.rows(config, row)
    start = start_policy(config, train_rows, kind.scalar)
    graded = isinstance(row.source, Sampled) or (
        test_rows and not kind.scalar and (named.rubric or named.function or named.model)
    )
    memory: dict[str, Any] = {**start_memory(row)}
    who = grader(config, row, chosen, [*train_rows, *test_rows], memory) if graded else None
    now = policy_at(checkpoint, start) if checkpoint else start
    settings = value_settings(row, chosen)
    value = value_function(settings, start, checkpoint) if settings else None
    if config.gradient_checkpointing:
        for model in (now.model, value):
            if isinstance(model, PreTrainedModel):
                enable_gradient_checkpointing(model)
    return Setup(config, row, chosen, train_rows, test_rows, start, now, who, value, memory)


def _template_unused(setup: Setup) -> Iterator[tuple[str, str]]:
    """A warning where plain prompts go to a model that has a chat template."""
    if getattr(setup.now.tokenizer, "chat_template", None) and isinstance(setup.train[0].get("prompt"), str):
        yield "plain", "the model has a chat template, and the prompts are plain text: --data.chat true uses it"


def _evaluation(setup: Setup) -> Callable[[int], HeldOut | None]:
    """A function of the steps done: what the policy, as it is then, does on the held-out rows. None without any."""
    config, now = setup.config, setup.now
    of_kind = kind_of(setup.row).held_out
    standing = of_kind(setup) if of_kind and setup.test else None
    own = config.evaluation.temperature
    sampling = SamplingParams(config.sampling.max_tokens, config.sampling.temperature if own is None else own)
    prompts = sampling_prompts(setup.test, now, sampling.max_tokens, "held-out data") if setup.scorer else []

    def evaluation(step: int) -> HeldOut | None:
        found = HeldOut(0, math.nan, math.nan, math.nan, ())
        if setup.scorer and prompts:
            drawn, seed = sampler(setup, sampling), derive_seed(config.seed, 0, "evaluate")
            samples = config.evaluation.samples
            found = held_out(prompts, drawn, setup.scorer, now.tokenizer, samples, seed, step, setup.ahead)
        if standing:
            found = replace(found, items=(*found.items, *standing()))
        return found if found.responses or found.items else None

    return evaluation


def _update(setup: Setup, optimizer: torch.optim.Optimizer) -> Update:
    """The row's update, given what its parameters ask for, at the step's learning rate."""
    config, row = setup.config, setup.row
    settings = UpdateSettings(
        setup.forward(_training_temperature(setup)), _longest(setup), config.optimizer.max_grad_norm, config.seed
    )
    fixed = {"model": setup.trained, "optimizer": optimizer, "settings": settings, "memory": setup.memory}
    fixed |= keywords(row.update, setup.chosen)
    asked = inspect.signature(row.update).parameters
    alone = setup.chosen.get("value_warmup", 0)

    def update(experience: Experience, step: int, warn: Warn) -> dict[str, float]:
        of = config.optimizer
        rate = learning_rate(step, config.steps, of.learning_rate, of.warmup, of.schedule)
        set_learning_rate(optimizer, rate)
        available = fixed | {"experience": experience, "step": step, "warn": warn}
        available["objective"] = objective(row, in_force(setup.chosen, setup.memory))
        with frozen_parameters(setup.now.model) if step < alone else nullcontext():
            changed = row.update(**{name: value for name, value in available.items() if name in asked})
        setup.memory.update(experience.memory)
        return changed | ({"learning_rate": rate} if "optimizer" in asked else {})

    return update


def _training_temperature(setup: Setup) -> float:
    """A policy gradient is of the distribution that was sampled; imitation is of the model as it is used, at 1.

    So are preferences of data. Those between sampled responses are of the distribution that was sampled: a loss of
    pairs can climb a policy's reward less its KL, as the square of rpo does, only if that policy drew them.
    """
    source = setup.row.source
    own = isinstance(source, SampledPreferences) or (isinstance(source, Sampled) and not source.off_policy_ok)
    return setup.config.sampling.temperature if own else 1.0


def _longest(setup: Setup) -> int:
    config = setup.config
    return config.sampling.max_tokens if isinstance(setup.row.source, Sampled) else config.data.max_length
