"""The estimate of a run before it starts: from its settings, its data's lengths and its model's shape."""

import resource
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from grape_rl.algorithms import method_named
from grape_rl.config.config import Config
from grape_rl.estimate.cost import Estimate, ExtraModels, Machine, Step, peak_memory, step_seconds
from grape_rl.estimate.fake_model import available, measure_footprint
from grape_rl.estimate.flops import (
    Work,
    forward_work,
    generation_work,
    matmul_throughput,
    memory_bandwidth,
    operation_latency,
)
from grape_rl.methods import build_objective, resolve_options
from grape_rl.model.logprobs import microbatches, select_rows
from grape_rl.setup.policy import device
from grape_rl.setup.setup import Setup
from grape_rl.sources.source import Source
from grape_rl.training.value import ValueFunctionOptions
from grape_rl.types import Sequences
from grape_rl.validation import load_config, load_rows

ESTIMATED_ROWS = 256
"""Data rows that an estimate reads, at most."""

ESTIMATED_STEPS = 4
"""Steps whose mean time and largest memory an estimate takes."""


def estimated(config: Config, machine: Callable[[torch.device, torch.dtype], Machine] | None = None) -> Estimate:
    """A run's peak memory and its time per step. Nothing is downloaded.

    The first rows of the data are read. Responses are assumed to have full length and grading to take no time. A BPE
    vocabulary from scratch is built from those rows.

    Raises:
        ValueError: the reason why there is no estimate.
    """
    config = load_config(config)
    method = method_named(config.method)
    source, options = method.source, resolve_options(method, config.options)
    if "optimizer" not in method.update_function.reads:
        raise ValueError(f"the cost of an update of {config.method} depends on the data")
    if config.data.source and not Path(config.data.source).expanduser().is_file():
        raise ValueError(f"the data's lengths are needed, and {config.data.source} is not a file on this machine")
    available(config.model)

    # Set up the run with a fake model and few rows.
    count = min(config.data.rows or ESTIMATED_ROWS, max(ESTIMATED_ROWS, ESTIMATED_STEPS * config.prompts_per_step))
    short = config.model_copy(update={"data": config.data.model_copy(update={"rows": count, "held_out_rows": 0})})
    train_rows, _ = load_rows(short, method, options)
    policy, footprint = measure_footprint(config, train_rows, source.trains_reward_model)
    setup = Setup(config, options, build_objective(method, options), method.update, train_rows, [], policy, policy)

    # Count the work of some steps, and divide by the machine's rates.
    batch = source.batches(setup)
    steps = [plan_step(setup, source, batch(step)) for step in range(ESTIMATED_STEPS)]
    base, on = resident_bytes(), device(config.device)
    rates = (machine or measure_machine)(on, torch.bfloat16 if config.precision == "bf16" else torch.float32)
    extra = count_extra_models(setup, source, batch(0))
    peaks = [peak_memory(footprint, step, extra, base if on.type == "cpu" else 0.0) for step in steps]
    times = [step_seconds(footprint, step, rates, config.gradient_checkpointing) for step in steps]
    mean = {name: sum(time[name] for time in times) / ESTIMATED_STEPS for name in times[0]}
    return Estimate(max(peaks, key=lambda parts: sum(parts.values())), mean, rates)


def measure_machine(on: torch.device, dtype: torch.dtype) -> Machine:
    """The machine's rates, measured within a second."""
    return Machine(matmul_throughput(on, dtype), memory_bandwidth(on), operation_latency(on))


def resident_bytes() -> float:
    """The largest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1.0 if sys.platform == "darwin" else 1024.0)


def count_extra_models(setup: Setup, source: Source, sequences: Sequences) -> ExtraModels:
    """Models that the run holds in addition to the policy."""
    references = source.forward_passes(setup, sequences).references
    own_trunk = _has_own_trunk(source.value_function(setup.options))
    return ExtraModels(
        references, int(own_trunk), setup.config.precision == "bf16", setup.config.gradient_checkpointing
    )


def plan_step(setup: Setup, source: Source, sequences: Sequences) -> Step:
    """The work of a step on these sequences: all of them are learned, drawn once and none of them revised."""
    config, value = setup.config, source.value_function(setup.options)
    passes = source.forward_passes(setup, sequences)
    epochs, minibatches = (setup.options.get(name, 1) for name in ("epochs", "minibatches"))

    # Passes with a gradient.
    order = torch.randperm(len(passes.learned.tokens), generator=torch.Generator().manual_seed(0))
    parts = [select_rows(passes.learned, rows.sort().values) for rows in order.chunk(minibatches)]
    learned = [forward_work(part) for whole in parts for part in _microbatches(whole, config)]
    update = sum(learned, Work())

    # Passes without a gradient.
    no_grad = [forward_work(part) for whole in passes.no_grad for part in _microbatches(whole, config)]
    if value:
        no_grad += [_without_head(forward_work(part)) for part in _microbatches(sequences, config)]
        update += _without_head(update) if _has_own_trunk(value) else Work()

    step = Step(
        learned=sum([update] * epochs, Work()),
        microbatches=len(learned) * epochs,
        positions=max(work.trunk_tokens for work in learned),
        chosen=max(work.head_tokens for work in learned),
        updates=epochs * minibatches,
        no_grad=sum(no_grad, Work()),
        no_grad_passes=len(no_grad),
    )
    return _with_sampling(step, sequences, config) if source.samples else step


def _has_own_trunk(value: ValueFunctionOptions | None) -> bool:
    return value is not None and value.value_trunk == "own"


def _microbatches(sequences: Sequences, config: Config) -> list[Sequences]:
    return [select_rows(sequences, rows) for rows in microbatches(sequences, config.tokens_per_microbatch)]


def _without_head(work: Work) -> Work:
    return replace(work, head_tokens=0)


def _with_sampling(step: Step, sequences: Sequences, config: Config) -> Step:
    """The step with the sampling of its responses."""
    n, t = config.group_size, config.sampling.max_tokens
    prompts, per_chunk = [len(prompt) for prompt in sequences.prompts], max(1, config.generation_batch_size // n)
    chunks = [prompts[i : i + per_chunk] for i in range(0, len(prompts), per_chunk)]
    rows = len(chunks[0]) * n
    return replace(
        step,
        decoded=generation_work(prompts, n, t),
        decodes=len(chunks) * t,
        rows=rows,
        cached=rows * (max(prompts) + t),
    )
