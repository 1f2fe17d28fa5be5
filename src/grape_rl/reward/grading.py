"""Grading by a rubric: who grades which item (programs, critics, reward models, people), and all the verdicts."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from grape_rl.model.forward import ForwardContext
from grape_rl.reward.check.worker import CheckJob, run_checks
from grape_rl.reward.classify import UNCLASSIFIED
from grape_rl.reward.critic.judging import Critic, CriticJob, Judging
from grape_rl.reward.critic.local import LocalCritic, load_local_critic, local_verdicts
from grape_rl.reward.critic.settings import CriticSettings, Endpoint, LocalModel, StubbedCritic
from grape_rl.reward.critic.stub import StubCritic
from grape_rl.reward.item import Item
from grape_rl.reward.model_grader import RewardModel, item_verdicts, readable, reward_model
from grape_rl.reward.rubric import Rubric, category_name, items_of
from grape_rl.types import Response, Verdict

CPU = torch.device("cpu")

Models = Mapping[str, RewardModel]
"""The reward models that a rubric names, loaded, by their names there."""


def grade(
    rubric: Rubric, responses: Sequence[Response], models: Models = MappingProxyType({}), critics: Judging | None = None
) -> tuple[tuple[str, ...], tuple[tuple[Verdict, ...], ...]]:
    """Each response's category, and its verdicts in the order of ``items_of``, monitors included.

    A response whose prompt the critic could not classify is ``UNCLASSIFIED``, with the missing verdict of that alone.

    Raises:
        ValueError: a row that belongs to no category, or to more than one, or whose own items are at fault.
    """
    homes = _homes(rubric, responses, critics)
    categories = _named(homes)
    graded_on = [items_of(rubric, name, each.row) for name, each in zip(categories, responses, strict=True)]
    pairs = [(i, item) for i, items in enumerate(graded_on) for item in items]
    # Critics are asked first, of everything at once: programs, people and models have graded before they answer.
    asked = [(i, judge_job(item, responses[i])) for i, item in pairs if item.judge]
    assert critics or not asked, "critics are to be made of the rubric, once its rows are checked"
    waiting = critics.submit([job for _, job in asked]) if critics and asked else None
    found: dict[tuple[int, str], Verdict] = {}
    checks = [(i, CheckJob(item.id, item.check, responses[i], item.worst)) for i, item in pairs if item.check]
    for (i, job), verdict in zip(checks, run_checks([job for _, job in checks]), strict=True):
        found[i, job.item] = verdict
    for i, item in pairs:
        if item.human:
            found[i, item.id] = item.human.verdict(item.id, responses[i])
    for item, rows in _by_model(pairs):
        assert item.reward_model
        of = models[item.reward_model.model]
        told = item_verdicts(of, item.reward_model, item.id, [responses[i] for i in rows])
        found |= {(i, item.id): verdict for i, verdict in zip(rows, told, strict=True)}
    for (i, job), verdict in zip(asked, waiting.result() if waiting else (), strict=True):
        found[i, job.item] = verdict
    lines = [tuple(found[i, item.id] for item in items) for i, items in enumerate(graded_on)]
    return categories, tuple(
        line if isinstance(home, str) else (home,) for home, line in zip(homes, lines, strict=True)
    )


def categories_of(rubric: Rubric, responses: Sequence[Response], critics: Judging | None = None) -> tuple[str, ...]:
    """Each response's category, as ``grade`` will find it.

    Raises:
        ValueError: a row that belongs to no category, or to more than one.
    """
    return _named(_homes(rubric, responses, critics))


def judging_ahead(rubric: Rubric, critics: Judging) -> Callable[[Response], None] | None:
    """What begins to judge a response while the rest of its batch is still being written.

    None where a critic says which items a prompt is judged on: it is asked when the batch is whole.
    """
    if rubric.classify and rubric.classify.critic:
        return None

    def ahead(response: Response) -> None:
        items = items_of(rubric, category_name(rubric, response.row), response.row)
        critics.prefetch([judge_job(item, response) for item in items if item.judge])

    return ahead


def judge_job(item: Item, response: Response) -> CriticJob:
    """What a critic is to judge of a response, on an item that critics judge."""
    assert item.judge
    return CriticJob(item.id, item.judge.for_row(response.row), response, item.worst)


def _named(homes: Sequence[str | Verdict]) -> tuple[str, ...]:
    return tuple(home if isinstance(home, str) else UNCLASSIFIED for home in homes)


def _homes(rubric: Rubric, responses: Sequence[Response], critics: Judging | None) -> list[str | Verdict]:
    """Each response's category, or the missing verdict of its prompt's classification."""
    if rubric.classify is None or rubric.classify.critic is None:
        return [category_name(rubric, response.row) for response in responses]
    assert critics
    found = rubric.classify.judged(responses, rubric.about, critics)
    return [found[response.prompt] for response in responses]


def _by_model(pairs: Sequence[tuple[int, Item]]) -> Iterable[tuple[Item, list[int]]]:
    """The items that a reward model grades, each with the responses that have it: many responses are graded at once."""
    found: dict[int, tuple[Item, list[int]]] = {}
    for i, item in pairs:
        if item.reward_model:
            found.setdefault(id(item), (item, []))[1].append(i)
    return found.values()


def rubric_models(
    rubric: Rubric,
    rows: Sequence[Mapping[str, Any]],
    device: torch.device,
    tokens_per_microbatch: int,
    precision: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Models:
    """The reward models that a rubric's items name, each loaded once, and tried on the prompts of ``rows``.

    Rows' own items are known once the rows are checked (``check_rows``).

    Raises:
        ValueError: one cannot be loaded, is not what its item takes it for, or cannot read a prompt.
    """
    found: dict[str, RewardModel] = {}
    for name, item in rubric.known_items:
        if (spec := item.reward_model) is None:
            continue
        try:
            if spec.model not in found:
                found[spec.model] = reward_model(spec.model, device, tokens_per_microbatch, precision)
                readable(found[spec.model], rows)
            found[spec.model].checked(spec.aggregate, spec.center, spec.scale)
        except ValueError as error:
            raise ValueError(f"item {item.id!r} of category {name!r}: {error}") from None
    return found


def rubric_critics(
    rubric: Rubric,
    endpoints: Mapping[str, CriticSettings],
    cache: Path | None = None,
    device: torch.device = CPU,
    tokens_per_microbatch: int = 8192,
    precision: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Judging | None:
    """The critics that a rubric names; None where it names none. ``cache`` is a file that keeps servers' answers.

    Those that run here are loaded, once each, onto ``device``. Rows' own items are known once the rows are checked
    (``check_rows``).

    Raises:
        ValueError: one that no endpoint has the name of; one that cannot be loaded, or cannot judge its item.
    """
    judges = [(f"item {item.id!r}", item.judge) for _, item in rubric.known_items if item.judge]
    if rubric.classify and (asked := rubric.classify.judge(rubric.about)):
        judges.append(("classify", asked))
    local: dict[str, LocalCritic] = {}
    for place, judge in judges:
        if judge.critic not in endpoints:
            known = ", ".join(endpoints) or "none"
            raise ValueError(f"{place}: no critic {judge.critic!r}; say where it is in critics (there: {known})")
        if isinstance(where := endpoints[judge.critic], LocalModel):
            try:
                if judge.critic not in local:
                    forward = ForwardContext(tokens_per_microbatch, precision)
                    local[judge.critic] = load_local_critic(where.local, device, forward)
                local[judge.critic].check_judge(judge)
            except ValueError as error:
                raise ValueError(f"{place}: {error}") from None
    if not judges:
        return None
    served = {
        judge.critic: where for _, judge in judges if not isinstance(where := endpoints[judge.critic], LocalModel)
    }
    asked_of = {name: _served(where) for name, where in served.items()}
    return Judging(asked_of, cache, {name: partial(local_verdicts, of) for name, of in local.items()})


def _served(where: Endpoint | StubbedCritic) -> Callable[[], Critic]:
    """What makes a critic for each batch, all of them within one limiter."""
    if isinstance(where, StubbedCritic):
        return partial(StubCritic, where.stub)
    from grape_rl.reward.critic.endpoint import Client  # openai takes its time to import

    return partial(Client, where, where.limiter())
