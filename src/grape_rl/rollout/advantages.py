"""From what a rollout earned to what its tokens are credited with: rewards, values, advantages."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from grape_rl.maths.value import explained_variance
from grape_rl.rollout.dynamic_sampling import ScoredRollout, numbered
from grape_rl.types import Batch, Sequences, ValuedBatch


@dataclass(frozen=True)
class AdvantageInputs:
    """What an advantage may rest on beside the rewards of the responses.

    ``token_reward`` (reward, behavior_logp, reference_logp, mask → "b t") gives rewards to tokens, less what the KL to
    the reference costs; ``values`` says what the value function expects before each token; ``rescaled``
    (advantage, mask → "b t") sets the scale of tokens' advantages, when the values' targets are known.

    ``memory`` holds the numbers that the last step left, and ``remembers`` the functions that make them anew, by the
    same names: of ``previous`` (the old number), ``reward``, ``response_kl`` and ``responses``.
    """

    token_reward: Callable[..., Tensor] | None = None
    values: Callable[[Sequences], Tensor] | None = None
    rescaled: Callable[..., Tensor] | None = None
    remembers: Mapping[str, Callable[..., float]] = field(default_factory=dict[str, Callable[..., float]])
    memory: Mapping[str, float] = field(default_factory=dict[str, float])


PLAIN = AdvantageInputs()
"""Rewards alone."""


@dataclass(frozen=True)
class AdvantageEstimate:
    """What the objective sees, each response's advantage (NaN: left out; the mean over its tokens), and what is told.

    ``memory`` is what the next step finds in the place of this one's.
    """

    batch: Batch
    advantage: Float[Tensor, " b"]
    metrics: dict[str, float]
    memory: dict[str, float]


def estimate_advantages(
    advantage: Callable[..., Tensor],
    credit: AdvantageInputs,
    drawn: ScoredRollout,
    reference_logp: Float[Tensor, "b t"] | None,
    max_tokens: int,
    seed: int,
) -> AdvantageEstimate:
    """The batch of a draw. The parameters of ``advantage`` name what it reads.

    ``reward`` (less the KL, where ``token_reward`` takes it off), ``group``, ``length`` (each response's tokens),
    ``response`` (the same number for the same tokens), ``max_tokens`` (the most that one may have), ``seed`` (of the
    step), ``mask``, ``behavior_logp``,
    ``reference_logp``, ``token_reward``, ``value``, and any name in ``memory``. It gives a number a response or one a
    token. Without a reference the behavior policy stands in for it, which makes its KL 0.
    """
    rollout, scores = drawn.rollout, drawn.scores
    reward = scores.reward if scores.compared is None else scores.compared
    mask, behavior = rollout.mask, rollout.behavior_logp
    against = behavior if reference_logp is None else reference_logp
    per_token = {"behavior_logp": behavior, "reference_logp": against, "mask": mask}
    metrics = dict(credit.memory)
    available: dict[str, Any] = {**per_token, **credit.memory}
    response_kl = float((behavior - against).masked_fill(~mask, 0).sum(dim=1)[drawn.revision_of < 0].mean())
    if credit.token_reward:
        available["token_reward"] = credit.token_reward(reward=reward, **per_token)
        spent = -credit.token_reward(reward=torch.zeros_like(reward), **per_token).sum(dim=1).to(reward)
        reward = reward - spent
        if reference_logp is not None:
            metrics |= {"kl_in_reward": float(spent.mean()), "response_kl": response_kl}
    if credit.values:
        available["value"] = credit.values(rollout)
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
        available["response"] = numbered(rollout)
    found = advantage(**_asked(advantage, available))
    of_row = found if found.ndim == 1 else found.masked_fill(~mask, 0).sum(dim=1) / mask.sum(dim=1)
    mask = mask & ~of_row.isnan()[:, None]
    tokens = found.nan_to_num().float()
    tokens = tokens[:, None].expand_as(behavior) if found.ndim == 1 else tokens.masked_fill(~mask, 0)
    batch = Batch(mask, behavior, against, credit.rescaled(tokens, mask) if credit.rescaled else tokens)
    if credit.values:
        value = available["value"]
        batch = ValuedBatch(**vars(batch), behavior_value=value, value_target=tokens + value)
        metrics["explained_variance"] = explained_variance(value, tokens + value, mask)
    return AdvantageEstimate(batch, of_row, metrics, remembered(credit, available))


def remembered(credit: AdvantageInputs, available: Mapping[str, Any]) -> dict[str, float]:
    """What a step leaves to the next, made of what is at hand."""
    return {
        name: function(**_asked(function, {**available, "previous": credit.memory[name]}))
        for name, function in credit.remembers.items()
    }


def _asked(function: Callable[..., Any], available: Mapping[str, Any]) -> dict[str, Any]:
    return {name: available[name] for name in inspect.signature(function).parameters if name in available}
