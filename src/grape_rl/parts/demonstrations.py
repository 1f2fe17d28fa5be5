"""Runs on demonstrations."""

from grape_rl.config import Config
from grape_rl.data.chat import examples
from grape_rl.data.teacher import demonstrated
from grape_rl.methods import Algorithm
from grape_rl.parts.rows import Row, prompted, sources, split
from grape_rl.parts.setup import Kind, Setup, Told
from grape_rl.parts.suited import suited
from grape_rl.training.fit import AnySource
from grape_rl.training.source import demonstrations


def _rows(config: Config, row: Algorithm) -> tuple[list[Row], list[Row]]:
    """Training rows with a ``prompt`` and a ``completion``; of the held-out rows only prompts are needed."""
    data = config.data
    train, test = split(config)
    source, test_source = sources(data)
    train = suited(config, row, train, source)
    prompt, completion = ("prompt", "completion") if data.tasks else (data.prompt, data.completion)
    train = demonstrated(train, data.teacher.wrong, data.teacher.styles, config.seed) if data.tasks else train
    held_out = prompted(data, test, prompt, None, test_source) if test else []
    return prompted(data, train, prompt, completion, source), held_out


def _source(setup: Setup) -> tuple[AnySource, Told]:
    """The rows as examples; warns of rows that lost their end, or were left out."""
    config, at = setup.config, setup.now
    limit = min(config.data.max_length, at.context)
    found, lengths = examples(setup.train, at.tokenizer, at.end, limit)
    told: Told = []
    if lengths.truncated:
        told.append(("cut", f"{lengths.truncated} of {lengths.rows} completions are cut at {limit} tokens"))
    if lengths.dropped:
        told.append(("left_out", f"{lengths.dropped} of {lengths.rows} prompts fill {limit} tokens alone: left out"))
    return demonstrations(found, config.prompts_per_step, config.seed), told


DEMONSTRATIONS = Kind(_rows, _source)
