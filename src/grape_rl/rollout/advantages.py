"""Advantage estimation: from rewards and values to per-token advantages."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from grape_rl.maths.value import explained_variance
from grape_rl.rollout.scored_rollout import ScoredRollout, response_ids
from grape_rl.types import Sequences, TokenBatch, ValueBatch


@dataclass(frozen=True)
class AdvantageInputs:
    """Inputs of an advantage, in addition to the rewards of the responses.

    Attributes:
        token_reward: (reward, behavior_logp, reference_logp, mask) → ``"b t"`` per-token rewards, minus the penalty on
            the KL to the reference policy.
        values: sequences → the value function's estimate before each token.
        rescale: (advantage, mask) → ``"b t"`` rescaled advantages, for example whitened. Value targets are computed
            before.
        memory_updates: functions that update the numbers of ``memory``, by the same names. Their parameters are any of
            ``previous`` (the number now), ``reward``, ``response_kl`` and ``responses``.
        memory: numbers of the previous step.
    """

    token_reward: Callable[..., Tensor] | None = None
    values: Callable[[Sequences], Tensor] | None = None
    rescale: Callable[..., Tensor] | None = None
    memory_updates: Mapping[str, Callable[..., float]] = field(default_factory=dict[str, Callable[..., float]])
    memory: Mapping[str, float] = field(default_factory=dict[str, float])


REWARD_ONLY = AdvantageInputs()
"""Advantages from the rewards of whole responses alone."""


@dataclass(frozen=True)
class AdvantageEstimate:
    """Advantages of a step's responses.

    Attributes:
        batch: the per-token fields that the loss reads.
        advantage: one number for each response, the mean over its tokens; NaN if it is left out.
        metrics: numbers for the log.
        memory: numbers for the next step.
    """

    batch: TokenBatch
    advantage: Float[Tensor, " b"]
    metrics: dict[str, float]
    memory: dict[str, float]


def estimate_advantages(
    advantage: Callable[..., Tensor], inputs: AdvantageInputs, scored: ScoredRollout, max_tokens: int, seed: int
) -> AdvantageEstimate:
    """Advantages by the function ``advantage``, which returns one per response (``" b"``) or per token (``"b t"``).

    Its parameters are any of ``reward`` (minus the KL penalty, if ``token_reward`` subtracts one), ``group``,
    ``length`` (tokens of each response), ``response`` (equal numbers for equal responses), ``max_tokens`` (the longest
    response), ``seed`` (of the step), ``mask``, ``behavior_logp``, ``reference_logp``, ``token_reward``, ``value``,
    ``response_kl``, ``responses``, and any name in ``memory``.

    Without a reference policy, the behavior policy takes its place, so that the KL is 0.

    Raises:
        ValueError: the function's result has another shape.
    """
    rollout, scores = scored.rollout, scored.scores
    reward = scores.reward if scores.compared is None else scores.compared
    mask, behavior = rollout.mask, rollout.behavior_logp
    reference = behavior if scored.reference_logp is None else scored.reference_logp
    per_token = {"behavior_logp": behavior, "reference_logp": reference, "mask": mask}
    metrics = dict(inputs.memory)
    available: dict[str, Any] = {**per_token, **inputs.memory}

    # Rewards per token, and the KL penalty that they contain.
    response_kl = float((behavior - reference).masked_fill(~mask, 0).sum(dim=1)[scored.revision_of < 0].mean())
    if inputs.token_reward:
        available["token_reward"] = inputs.token_reward(reward=reward, **per_token)
        penalty = -inputs.token_reward(reward=torch.zeros_like(reward), **per_token).sum(dim=1).to(reward)
        reward = reward - penalty
        if scored.reference_logp is not None:
            metrics |= {"kl_penalty": float(penalty.mean()), "response_kl": response_kl}
    if inputs.values:
        available["value"] = inputs.values(rollout)
    available |= {
        "reward": reward,
        "group": rollout.group,
        "length": mask.sum(dim=1),
        "max_tokens": max_tokens,
        "seed": seed,
        "response_kl": response_kl,
        "responses": len(reward),
    }
    if "response" in inspect.signature(advantage).parameters:
        available["response"] = response_ids(rollout)

    # Advantages per response and per token. Responses without one leave the mask.
    estimate = advantage(**_arguments(advantage, available))
    per_response = estimate.ndim == 1
    if estimate.shape != (mask.shape[:1] if per_response else mask.shape):
        name = getattr(advantage, "func", advantage).__name__
        raise ValueError(
            f"{name}: the advantage has the shape {list(estimate.shape)}: it should be one number per response "
            f"({len(mask)}) or per token ({list(mask.shape)})"
        )
    response_advantage = estimate if per_response else estimate.masked_fill(~mask, 0).sum(dim=1) / mask.sum(dim=1)
    mask = mask & ~response_advantage.isnan()[:, None]
    token_advantage = estimate.nan_to_num().float()
    token_advantage = (
        token_advantage[:, None].expand_as(behavior) if per_response else token_advantage.masked_fill(~mask, 0)
    )
    rescaled = inputs.rescale(token_advantage, mask) if inputs.rescale else token_advantage
    batch = TokenBatch(mask, behavior, reference, rescaled)

    # Value targets: the advantage before rescaling, plus the value.
    if inputs.values:
        value = available["value"]
        batch = ValueBatch(**vars(batch), behavior_value=value, value_target=token_advantage + value)
        metrics["explained_variance"] = explained_variance(value, token_advantage + value, mask)
    return AdvantageEstimate(batch, response_advantage, metrics, next_memory(inputs, available))


def next_memory(inputs: AdvantageInputs, available: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of ``memory``, updated from the ``available`` inputs."""
    return {
        name: function(**_arguments(function, {**available, "previous": inputs.memory[name]}))
        for name, function in inputs.memory_updates.items()
    }


def _arguments(function: Callable[..., Any], available: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the ``available`` inputs that are parameters of the function."""
    return {name: available[name] for name in inspect.signature(function).parameters if name in available}
