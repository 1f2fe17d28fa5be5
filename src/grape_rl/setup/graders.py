"""Who grades responses, as a configuration names it."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from grape_rl.config import Config
from grape_rl.maths.grape import unweighted
from grape_rl.methods import Method, Responses, Sampled, keywords
from grape_rl.model.forward import ForwardContext
from grape_rl.reward.canary import Canary, canaries
from grape_rl.reward.check.callables import python_callable
from grape_rl.reward.critic.settings import endpoints
from grape_rl.reward.grading import assign_items, prefetch_judging, rubric_critics, rubric_models
from grape_rl.reward.pending_labels import stop_for_labels
from grape_rl.reward.reward_function import function_scorer
from grape_rl.reward.reward_model_grader import check_prompts, load_reward_model
from grape_rl.reward.rubric import check_rows, load_rubric
from grape_rl.reward.running_confidence import RunningMeans
from grape_rl.reward.scores import model_scorer, rubric_scorer
from grape_rl.setup.policy import device
from grape_rl.setup.rows import Row, graders_text
from grape_rl.setup.setup import Grader
from grape_rl.types import Response

CANARY_ROWS = 100
"""Among how many rows at the start of the data a prompt of each category is looked for, to try the critics on."""


def grader(
    config: Config, row: Method, chosen: dict[str, Any], graded: Sequence[Row], memory: Mapping[str, Any]
) -> Grader:
    """The grader that the configuration names, checked against the rows that it will grade.

    ``memory`` holds what the last step left, whenever it is called.
    """
    where = device(config.device)
    precision = partial(torch.autocast, where.type, torch.bfloat16, enabled=config.precision == "bf16")
    forward = ForwardContext(config.tokens_per_microbatch, precision)
    if config.reward.aggregate and not config.reward.model:
        raise ValueError("reward: aggregate is for the steps of a process reward model: name reward.model")
    if config.reward.rubric:
        rubric = load_rubric(config.reward.rubric, config.reward.allow)
        check_rows(rubric, graded)
        models = rubric_models(rubric, graded, where, forward)
        source = row.source if isinstance(row.source, Sampled) else None
        aggregate, compared = (source.aggregate, source.compared) if source else (unweighted, None)
        kept = Path(config.reward.critic_cache) if config.reward.critic_cache else None
        folder = Path(config.reward.rubric).parent
        where_from = endpoints(config.reward.critics, "reward.critics", folder, config.reward.allow)
        critics = rubric_critics(rubric, where_from, kept, where, forward)
        scorer = rubric_scorer(
            rubric,
            partial(aggregate, **keywords(aggregate, chosen)),
            partial(compared, **keywords(compared, chosen)) if compared else None,
            models,
            critics,
            _running(row, chosen, memory),
        )
        stopping = stop_for_labels(scorer, rubric)
        if critics is None:
            return Grader(stopping, rubric)
        prompts = [Response(graders_text(row["prompt"]), "", row, 0, "stop") for row in graded[:CANARY_ROWS]]

        def try_canaries() -> tuple[Canary, ...]:
            return canaries(assign_items(rubric, prompts, critics), critics)

        return Grader(stopping, rubric, prefetch_judging(rubric, critics), try_canaries, critics.close)
    if config.reward.model:
        of = load_reward_model(config.reward.model, where, forward)
        of.check_settings(config.reward.aggregate)
        check_prompts(of, graded)
        return Grader(model_scorer(of, config.reward.aggregate))
    assert config.reward.function is not None
    place, _, name = config.reward.function.rpartition(":")
    folder, place = (Path(place).parent, Path(place).name) if place.endswith(".py") else (Path(), place)
    return Grader(function_scorer(python_callable(f"{place}:{name}", folder, allow=[place]), name))


def _running(row: Method, chosen: dict[str, Any], memory: Mapping[str, Any]) -> RunningMeans | None:
    """The running means of a method that is to use them."""
    source = row.source
    if not isinstance(source, Responses) or source.running is None or chosen["scope"] != "running":
        return None
    return RunningMeans(partial(source.running, **keywords(source.running, chosen)), memory)
