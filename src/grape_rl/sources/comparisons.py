"""Runs of reward models on pairs of responses."""

from collections.abc import Callable, Sequence

from grape_rl.data.comparisons import PairWithMargin
from grape_rl.methods import Comparisons, keywords
from grape_rl.model.reward_head import set_step_separator
from grape_rl.reward.scores import ItemSummary
from grape_rl.setup.rows import Row
from grape_rl.setup.setup import Kind, Setup, Told
from grape_rl.sources.preferences import PREFERENCES
from grape_rl.training.experience import ExperienceSource
from grape_rl.training.reward_modeling import compared, comparing, held_out_comparisons
from grape_rl.types import Sequences


def _source(setup: Setup) -> tuple[ExperienceSource, Told]:
    set_step_separator(setup.now.model, None)
    found, told = _comparisons(setup, setup.train, "data")
    return comparing(found, setup.config.prompts_per_step, setup.config.seed), told


def _batches(setup: Setup) -> Callable[[int], Sequences]:
    found, _ = _comparisons(setup, setup.train, "data")
    source = comparing(found, setup.config.prompts_per_step, setup.config.seed)
    return lambda step: source(step).sequences


def _held_out(setup: Setup) -> Callable[[], tuple[ItemSummary, ...]]:
    found, _ = _comparisons(setup, setup.test, "held-out data")
    test = compared(found)
    return lambda: held_out_comparisons(setup.now.model, test, setup.forward())


def _comparisons(setup: Setup, rows: Sequence[Row], source: str) -> tuple[list[PairWithMargin], Told]:
    """The rows as pairs in tokens with their margins; warns of those that are left out."""
    data, at, kind = setup.config.data, setup.now, setup.row.source
    assert isinstance(kind, Comparisons)
    limit = min(data.max_length, at.context)
    columns = ("margin", "chosen_reward", "rejected_reward")
    if data.source:
        columns = (data.margin, data.chosen_reward, data.rejected_reward)
    found, lengths = kind.encoded(
        rows, at.tokenizer, at.end, limit, columns, source, **keywords(kind.encoded, setup.chosen)
    )
    message = f"{lengths.dropped} of {lengths.rows} pairs do not fit into {limit} tokens, or do not differ: left out"
    return found, [("left_out", message)] if lengths.dropped else []


COMPARISONS = Kind(PREFERENCES.rows, _source, _batches, _held_out, scalar=True)
