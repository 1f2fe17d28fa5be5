"""Grading by a rubric: the items of each response, and verdicts from programs, critics, reward models and people."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
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
from grape_rl.reward.reward_model_grader import RewardModel, check_prompts, item_verdicts, load_grader
from grape_rl.reward.rubric import Rubric, category_name, items_of
from grape_rl.types import Response, Verdict

_CPU, _FORWARD = torch.device("cpu"), ForwardContext(tokens_per_microbatch=8192)

RewardModels = Mapping[str, RewardModel]
"""The loaded reward models of a rubric, by the names that its items use."""


@dataclass(frozen=True)
class Assignment:
    """A response before grading: its category, and the items it will be graded on.

    If the critic could not classify the prompt, ``category`` is ``UNCLASSIFIED``, there are no items, and ``failure``
    is the missing verdict of the classification.
    """

    response: Response
    category: str
    items: tuple[Item, ...]
    failure: Verdict | None = None


@dataclass(frozen=True)
class GradedResponse:
    """A graded response: its category, its items, and their verdicts in the same order, monitors included.

    An unclassified response has no items, and one verdict: the missing verdict of the classification.
    """

    category: str
    items: tuple[Item, ...]
    verdicts: tuple[Verdict, ...]

    @property
    def rewarded(self) -> tuple[Item, ...]:
        """The items that count in the reward, monitors excluded."""
        return tuple(item for item in self.items if item.role == "reward")


def assign_items(
    rubric: Rubric, responses: Sequence[Response], critics: Judging | None = None
) -> tuple[Assignment, ...]:
    """Each response's category and items. Asks a critic only if one classifies.

    Raises:
        ValueError: a row belongs to no category or to more than one, or its own items are invalid.
    """
    if rubric.classify is None or rubric.classify.critic is None:
        categories: list[str | Verdict] = [category_name(rubric, response.row) for response in responses]
    else:
        assert critics
        by_prompt = rubric.classify.by_critic(responses, rubric.about, critics)
        categories = [by_prompt[response.prompt] for response in responses]
    return tuple(
        Assignment(response, category, items_of(rubric, category, response.row))
        if isinstance(category, str)
        else Assignment(response, UNCLASSIFIED, (), category)
        for response, category in zip(responses, categories, strict=True)
    )


def grade(
    assignments: Sequence[Assignment], models: RewardModels = MappingProxyType({}), critics: Judging | None = None
) -> tuple[GradedResponse, ...]:
    """Grade each response on its items, by the models of ``rubric_models`` and the critics of ``rubric_critics``."""
    pairs = [(i, item) for i, assignment in enumerate(assignments) for item in assignment.items]
    responses = [assignment.response for assignment in assignments]
    verdicts: dict[tuple[int, str], Verdict] = {}

    # Critics start first, with the whole batch; programs, people and reward models grade while they answer.
    judged = [(i, judge_job(item, responses[i])) for i, item in pairs if item.judge]
    assert critics or not judged, "a rubric with judged items needs rubric_critics"
    pending = critics.submit([job for _, job in judged]) if critics and judged else None

    # Programs.
    checks = [(i, CheckJob(item.id, item.check, responses[i], item.worst)) for i, item in pairs if item.check]
    for (i, job), verdict in zip(checks, run_checks([job for _, job in checks]), strict=True):
        verdicts[i, job.item] = verdict

    # People.
    for i, item in pairs:
        if item.human:
            verdicts[i, item.id] = item.human.verdict(item.id, responses[i])

    # Reward models, one batch per item.
    for item, rows in _by_reward_model_item(pairs):
        assert item.reward_model
        model = models[item.reward_model.model]
        batch = item_verdicts(model, item.reward_model, item.id, [responses[i] for i in rows])
        verdicts |= {(i, item.id): verdict for i, verdict in zip(rows, batch, strict=True)}

    for (i, job), verdict in zip(judged, pending.result() if pending else (), strict=True):
        verdicts[i, job.item] = verdict
    return tuple(
        GradedResponse(
            assignment.category,
            assignment.items,
            (assignment.failure,) if assignment.failure else tuple(verdicts[i, item.id] for item in assignment.items),
        )
        for i, assignment in enumerate(assignments)
    )


def prefetch_judging(rubric: Rubric, critics: Judging) -> Callable[[Response], None] | None:
    """A function that starts judging a finished response while the rest of its batch is still being sampled.

    None if a critic classifies: the items of a response are then unknown until the classification of the whole batch.
    """
    if rubric.classify and rubric.classify.critic:
        return None

    def prefetch(response: Response) -> None:
        items = items_of(rubric, category_name(rubric, response.row), response.row)
        critics.prefetch([judge_job(item, response) for item in items if item.judge])

    return prefetch


def judge_job(item: Item, response: Response) -> CriticJob:
    """The critic's job for one judged item of a response, with its lookups filled in."""
    assert item.judge
    return CriticJob(item.id, item.judge.for_row(response.row), response, item.worst)


