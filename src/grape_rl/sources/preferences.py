"""Runs on pairs of responses that the data prefers one of."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from transformers import PreTrainedModel

from grape_rl.config import Config
from grape_rl.data.preferences import Pair, collate_pairs, synthesize_preferences, tokenize_pairs, with_preferences
from grape_rl.methods import Method, objective
from grape_rl.model.load import frozen_copy
from grape_rl.model.reference_logprobs import LogprobFunction
from grape_rl.reward.scores import ItemSummary
from grape_rl.setup.reference import cached_reference
from grape_rl.setup.rows import Row, message, sources, split
from grape_rl.setup.setup import Kind, Setup, Told
from grape_rl.sources.held_out import held_out_pairs
from grape_rl.sources.requirements import suited
from grape_rl.training.experience import ExperienceSource
from grape_rl.training.moving_reference import moving_reference
from grape_rl.training.objective import DISTRIBUTION_FIELDS
from grape_rl.training.pairs import pair_experience, pair_logprobs, preferences
from grape_rl.types import Sequences


def _rows(config: Config, row: Method) -> tuple[list[Row], list[Row]]:
    """Training rows and held-out rows, each with a ``prompt``, a ``chosen`` and a ``rejected``."""
    (train, test), (source, test_source) = split(config), sources(config.data)
    return preferred(config, suited(config, row, train, source), suited(config, row, test, test_source))


def preferred(config: Config, train: list[Row], test: list[Row]) -> tuple[list[Row], list[Row]]:
    """Training rows and held-out rows as the data has them, each with a ``prompt``, a ``chosen`` and a ``rejected``.

    Raises:
        ValueError: as ``with_preferences`` and ``contrasted``.
    """
    data = config.data
    if data.tasks:  # together, so that a wrong answer can be found for the only held-out row of a task
        both = synthesize_preferences([*train, *test], data.teacher.wrong, list(data.teacher.styles), config.seed)
        both = [_conversation(row, "prompt", "chosen", "rejected") for row in both] if data.chat else both
        ready = with_preferences(both, system=data.system, source="tasks")
        return ready[: len(train)], ready[len(train) :]
    columns = (data.prompt, data.chosen, data.rejected)
    if data.chat:
        train, test = ([_conversation(row, *columns) for row in part] for part in (train, test))
    return (
        with_preferences(train, *columns, data.system, str(data.source)),
        with_preferences(test, *columns, data.system, str(data.held_out or data.source)),
    )


def _conversation(row: Row, prompt: str, chosen: str, rejected: str) -> Row:
    """The row with its plain prompt and responses as messages; what is amiss with it is left to be told.

    Raises:
        ValueError: plain responses without a prompt: what both begin with is no user's message of its own.
    """
    if prompt not in row:
        if any(isinstance(row.get(name), str) for name in (chosen, rejected)):
            raise ValueError(f"data.chat makes messages of plain text, and so needs a column {prompt!r}; there is none")
        return row
    if isinstance(row[prompt], str) and (not row[prompt].strip() or isinstance(row.get(chosen), list)):
        return row
    roles = {prompt: "user", chosen: "assistant", rejected: "assistant"}
    return row | {name: message(row[name], role) for name, role in roles.items() if name in row}


def _source(setup: Setup) -> tuple[ExperienceSource, Told]:
    found, told = _pairs(setup, setup.train, "data")
    config = setup.config

    def source(reference: LogprobFunction | None, model: PreTrainedModel | None = None) -> ExperienceSource:
        return preferences(found, reference, config.prompts_per_step, config.seed, model)

    if not compares_with_reference(setup):
        return source(None), told
    if needs_reference_itself(setup):
        return source(*reference_of_pairs(setup)), told
    start = _logprobs(setup, setup.start.model)
    return cached_reference(
        setup, len(found), lambda rows: collate_pairs([found[i] for i in rows]), start, source
    ), told


def _batches(setup: Setup) -> Callable[[int], Sequences]:
    source = preferences(_pairs(setup, setup.train, "data")[0], None, setup.config.prompts_per_step, setup.config.seed)
    return lambda step: source(step).sequences


def _held_out(setup: Setup) -> Callable[[], tuple[ItemSummary, ...]]:
    found, _ = _pairs(setup, setup.test, "held-out data")
    test = pair_experience(found, _logprobs(setup, setup.start.model) if compares_with_reference(setup) else None)
    return lambda: held_out_pairs(setup.now.model, test, setup.forward())


def _pairs(setup: Setup, found: Sequence[Row], source: str) -> tuple[list[Pair], Told]:
    """The rows as pairs in tokens, and what there is to warn of. A loss that reads rewards is tried on theirs.

    Raises:
        ValueError: as ``pairs``, and rewards that the method's loss refuses: before training, not at the pair's turn.
    """
    config, row, at = setup.config, setup.row, setup.now
    limit = min(config.data.max_length, at.context)
    columns = ("chosen_reward", "rejected_reward")
    if config.data.source:
        columns = (config.data.chosen_reward, config.data.rejected_reward)
    made, lengths = tokenize_pairs(found, at.tokenizer, at.end, limit, columns, source)
    told = torch.tensor([[pair.chosen_reward, pair.rejected_reward] for pair in made])
    rewards = {"chosen_reward": told[:, 0], "rejected_reward": told[:, 1]}
    for term in objective(row, setup.chosen).terms:
        if not rewards.keys() & set(term.parameters):
            continue
        try:
            term.function(**{name: rewards.get(name, told[:, 0]) for name in term.parameters}, **term.options)
        except ValueError as error:
            raise ValueError(
                f"{source}: {row.name}: {error} (rewards are read from the columns {columns[0]!r} and {columns[1]!r}; "
                f"there are {', '.join(map(repr, found[0]))})"
            ) from error
    warnings: Told = []
    if lengths.truncated:
        warnings.append(("cut", f"{lengths.truncated} of {lengths.rows} pairs have a response cut at {limit} tokens"))
    if lengths.dropped:
        warnings.append(("left_out", f"{lengths.dropped} of {lengths.rows} pairs do not differ in {limit} tokens"))
    return made, warnings


def reference_of_pairs(setup: Setup, temperature: float = 1.0) -> tuple[LogprobFunction | None, PreTrainedModel | None]:
    """The reference's log-probs of pairs and the reference itself, for a method that compares the policy with it.

    Where the update moves it, it is a copy of its own, and its weights are remembered from step to step.
    """
    if not compares_with_reference(setup):
        return None, None
    if setup.row.update is not moving_reference:
        return _logprobs(setup, setup.reference, temperature), setup.reference
    model = frozen_copy(setup.start.model)
    setup.memory.update((f"reference.{name}", weight) for name, weight in model.named_parameters())
    return _logprobs(setup, model, temperature), model


def _logprobs(setup: Setup, model: PreTrainedModel, temperature: float = 1.0) -> LogprobFunction:
    return partial(pair_logprobs, model, forward=setup.forward(temperature))


def compares_with_reference(setup: Setup) -> bool:
    """Whether the method's loss of pairs reads anything of the reference."""
    return any(name.startswith("reference_") for name in objective(setup.row, setup.chosen).reads)


def needs_reference_itself(setup: Setup) -> bool:
    """Whether log-probs of its data rows will not do: the update moves it, or the loss reads its whole choices."""
    wholly = not objective(setup.row, setup.chosen).reads.isdisjoint(DISTRIBUTION_FIELDS)
    return compares_with_reference(setup) and (setup.row.update is moving_reference or wholly)


PREFERENCES = Kind(_rows, _source, _batches, _held_out)
