"""Grading by a rubric: who grades which item (programs, critics, reward models), and every response's verdicts."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from grape_rl.reward.critic.grading import Job, Judging
from grape_rl.reward.critic.local import LocalCritic, local_critic, local_verdicts
from grape_rl.reward.critic.where import Endpoint, Local
from grape_rl.reward.killable import graded
from grape_rl.reward.model_grader import RewardModel, item_verdicts, readable, reward_model
from grape_rl.reward.rubric import Item, Rubric, category_name
from grape_rl.types import Response, Verdict

CPU = torch.device("cpu")

Models = Mapping[str, RewardModel]
"""The reward models that a rubric names, loaded, by their names there."""


def grade(
    rubric: Rubric, responses: Sequence[Response], models: Models = MappingProxyType({}), critics: Judging | None = None
) -> tuple[tuple[str, ...], tuple[tuple[Verdict, ...], ...]]:
    """Each response's category, and its verdicts in the order of the category's items, monitors included.

    Raises:
        ValueError: a row that belongs to no category, or to more than one.
    """
    categories = tuple(category_name(rubric, response.row) for response in responses)
    members = {name: [i for i, other in enumerate(categories) if other == name] for name in dict.fromkeys(categories)}
    # Critics are asked first, of everything at once: programs and models grade as they answer.
    asked = [
        Job(item.id, item.judge.of(responses[i].row), responses[i], float(item.weight < 0))
        for name, rows in members.items()
        for item in rubric.categories[name].items
        if item.judge
        for i in rows
    ]
    waiting = critics.begin(asked) if critics else None
    others = {
        (name, item.id): _graded(item, [responses[i] for i in rows], models)
        for name, rows in members.items()
        for item in rubric.categories[name].items
        if not item.judge
    }
    judged = iter(waiting.result() if waiting else ())
    verdicts: list[tuple[Verdict, ...]] = [()] * len(responses)
    for name, rows in members.items():
        found = [
            [next(judged) for _ in rows] if item.judge else others[name, item.id]
            for item in rubric.categories[name].items
        ]
        for i, line in zip(rows, zip(*found, strict=True), strict=True):
            verdicts[i] = line
    return categories, tuple(verdicts)


def _graded(item: Item, responses: Sequence[Response], models: Models) -> list[Verdict]:
    """The verdicts of a program or a reward model on some responses."""
    if item.reward_model:
        return item_verdicts(models[item.reward_model.model], item.reward_model, item.id, responses)
    assert item.check
    return graded([(item.id, item.check, response) for response in responses])


def rubric_models(
    rubric: Rubric,
    rows: Sequence[Mapping[str, Any]],
    device: torch.device,
    tokens_per_microbatch: int,
    precision: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Models:
    """The reward models that a rubric's items name, each loaded once, and tried on the prompts of ``rows``.

    Raises:
        ValueError: one cannot be loaded, is not what its item takes it for, or cannot read a prompt.
    """
    found: dict[str, RewardModel] = {}
    for name, category in rubric.categories.items():
        for item in category.items:
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
    endpoints: Mapping[str, Endpoint | Local],
    cache: Path | None = None,
    device: torch.device = CPU,
    tokens_per_microbatch: int = 8192,
    precision: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Judging | None:
    """The critics that a rubric's items name; None where none does. ``cache`` is a file that keeps servers' answers.

    Those that run here are loaded, once each, onto ``device``.

    Raises:
        ValueError: one that no endpoint has the name of; one that cannot be loaded, or cannot judge its item.
    """
    judges = [(item.id, item.judge) for part in rubric.categories.values() for item in part.items if item.judge]
    local: dict[str, LocalCritic] = {}
    for item, judge in judges:
        if judge.critic not in endpoints:
            known = ", ".join(endpoints) or "none"
            raise ValueError(f"item {item!r}: no critic {judge.critic!r}; say where it is in critics (there: {known})")
        if isinstance(where := endpoints[judge.critic], Local):
            try:
                if judge.critic not in local:
                    local[judge.critic] = local_critic(where.local, device, tokens_per_microbatch, precision)
                local[judge.critic].checked(judge)
            except ValueError as error:
                raise ValueError(f"item {item!r}: {error}") from None
    if not judges:
        return None
    computed = {name: partial(local_verdicts, of) for name, of in local.items()}
    served = {judge.critic: where for _, judge in judges if isinstance(where := endpoints[judge.critic], Endpoint)}
    if not served:
        return Judging({}, cache, computed)
    from grape_rl.reward.critic.endpoint import Client  # openai takes its time to import

    return Judging({name: partial(Client, where, where.limiter()) for name, where in served.items()}, cache, computed)