def _by_reward_model_item(pairs: Sequence[tuple[int, Item]]) -> Iterable[tuple[Item, list[int]]]:
    """Each item that a reward model grades, with the indices of its responses."""
    rows: dict[int, tuple[Item, list[int]]] = {}
    for i, item in pairs:
        if item.reward_model:
            rows.setdefault(id(item), (item, []))[1].append(i)
    return rows.values()


def rubric_models(
    rubric: Rubric, rows: Sequence[Mapping[str, Any]], device: torch.device, forward: ForwardContext
) -> RewardModels:
    """Load the reward models that a rubric names, each once, and check that they can read the prompts of ``rows``.

    Call ``check_rows`` first: it reads the rows' own items, which may name models too.

    Raises:
        ValueError: a model cannot be loaded, does not fit its item's settings, or cannot read a prompt.
    """
    models: dict[str, RewardModel] = {}
    for category, item in rubric.known_items:
        if (settings := item.reward_model) is None:
            continue
        try:
            if settings.model not in models:
                models[settings.model] = load_grader(settings.model, device, forward)
                check_prompts(models[settings.model], rows)
            models[settings.model].check_settings(settings.aggregate, settings.center, settings.scale)
        except ValueError as error:
            raise ValueError(f"item {item.id!r} of category {category!r}: {error}") from None
    return models


def rubric_critics(
    rubric: Rubric,
    endpoints: Mapping[str, CriticSettings],
    cache: Path | None = None,
    device: torch.device = _CPU,
    forward: ForwardContext = _FORWARD,
) -> Judging | None:
    """The critics that a rubric names; None if it names none. LocalModel critics are loaded onto ``device``, each once.

    ``cache`` is a file that stores the answers of served critics. Call ``check_rows`` first: it reads the rows' own
    items, which may name critics too.

    Raises:
        ValueError: no endpoint has the critic's name, or a local critic cannot be loaded or cannot judge its item.
    """
    judges = [(f"item {item.id!r}", item.judge) for _, item in rubric.known_items if item.judge]
    if rubric.classify and (classifier := rubric.classify.judge(rubric.about)):
        judges.append(("classify", classifier))
    local: dict[str, LocalCritic] = {}
    for place, judge in judges:
        if judge.critic not in endpoints:
            known = ", ".join(endpoints) or "none"
            raise ValueError(f"{place}: unknown critic {judge.critic!r}; add it to critics (known: {known})")
        if isinstance(where := endpoints[judge.critic], LocalModel):
            try:
                if judge.critic not in local:
                    local[judge.critic] = load_local_critic(where.local, device, forward)
                local[judge.critic].check_judge(judge)
            except ValueError as error:
                raise ValueError(f"{place}: {error}") from None
    if not judges:
        return None
    served = {
        judge.critic: where for _, judge in judges if not isinstance(where := endpoints[judge.critic], LocalModel)
    }
    factories = {name: _critic_factory(where) for name, where in served.items()}
    return Judging(factories, cache, {name: partial(local_verdicts, critic) for name, critic in local.items()})


def _critic_factory(where: Endpoint | StubbedCritic) -> Callable[[], Critic]:
    """A function that makes a critic for each batch. All of them share one rate limiter."""
    if isinstance(where, StubbedCritic):
        return partial(StubCritic, where.stub)
    from grape_rl.reward.critic.endpoint import Client  # openai is slow to import

    return partial(Client, where, where.limiter())
