"""Runs on demonstrations."""

from collections.abc import Callable, Sequence

from grape_rl.config import Config, Data
from grape_rl.data.chat import Example, TruncationStats, tokenize_demonstrations
from grape_rl.data.rows import LanguageModelingColumn, with_language_modeling
from grape_rl.data.teacher import synthesize_demonstrations
from grape_rl.methods import Method
from grape_rl.reward.scores import ItemSummary
from grape_rl.rollout.source import demonstrations
from grape_rl.schema import did_you_mean
from grape_rl.setup.rows import Row, prompted, sources, split
from grape_rl.setup.setup import Kind, Setup, Told
from grape_rl.sources.held_out import held_out_demonstrations
from grape_rl.sources.requirements import suited
from grape_rl.training.experience import ExperienceSource
from grape_rl.types import Sequences


def _rows(config: Config, row: Method) -> tuple[list[Row], list[Row]]:
    """Training rows and held-out rows as demonstrations; of held-out rows that are graded only prompts are needed."""
    data = config.data
    train, test = split(config)
    source, test_source = sources(data)
    train = suited(config, row, train, source)
    if data.tasks:
        train = synthesize_demonstrations(train, data.teacher.wrong, data.teacher.styles, config.seed)
        held_out = prompted(data, test, "prompt", None, test_source) if test else []
        return prompted(data, train, "prompt", "completion", source), held_out
    graded = bool(config.reward.rubric or config.reward.function or config.reward.model)
    held_out = _demonstrations(data, test, test_source, graded) if test else []
    if graded and held_out and not all(row.get("prompt") for row in held_out):
        raise ValueError(f"{test_source}: responses to held-out rows are graded, and not all of these have a prompt")
    return _demonstrations(data, train, source), held_out


def _demonstrations(data: Data, found: list[Row], source: str, prompts_will_do: bool = False) -> list[Row]:
    """The rows as prompts with completions, as whole conversations, or as text: by the columns of the first row.

    Raises:
        ValueError: no row of a kind that can be learned, or a later row that is of another kind.
    """
    first = found[0]
    if data.completion not in first:
        kinds: tuple[tuple[str, LanguageModelingColumn], ...] = ((data.messages, "messages"), (data.text, "text"))
        for column, kind in kinds:
            if column in first:
                if data.chat:
                    raise ValueError(f"data.chat makes messages of a prompt and a completion; {source} has {column!r}")
                return with_language_modeling(found, column, kind, data.system, source)
        if prompts_will_do:
            return prompted(data, found, data.prompt, None, source)
        if data.prompt not in first:
            columns = (data.prompt, data.completion, data.messages, data.text)
            near = next((hint for column in columns if (hint := did_you_mean(column, first))), "")
            raise ValueError(
                f"{source}: row 0 has no demonstration: {data.prompt!r} with {data.completion!r}, or "
                f"{data.messages!r}, or {data.text!r}; it has {', '.join(map(repr, first)) or 'none'}{near}"
            )
    return prompted(data, found, data.prompt, data.completion, source)


def _source(setup: Setup) -> tuple[ExperienceSource, Told]:
    """The rows as examples; warns of rows that lost their end, or were left out."""
    found, lengths = _examples(setup, setup.train, "data")
    limit = min(setup.config.data.max_length, setup.now.context)
    told: Told = []
    if lengths.truncated:
        told.append(("cut", f"{lengths.truncated} of {lengths.rows} demonstrations are cut at {limit} tokens"))
    if lengths.dropped:
        which = f"{lengths.dropped} of {lengths.rows} demonstrations"
        told.append(("left_out", f"{which} have nothing to learn within {limit} tokens: left out"))
    return demonstrations(found, setup.config.prompts_per_step, setup.config.seed), told


def _batches(setup: Setup) -> Callable[[int], Sequences]:
    source = demonstrations(_examples(setup, setup.train, "data")[0], setup.config.prompts_per_step, setup.config.seed)
    return lambda step: source(step).sequences


def _held_out(setup: Setup) -> Callable[[], tuple[ItemSummary, ...]] | None:
    if not all({"completion", "messages", "text"} & row.keys() for row in setup.test):
        return None
    found, _ = _examples(setup, setup.test, "held-out data")
    return lambda: held_out_demonstrations(setup.now.model, found, setup.forward())


def _examples(setup: Setup, rows: Sequence[Row], source: str) -> tuple[list[Example], TruncationStats]:
    data, at = setup.config.data, setup.now
    return tokenize_demonstrations(rows, at.tokenizer, at.end, min(data.max_length, at.context), source, data.learn)


DEMONSTRATIONS = Kind(_rows, _source, _batches, _held_out)
