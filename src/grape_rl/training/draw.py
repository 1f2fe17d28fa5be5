"""A step's responses: drawn once, or drawn again for other prompts where there is nothing to compare."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from pydantic import NonNegativeInt
from torch import Tensor
from torch.nn.functional import pad

from grape_rl.types import Response, Rollout, Scores


@dataclass(frozen=True)
class Drawn:
    """Responses that were sampled, as graders saw them, with what came of it."""

    rollout: Rollout
    answers: tuple[Response, ...]
    scores: Scores


Draw = Callable[[int, int], Drawn]
"""The round, from 0, and how many prompts → their responses. Each round has prompts and a seed of its own."""


def once(draw: Draw, prompts: int) -> Drawn:
    """The first draw, whatever came of it."""
    return draw(0, prompts)


def until_varied(draw: Draw, prompts: int, extra_draws: NonNegativeInt = 3) -> Drawn:
    """Draws until no group's rewards are all equal, or ``extra_draws`` more were made: DAPO's dynamic sampling.

    A group whose rewards are all equal has no advantage, and its prompt is wasted. Each further draw asks as many other
    prompts as there are such groups, and those whose rewards differ take the places of groups whose rewards do not.
    DAPO (arXiv 2503.14476), section 3.2, draws on until the batch is full; here a bound keeps a step's cost in hand.
    """
    drawn = draw(0, prompts)
    for extra in range(1, extra_draws + 1):
        missing = int(equal_groups(drawn.scores.reward, drawn.rollout.group).sum())
        if not missing:
            break
        drawn = _filled(drawn, draw(extra, missing))
    return drawn


def equal_groups(reward: Float[Tensor, " b"], group: Int[Tensor, " b"]) -> Bool[Tensor, " g"]:
    """Which groups have no two rewards that differ, so that nothing can be learned by comparing within them."""
    known = ~reward.isnan()
    count = int(group.max()) + 1
    low = torch.full((count,), math.inf, dtype=reward.dtype).scatter_reduce(0, group[known], reward[known], "amin")
    high = torch.full((count,), -math.inf, dtype=reward.dtype).scatter_reduce(0, group[known], reward[known], "amax")
    return ~(high > low)


def numbered(rollout: Rollout) -> Int[Tensor, " b"]:
    """Which response each row is: two rows have the same number if they answer one prompt by the same tokens."""
    over = rollout.mask.flip(1).cumsum(dim=1).flip(1) == 0  # what stands behind a row's last token is padding
    parts = (rollout.group[:, None], rollout.mask.long(), rollout.tokens.masked_fill(over, -1))
    return torch.unique(torch.cat(parts, dim=1), dim=0, return_inverse=True)[1]


def _filled(old: Drawn, new: Drawn) -> Drawn:
    """The old groups, but for each new one whose rewards differ, in the place of one whose rewards do not."""
    idle = equal_groups(old.scores.reward, old.rollout.group).nonzero().flatten().tolist()
    fresh = (~equal_groups(new.scores.reward, new.rollout.group)).nonzero().flatten().tolist()
    place = dict(zip(fresh, idle, strict=False))
    leaving, prompts = set(place.values()), list(old.rollout.prompts)
    for n, g in place.items():
        prompts[g] = new.rollout.prompts[n]
    stay = torch.tensor([g not in leaving for g in old.rollout.group.tolist()])
    come = torch.tensor([n in place for n in new.rollout.group.tolist()])
    renumbered = torch.tensor([place.get(n, -1) for n in new.rollout.group.tolist()])
    width = max(old.rollout.tokens.shape[1], new.rollout.tokens.shape[1])

    def both(name: str) -> Tensor:
        parts = ((getattr(old.rollout, name), stay), (getattr(new.rollout, name), come))
        return torch.cat([pad(field, (0, width - field.shape[1]))[rows] for field, rows in parts])

    def joined(a: Sequence[Any], b: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(v for values, rows in ((a, stay), (b, come)) for v, kept in zip(values, rows, strict=True) if kept)

    rollout = replace(
        old.rollout,
        prompts=tuple(prompts),
        tokens=both("tokens"),
        mask=both("mask"),
        group=torch.cat([old.rollout.group[stay], renumbered[come]]),
        behavior_logp=both("behavior_logp"),
        finish=joined(old.rollout.finish, new.rollout.finish),
    )
    compared = None
    if old.scores.compared is not None and new.scores.compared is not None:
        compared = torch.cat([old.scores.compared[stay], new.scores.compared[come]])
    scores = Scores(
        torch.cat([old.scores.reward[stay], new.scores.reward[come]]),
        joined(old.scores.verdicts, new.scores.verdicts),
        joined(old.scores.category, new.scores.category),
        compared,
        old.scores.memory,
    )
    return Drawn(rollout, joined(old.answers, new.answers), scores)
