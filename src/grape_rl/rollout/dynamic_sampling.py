"""Sampling strategies: sample each group once, or replace groups of equal rewards by dynamic sampling."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from pydantic import NonNegativeInt
from torch import Tensor

from grape_rl.rollout.scored_rollout import ScoredRollout, append_rows, stack_padded
from grape_rl.types import Rollout, Scores

SampleGroups = Callable[[int, int], ScoredRollout]
"""(round, number of prompts) → a group of responses to each prompt. Each round has its own prompts and seed."""

SamplingStrategy = Callable[[SampleGroups, int], ScoredRollout]
"""A function that calls ``SampleGroups`` once or more → the responses of a step to that number of prompts."""


def single_draw(sample_groups: SampleGroups, prompts: int) -> ScoredRollout:
    """Sample each group once (no dynamic sampling)."""
    return sample_groups(0, prompts)


def dynamic_sampling(sample_groups: SampleGroups, prompts: int, extra_draws: NonNegativeInt = 3) -> ScoredRollout:
    """Dynamic sampling: replace groups whose rewards are all equal by groups of other prompts.

    Responses of a group with equal rewards have no advantage. Each of at most ``extra_draws`` further rounds samples
    as many new prompts as there are such groups. New groups whose rewards differ replace groups whose rewards do not.

    DAPO (arXiv 2503.14476), section 3.2, samples until the batch is full. Here ``extra_draws`` bounds the cost of a
    step, so that groups of equal rewards may remain.
    """
    scored = sample_groups(0, prompts)
    for extra in range(1, extra_draws + 1):
        missing = int(zero_variance_groups(scored.scores.reward, scored.rollout.group).sum())
        if not missing:
            break
        scored = _replace_groups(scored, sample_groups(extra, missing))
    return scored


def zero_variance_groups(reward: Float[Tensor, " b"], group: Int[Tensor, " b"]) -> Bool[Tensor, " g"]:
    """True for each group in which no two rewards differ. NaN rewards are ignored."""
    known = ~reward.isnan()
    count = int(group.max()) + 1
    low = torch.full((count,), math.inf, dtype=reward.dtype).scatter_reduce(0, group[known], reward[known], "amin")
    high = torch.full((count,), -math.inf, dtype=reward.dtype).scatter_reduce(0, group[known], reward[known], "amax")
    return ~(high > low)


def _replace_groups(old: ScoredRollout, new: ScoredRollout) -> ScoredRollout:
    """``old`` with as many of its zero-variance groups as possible replaced by groups of ``new`` with variance."""
    # Which group of ``new`` replaces which group of ``old``.
    replaceable = zero_variance_groups(old.scores.reward, old.rollout.group).nonzero().flatten().tolist()
    useful = (~zero_variance_groups(new.scores.reward, new.rollout.group)).nonzero().flatten().tolist()
    old_group = dict(zip(useful, replaceable, strict=False))
    replaced, prompts = set(old_group.values()), list(old.rollout.prompts)
    for new_index, old_index in old_group.items():
        prompts[old_index] = new.rollout.prompts[new_index]

    # Which rows of each remain.
    old_rows = torch.tensor([g not in replaced for g in old.rollout.group.tolist()])
    new_rows = torch.tensor([g in old_group for g in new.rollout.group.tolist()])
    rows = torch.cat([old_rows, new_rows])

    def joined(old_values: Sequence[Any], new_values: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(value for value, remains in zip([*old_values, *new_values], rows, strict=True) if remains)

    # The remaining rows, with the new ones in the groups of those that they replace.
    renumbered = torch.tensor([old_group.get(g, -1) for g in new.rollout.group.tolist()])
    both = append_rows(old.rollout, replace(new.rollout, group=renumbered))
    rollout: Rollout = replace(
        both,
        prompts=tuple(prompts),
        tokens=both.tokens[rows],
        mask=both.mask[rows],
        group=both.group[rows],
        behavior_logp=both.behavior_logp[rows],
        finish=joined(old.rollout.finish, new.rollout.finish),
    )
    compared = None
    if old.scores.compared is not None and new.scores.compared is not None:
        compared = torch.cat([old.scores.compared[old_rows], new.scores.compared[new_rows]])
    scores = Scores(
        torch.cat([old.scores.reward[old_rows], new.scores.reward[new_rows]]),
        joined(old.scores.verdicts, new.scores.verdicts),
        joined(old.scores.category, new.scores.category),
        compared,
        old.scores.memory,
        joined(old.scores.items, new.scores.items) if old.scores.items else (),
    )
    reference_logp = None
    if old.reference_logp is not None and new.reference_logp is not None:
        reference_logp = stack_padded(old.reference_logp, new.reference_logp)[rows]
    return ScoredRollout(rollout, joined(old.responses, new.responses), scores, reference_logp)
