"""Runs of process reward models on solutions whose steps are labeled."""

from collections.abc import Callable, Sequence

from grape_rl.config import Config
from grape_rl.data.steps import LabeledSolution, synthesize_steps, with_steps
from grape_rl.methods import Method, Steps, keywords, resolve_options
from grape_rl.model.reward_head import set_step_separator
from grape_rl.reward.scores import ItemSummary
from grape_rl.setup.rows import Row, prompted, sources, split
from grape_rl.setup.setup import Kind, Setup, Told
from grape_rl.sources.requirements import suited
from grape_rl.training.experience import ExperienceSource
from grape_rl.training.reward_modeling import held_out_steps, judged, judging
from grape_rl.types import Sequences


def _rows(config: Config, row: Method) -> tuple[list[Row], list[Row]]:
    """Training rows and held-out rows, each with a ``prompt``, its ``completions`` (steps) and their ``labels``.

    Each also has its ``completion``, the steps as one text: what a tokenizer made from the data learns.
    """
    data = config.data
    (train, test), named = split(config), sources(data)
    train, test = (suited(config, row, part, source) for part, source in zip((train, test), named, strict=True))
    columns = (data.completions, data.labels)
    if data.tasks:  # together, so that a wrong answer can be found for the only held-out row of a task
        both = synthesize_steps([*train, *test], data.teacher.wrong, config.seed)
        train, test, columns = both[: len(train)], both[len(train) :], ("completions", "labels")
    prompt = "prompt" if data.tasks else data.prompt
    train, test = (
        prompted(data, with_steps(part, *columns, source), prompt, None, source) if part else []
        for part, source in zip((train, test), named, strict=True)
    )
    separator = resolve_options(row, config.options)["separator"]
    told = [{**r, "completion": "".join(step + separator for step in r["completions"])} for r in train]
    return told, test


def _source(setup: Setup) -> tuple[ExperienceSource, Told]:
    set_step_separator(setup.now.model, setup.chosen["separator"])
    found, told = _solutions(setup, setup.train, "data")
    return judging(found, setup.config.prompts_per_step, setup.config.seed), told


def _batches(setup: Setup) -> Callable[[int], Sequences]:
    found, _ = _solutions(setup, setup.train, "data")
    source = judging(found, setup.config.prompts_per_step, setup.config.seed)
    return lambda step: source(step).sequences


def _held_out(setup: Setup) -> Callable[[], tuple[ItemSummary, ...]]:
    found, _ = _solutions(setup, setup.test, "held-out data")
    test = judged(found)
    return lambda: held_out_steps(setup.now.model, test, setup.forward())


def _solutions(setup: Setup, rows: Sequence[Row], source: str) -> tuple[list[LabeledSolution], Told]:
    """The rows as solutions in tokens; warns of those that lost steps, or were left out."""
    at, kind = setup.now, setup.row.source
    assert isinstance(kind, Steps)
    limit = min(setup.config.data.max_length, at.context)
    found, lengths = kind.encoded(rows, at.tokenizer, limit, source, **keywords(kind.encoded, setup.chosen))
    told: Told = []
    if lengths.truncated:
        told.append(("cut", f"{lengths.truncated} of {lengths.rows} solutions lost steps over {limit} tokens"))
    if lengths.dropped:
        message = f"{lengths.dropped} of {lengths.rows} solutions have no labeled step in {limit} tokens: left out"
        told.append(("left_out", message))
    return found, told


STEPS = Kind(_rows, _source, _batches, _held_out, scalar=True)
