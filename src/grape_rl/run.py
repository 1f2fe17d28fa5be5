"""One run: configuration → setup → training loop. Faults are reported before the first step."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from grape_rl.algorithms import method_named
from grape_rl.config.config import Config
from grape_rl.config.files import dump
from grape_rl.data.order import derive_seed
from grape_rl.methods import Method, build_objective, resolve_options
from grape_rl.model.gradient_checkpointing import enable_gradient_checkpointing
from grape_rl.model.load import no_progress_bars
from grape_rl.model.malloc import keep_freed_memory
from grape_rl.model.sampler import SamplingParams
from grape_rl.rollout.evaluation import HeldOut, evaluate, read_held_out
from grape_rl.setup.graders import make_grader
from grape_rl.setup.policy import policy_at, start_policy
from grape_rl.setup.run_folder import resumable, write
from grape_rl.setup.sampling import policy_sampler, sampling_prompts
from grape_rl.setup.setup import Setup
from grape_rl.setup.value_function import build_value_function
from grape_rl.sources.responses import current_options
from grape_rl.training.checkpoint import TrainingState, restore_trainer, save_checkpoint
from grape_rl.training.experience import Experience
from grape_rl.training.fit import Update, Warn, fit
from grape_rl.training.log import Log, read_metrics
from grape_rl.training.optimizer import adamw, learning_rate, set_learning_rate
from grape_rl.training.update import UpdateSettings
from grape_rl.training.value import frozen_parameters
from grape_rl.validation import load_config, load_rows


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, its configuration, and its held-out results by step."""

    folder: Path
    config: Config
    evaluations: Mapping[int, HeldOut]

    @property
    def model(self) -> Path:
        """The trained model in Hugging Face layout."""
        return self.folder / "checkpoints" / "last"

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One dict per step."""
        return read_metrics(self.folder)


@no_progress_bars()
@keep_freed_memory()
def train(config: Config | Mapping[str, Any], resume: bool = False) -> Run:
    """Train a model as ``config`` sets it, and write the run into its folder.

    With ``resume``, a run of the same configuration continues from its last checkpoint. On one CPU machine the result
    is bit-identical to that of an uninterrupted run.

    Raises:
        ValueError: a fault in the configuration, the data, the model or the rubric, before any training.
        RuntimeError: too many verdicts of a step are missing. The steps before it have a checkpoint to resume from.
    """
    # Load and check everything.
    config = load_config(config)
    method = method_named(config.method)
    checkpoint = resumable(config, resume)
    setup = _setup(config, method, checkpoint)
    source, warnings = method.source.experiences(setup)
    evaluate_step = _evaluation(setup, method)
    optimizer = _optimizer(setup)
    done = restore_trainer(checkpoint, optimizer, setup.memory) if checkpoint else 0
    if done >= config.steps:
        raise ValueError(f"{config.folder}: all of its {done} steps are done; for more, raise steps")

    # Open the run's folder.
    folder = config.folder
    (folder / "rollouts").mkdir(parents=True, exist_ok=True)
    write(folder / "config.yaml", dump(config))
    earlier = read_held_out(folder / "held_out.json")
    evaluations = {step: results for step, results in earlier.items() if done and step <= done}

    def evaluate_and_write(step: int) -> None:
        if results := evaluate_step(step):
            evaluations[step] = results
            data = {str(number): result.as_json() for number, result in evaluations.items()}
            write(folder / "held_out.json", json.dumps(data, indent=1))

    def save(step: int) -> None:
        state = TrainingState(setup.policy.model, setup.policy.tokenizer, optimizer, setup.memory, setup.value)
        save_checkpoint(folder / "checkpoints", step, state, config.keep_checkpoints)

    def saved_at(step: int) -> bool:
        return bool(config.checkpoint_every) and step % config.checkpoint_every == 0

    def source_or_save(step: int) -> Experience:
        try:
            return source(step)
        except RuntimeError:  # no update has begun, so the steps before are complete
            if step > done and not saved_at(step):
                save(step)
            raise

    def end_step(step: int, experience: Experience) -> None:
        if experience.records:
            lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in experience.records)
            write(folder / "rollouts" / f"step-{step:06d}.jsonl", lines)
        if step == config.steps or (config.evaluation.every and step % config.evaluation.every == 0):
            evaluate_and_write(step)
        _check_canaries(setup, step, log)
        if step == config.steps or saved_at(step):
            save(step)

    # Train.
    with closing(setup), Log(folder, method.name, config.steps, done) as log:
        setup.begin(log.warn)
        if not done:
            for key, message in [*_unused_settings(setup), *warnings]:
                log.warn(key, message)
            _check_canaries(setup, 0, log)
            evaluate_and_write(0)
        fit(source_or_save, _update(setup, method, optimizer), log, done, config.steps, end_step)
    return Run(folder, config, evaluations)


def _setup(config: Config, method: Method, checkpoint: Path | None) -> Setup:
    """The objects of the run, with the policy as in the checkpoint if there is one."""
    source, options = method.source, resolve_options(method, config.options)
    train_rows, test_rows = load_rows(config, method, options)
    start = start_policy(config, train_rows, source.trains_reward_model)
    memory: dict[str, Any] = {**source.start_memory}
    grader = None
    if source.samples or (test_rows and config.reward.is_set and not source.trains_reward_model):
        grader = make_grader(config, source.aggregation(options, memory), [*train_rows, *test_rows])
    policy = policy_at(checkpoint, start) if checkpoint else start
    settings = source.value_function(options)
    value = build_value_function(settings, start, checkpoint) if settings else None
    if config.gradient_checkpointing:
        for model in (policy.model, value):
            if isinstance(model, PreTrainedModel):
                enable_gradient_checkpointing(model)
    return Setup(
        config, options, build_objective(method, options), method.update, train_rows, test_rows, start, policy, grader,
        value, memory,
    )  # fmt: skip


def _unused_settings(setup: Setup) -> Iterator[tuple[str, str]]:
    """Warnings if prompts are plain text but the model has a chat template, and if the warmup never ends."""
    warmup, steps = setup.config.optimizer.warmup, setup.config.steps
    if warmup >= steps:
        yield (
            "warmup",
            f"optimizer.warmup is {warmup} of {steps} steps: the learning rate never reaches optimizer.learning_rate",
        )
    if getattr(setup.policy.tokenizer, "chat_template", None) and isinstance(setup.train_rows[0].get("prompt"), str):
        yield "plain", "the model has a chat template, but the prompts are plain text: --data.chat true applies it"


def _check_canaries(setup: Setup, step: int, log: Log) -> None:
    """Check the critics on responses that must get the lowest score, at every ``reward.canary_every`` steps."""
    every = setup.config.reward.canary_every
    if every and step % every == 0 and setup.grader and setup.grader.canaries:
        for canary in setup.grader.canaries():
            if canary.fooled or canary.verdict.missing:
                log.warn(f"canary {canary.category}/{canary.item}", canary.finding)


def _evaluation(setup: Setup, method: Method) -> Callable[[int], HeldOut | None]:
    """A function from the number of steps done to the policy's held-out results; None if there are none."""
    config, policy, grader = setup.config, setup.policy, setup.grader
    on_data = method.source.held_out(setup) if setup.test_rows else None
    temperature = config.evaluation.temperature
    sampling = SamplingParams(
        config.sampling.max_tokens, config.sampling.temperature if temperature is None else temperature
    )
    prompts = sampling_prompts(setup.test_rows, policy, sampling.max_tokens, "held-out data") if grader else []

    def evaluation(step: int) -> HeldOut | None:
        results = HeldOut(0, math.nan, math.nan, math.nan, ())
        if grader and prompts:
            # Every evaluation draws with the same random numbers.
            sampler, n = policy_sampler(setup, sampling), config.evaluation.samples
            seed = derive_seed(config.seed, 0, "evaluate")
            results = evaluate(
                prompts, lambda tokens, ended: sampler(tokens, n, seed, step, ended), n, grader.scorer,
                policy.tokenizer, grader.prefetch,
            )  # fmt: skip
        if on_data:
            results = replace(results, items=(*results.items, *on_data()))
        return results if results.responses or results.items else None

    return evaluation


