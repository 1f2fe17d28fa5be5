"""A run's estimate before it runs: what a step of it will do, by its settings, its data's lengths and its model."""

import inspect
import resource
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from grape_rl.algorithms import ALGORITHMS
from grape_rl.config import Config
from grape_rl.estimate.cost import Estimate, Held, Machine, Step, memory, seconds
from grape_rl.estimate.fake_model import available, measure_footprint
from grape_rl.estimate.flops import (
    Work,
    forward_work,
    generation_work,
    matmul_throughput,
    memory_bandwidth,
    operation_latency,
)
from grape_rl.methods import (
    Labels,
    Preferences,
    Responses,
    Sampled,
    SampledPreferences,
    objective,
    resolve_options,
)
from grape_rl.model.logprobs import microbatches, select_rows
from grape_rl.setup.policy import device
from grape_rl.setup.setup import Setup
from grape_rl.setup.value_function import value_settings
from grape_rl.sources.kinds import kind_of
from grape_rl.sources.preferences import compares_with_reference, needs_reference_itself
from grape_rl.sources.responses import starts_with_reference
from grape_rl.training.pairs import two_pass_pair_gradient
from grape_rl.types import Sequences

ROWS, STEPS = 256, 4
"""How many rows of the data are read, and of how many steps the mean is taken, and the largest moment."""


def estimated(config: Config, machine: Callable[[torch.device, torch.dtype], Machine] | None = None) -> Estimate:
    """How much memory a run will take at its peak, and how long a step. Nothing is downloaded.

    Of the data the first rows are read; responses are taken to be as long as they may become, and the judging of them
    to take no time. A scratch BPE vocabulary is taken from those rows.

    Raises:
        ValueError: it can't be estimated, and why.
    """
    row = ALGORITHMS[config.method]
    if "optimizer" not in inspect.signature(row.update).parameters:
        raise ValueError(f"what an update of {config.method} costs depends on the data")
    if config.data.source and not Path(config.data.source).expanduser().is_file():
        raise ValueError(f"it needs the data's lengths, and {config.data.source} is no file here")
    available(config.model)
    enough = min(config.data.rows or ROWS, max(ROWS, STEPS * config.prompts_per_step))
    few = config.model_copy(update={"data": config.data.model_copy(update={"rows": enough, "held_out_rows": 0})})
    kind, chosen = kind_of(row), resolve_options(row, config.options)
    train, _ = kind.rows(few, row)
    policy, frame = measure_footprint(config, train, kind.scalar)
    setup = Setup(config, row, chosen, train, [], policy, policy, None)
    batch = kind.batches(setup)
    steps = [step_of(setup, batch(step)) for step in range(STEPS)]
    base = resident()
    where = device(config.device)
    of = (machine or measured)(where, torch.bfloat16 if config.precision == "bf16" else torch.float32)
    peaks = [memory(frame, step, held(setup), base if where.type == "cpu" else 0.0) for step in steps]
    times = [seconds(frame, step, of, config.gradient_checkpointing) for step in steps]
    mean = {name: sum(each[name] for each in times) / STEPS for name in times[0]}
    return Estimate(max(peaks, key=lambda parts: sum(parts.values())), mean, of)


def measured(where: torch.device, dtype: torch.dtype) -> Machine:
    """The machine, measured within a second."""
    return Machine(matmul_throughput(where, dtype), memory_bandwidth(where), operation_latency(where))


