"""The grader of a run: a rubric, a reward function or a reward model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from grape_rl.config.config import Config
from grape_rl.maths.grape import unweighted
from grape_rl.model.forward import ForwardContext
from grape_rl.reward.canary import Canary, canaries
from grape_rl.reward.check.callables import python_callable
from grape_rl.reward.critic.settings import parse_critics
from grape_rl.reward.grading import assign_items, prefetch_judging, rubric_critics, rubric_models
from grape_rl.reward.pending_labels import stop_for_labels
from grape_rl.reward.reward_function import function_scorer
from grape_rl.reward.reward_model_grader import check_prompts, load_grader
from grape_rl.reward.rubric import Rubric, check_rows, load_rubric
from grape_rl.reward.running_confidence import RunningMeans
from grape_rl.reward.scores import Aggregate, Scorer, model_scorer, rubric_scorer
from grape_rl.rollout.decoded_responses import Prefetch
from grape_rl.setup.policy import device
from grape_rl.setup.rows import Row, graders_text
from grape_rl.types import Response

CANARY_ROWS = 100
"""Data rows that are searched for a prompt of each category, to check the critics with."""


@dataclass(frozen=True)
class Aggregation:
    """Functions from a rubric's verdicts to rewards, with a method's options bound.

    Attributes:
        aggregate: verdicts → the reward of each response.
        compared: verdicts → the number that the advantage compares, if it is not the reward.
        running: the running means of the critics' confidence, if ``aggregate`` reads them.
    """

    aggregate: Aggregate = unweighted
    compared: Aggregate | None = None
    running: RunningMeans | None = None


@dataclass(frozen=True)
class Grader:
    """The grader of a run.

    Attributes:
        scorer: grades a batch of responses.
        rubric: the rubric, if there is one.
        prefetch: starts judging a response before its batch is complete; None without critics.
        canaries: checks the critics on responses that must get the lowest score; None without critics.
        close: releases the critics' connections.
    """

    scorer: Scorer
    rubric: Rubric | None = None
    prefetch: Prefetch | None = None
    canaries: Callable[[], tuple[Canary, ...]] | None = None
    close: Callable[[], None] = lambda: None


def make_grader(config: Config, aggregation: Aggregation, rows: Sequence[Row]) -> Grader:
    """The grader that the configuration names, checked against the ``rows`` that it will grade.

    Raises:
        ValueError: the rubric, the function or the model cannot grade the rows.
    """
    on = device(config.device)
    precision = partial(torch.autocast, on.type, torch.bfloat16, enabled=config.precision == "bf16")
    forward = ForwardContext(config.tokens_per_microbatch, precision)
    if config.reward.rubric:
        return _rubric_grader(config, aggregation, rows, forward)
    if config.reward.model:
        model = load_grader(config.reward.model, on, forward)
        model.check_settings(config.reward.aggregate)
        check_prompts(model, rows)
        return Grader(model_scorer(model, config.reward.aggregate))
    assert config.reward.function is not None
    file, _, name = config.reward.function.rpartition(":")
    folder, file = (Path(file).parent, Path(file).name) if file.endswith(".py") else (Path(), file)
    return Grader(function_scorer(python_callable(f"{file}:{name}", folder, allow=[file]), name))


def _rubric_grader(config: Config, aggregation: Aggregation, rows: Sequence[Row], forward: ForwardContext) -> Grader:
    settings, on = config.reward, device(config.device)
    assert settings.rubric is not None
    rubric = load_rubric(settings.rubric, settings.allow)
    check_rows(rubric, rows)
    models = rubric_models(rubric, rows, on, forward)
    cache = Path(settings.critic_cache) if settings.critic_cache else None
    critic_endpoints = parse_critics(settings.critics, "reward.critics", Path(settings.rubric).parent, settings.allow)
    critics = rubric_critics(rubric, critic_endpoints, cache, on, forward)
    scorer = rubric_scorer(rubric, aggregation.aggregate, aggregation.compared, models, critics, aggregation.running)
    scorer = stop_for_labels(scorer, rubric)
    if critics is None:
        return Grader(scorer, rubric)
    prompts = [Response(graders_text(row["prompt"]), "", row, 0, "stop") for row in rows[:CANARY_ROWS]]

    def check_critics() -> tuple[Canary, ...]:
        return canaries(assign_items(rubric, prompts, critics), critics)

    return Grader(scorer, rubric, prefetch_judging(rubric, critics), check_critics, critics.close)