def _optimizer(setup: Setup) -> torch.optim.Optimizer:
    """AdamW over all that learns. The value function has its own learning rate if the method's options set one."""
    settings = setup.config.optimizer
    value_rate = setup.options.get("value_learning_rate") or settings.learning_rate
    return adamw(setup.trained, settings.weight_decay, settings.betas, value_rate / settings.learning_rate)


def _update(setup: Setup, method: Method, optimizer: torch.optim.Optimizer) -> Update:
    """The method's update with the inputs that it takes, at the step's learning rate."""
    config, source, schedule = setup.config, method.source, setup.config.optimizer
    settings = UpdateSettings(
        setup.forward(source.training_temperature(config)), source.max_tokens(config), schedule.max_grad_norm,
        config.seed,
    )  # fmt: skip
    fixed = {"model": setup.trained, "optimizer": optimizer, "settings": settings, "memory": setup.memory}
    function = method.update_function
    bound, reads = function.bind(setup.options), function.reads
    value_warmup = setup.options.get("value_warmup", 0)

    def update(experience: Experience, step: int, warn: Warn) -> dict[str, float]:
        rate = learning_rate(step, config.steps, schedule.learning_rate, schedule.warmup, schedule.schedule)
        set_learning_rate(optimizer, rate)
        inputs = fixed | {"experience": experience, "step": step, "warn": warn}
        inputs["objective"] = build_objective(method, current_options(setup.options, setup.memory))
        with frozen_parameters(setup.policy.model) if step < value_warmup else nullcontext():
            metrics = bound(**{name: inputs[name] for name in reads})
        setup.memory.update(experience.memory)
        return metrics | ({"learning_rate": rate} if "optimizer" in reads else {})

    return update