def resident() -> float:
    """Bytes that the process has held at most up to now."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1.0 if sys.platform == "darwin" else 1024.0)


def held(setup: Setup) -> Held:
    """Which models a run holds beside the policy."""
    settings = value_settings(setup.row, setup.chosen)
    own = settings is not None and settings.value_trunk == "own"
    return Held(_references(setup), int(own), setup.config.precision == "bf16", setup.config.gradient_checkpointing)


def _references(setup: Setup) -> int:
    """How many copies of the start there are."""
    source = setup.row.source
    if isinstance(source, SampledPreferences):
        return int(starts_with_reference(setup)) + int(compares_with_reference(setup))
    if isinstance(source, Responses):
        return int(starts_with_reference(setup))
    if isinstance(source, Preferences):
        return int(needs_reference_itself(setup))
    return int(isinstance(source, Labels) and "mismatched_gain" in objective(setup.row, setup.chosen).reads)


def step_of(setup: Setup, sequences: Sequences) -> Step:
    """What a step runs on its sequences: all of them learned, in one draw, none revised."""
    config, source = setup.config, setup.row.source
    epochs, minibatches = (setup.chosen.get(name, 1) for name in ("epochs", "minibatches"))
    learned = _paired(sequences, config.group_size) if isinstance(source, SampledPreferences) else sequences
    mixed = torch.randperm(len(learned.tokens), generator=torch.Generator().manual_seed(0))
    drawn = [select_rows(learned, rows.sort().values) for rows in mixed.chunk(minibatches)]
    parts = [forward_work(part) for whole in drawn for part in _parts(whole, config)]
    settings = value_settings(setup.row, setup.chosen)
    beside = [forward_work(part) for each in _read(setup, sequences, learned) for part in _parts(each, config)]
    update = sum(parts, Work())
    if settings:
        beside += [_trunk(forward_work(part)) for part in _parts(sequences, config)]
        update += _trunk(update) if settings.value_trunk == "own" else Work()
    step = Step(
        learned=sum([update] * epochs, Work()),
        microbatches=len(parts) * epochs,
        positions=max(each.trunk_tokens for each in parts),
        chosen=max(each.head_tokens for each in parts),
        updates=epochs * minibatches,
        read=sum(beside, Work()),
        reads=len(beside),
    )
    return _decoding(step, sequences, config) if isinstance(source, Sampled) else step


def _read(setup: Setup, sequences: Sequences, learned: Sequences) -> list[Sequences]:
    """What is read without a gradient: by a reference, and by the policy before what needs all of its log-probs."""
    source, found = setup.row.source, list[Sequences]()
    if isinstance(source, Sampled) and starts_with_reference(setup):
        found.append(sequences)
    if isinstance(source, SampledPreferences):
        found += [learned] * compares_with_reference(setup)
    if isinstance(source, Preferences):
        found += [learned] * needs_reference_itself(setup)
    if isinstance(source, Preferences | SampledPreferences):
        found += [learned] * (setup.row.update is two_pass_pair_gradient)
    if isinstance(source, Labels):
        reads = objective(setup.row, setup.chosen).reads
        found += [learned] * (3 * ("mismatched_gain" in reads) + ("mean_gain" in reads))
    return found


def _parts(sequences: Sequences, config: Config) -> list[Sequences]:
    return [select_rows(sequences, rows) for rows in microbatches(sequences, config.tokens_per_microbatch)]


def _trunk(work: Work) -> Work:
    return replace(work, head_tokens=0)


def _paired(sequences: Sequences, group_size: int) -> Sequences:
    """Two responses to each prompt."""
    first = torch.arange(len(sequences.prompts)) * group_size
    return select_rows(sequences, torch.stack([first, first + 1], dim=1).flatten())


def _decoding(step: Step, sequences: Sequences, config: Config) -> Step:
    """The step with the sampling of its responses before it."""
    n, t = config.group_size, config.sampling.max_tokens
    prompts, at_once = [len(p) for p in sequences.prompts], max(1, config.generation_batch_size // n)
    chunks = [prompts[i : i + at_once] for i in range(0, len(prompts), at_once)]
    rows = len(chunks[0]) * n
    return replace(
        step,
        decoded=generation_work(prompts, n, t),
        decodes=len(chunks) * t,
        rows=rows,
        cached=rows * (max(prompts) + t),
    )
