"""Runs on single responses that the data labels desirable or not."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from transformers import PreTrainedModel

from grape_rl.config import Config
from grape_rl.data.chat import collate_examples
from grape_rl.data.labels import LabeledResponse, tokenize_labeled_responses, unpair, with_labels
from grape_rl.data.order import rows_of_step
from grape_rl.methods import Method, objective
from grape_rl.model.reference_logprobs import LogprobFunction
from grape_rl.reward.scores import ItemSummary
from grape_rl.setup.reference import cached_reference
from grape_rl.setup.rows import Row, prompted, sources, split
from grape_rl.setup.setup import Kind, Setup, Told
from grape_rl.sources.held_out import held_out_labels
from grape_rl.sources.preferences import preferred
from grape_rl.sources.requirements import suited
from grape_rl.training.experience import ExperienceSource
from grape_rl.training.labels import label_experience, label_logprobs, labels
from grape_rl.types import Sequences


def _rows(config: Config, row: Method) -> tuple[list[Row], list[Row]]:
    """Training rows and held-out rows: with a ``completion`` and a ``label``, or with a ``chosen`` and a ``rejected``.

    Pairs stay together here, so that a held-out prompt is answered once; they become two responses each in tokens.
    """
    data = config.data
    (train, test), (source, test_source) = split(config), sources(data)
    train, test = suited(config, row, train, source), suited(config, row, test, test_source)
    if data.tasks or (data.chosen in train[0] and not {data.completion, data.label} <= train[0].keys()):
        return preferred(config, train, test)
    train = with_labels(prompted(data, train, data.prompt, data.completion, source), data.label, source)
    test = with_labels(prompted(data, test, data.prompt, data.completion, test_source), data.label, test_source)
    return train, test


def _source(setup: Setup) -> tuple[ExperienceSource, Told]:
    config = setup.config
    found, told = _judged(setup, setup.train, "data")
    told += _unbalanced(setup, found)

    def source(reference: LogprobFunction) -> ExperienceSource:
        return labels(found, reference, config.prompts_per_step, config.seed, _mismatch(setup))

    if _mismatch(setup) is not None:  # which of them there are, each step's batch decides
        return source(_logprobs(setup, setup.reference)), told
    start = _logprobs(setup, setup.start.model)
    return cached_reference(
        setup, len(found), lambda rows: collate_examples([found[i].example for i in rows]), start, source
    ), told


def _batches(setup: Setup) -> Callable[[int], Sequences]:
    found, config = _judged(setup, setup.train, "data")[0], setup.config
    rows = partial(rows_of_step, len(found), config.prompts_per_step, seed=config.seed)
    return lambda step: collate_examples([found[i].example for i in rows(step)])


def _held_out(setup: Setup) -> Callable[[], tuple[ItemSummary, ...]]:
    found, _ = _judged(setup, setup.test, "held-out data")
    test = label_experience(found, _logprobs(setup, setup.start.model), mismatch=None)
    return lambda: held_out_labels(setup.now.model, test, setup.forward())


def _judged(setup: Setup, found: Sequence[Row], source: str) -> tuple[list[LabeledResponse], Told]:
    """The rows as labeled responses in tokens, and what there is to warn of."""
    at, limit = setup.now, _limit(setup)
    single = found if {"completion", "label"} <= found[0].keys() else unpair(found)
    made, lengths = tokenize_labeled_responses(single, at.tokenizer, at.end, limit, source)
    warnings: Told = []
    if lengths.truncated:
        warnings.append(("cut", f"{lengths.truncated} of {lengths.rows} responses are cut at {limit} tokens"))
    if lengths.dropped:
        warnings.append(
            ("left_out", f"{lengths.dropped} of {lengths.rows} prompts fill {limit} tokens alone: left out")
        )
    return made, warnings


def _unbalanced(setup: Setup, found: Sequence[LabeledResponse]) -> Iterator[tuple[str, str]]:
    """A warning where desirable and undesirable responses do not weigh as the method's paper says that they should."""
    good = sum(each.desirable for each in found)
    bad = len(found) - good
    if not good or not bad:
        one, other = ("desirable", "undesirable") if good else ("undesirable", "desirable")
        yield "one_label", f"all {len(found)} responses are {one}: there is no {other} one to tell them from"
        return
    up, down = setup.chosen["desirable_weight"], setup.chosen["undesirable_weight"]
    share = good * up / (bad * down) if bad * down else float("inf")
    if not 1 <= share <= 4 / 3:
        low, high = bad * down / good, bad * down / good * 4 / 3
        yield (
            "unbalanced",
            f"{good} desirable responses of weight {up:g} to {bad} undesirable ones of weight {down:g} are as "
            f"{share:.3g} to 1, and KTO's paper advises from 1 to 4/3: set options.desirable_weight between {low:.3g} "
            f"and {high:.3g}",
        )


def _logprobs(setup: Setup, model: PreTrainedModel) -> LogprobFunction:
    return partial(label_logprobs, model, forward=setup.forward())


def _mismatch(setup: Setup) -> int | None:
    """The longest mismatched response with its prompt in tokens, for a method that looks at them."""
    return _limit(setup) if "mismatched_gain" in objective(setup.row, setup.chosen).reads else None


def _limit(setup: Setup) -> int:
    return min(setup.config.data.max_length, setup.now.context)


LABELS = Kind(_rows, _source, _batches, _held_out)
