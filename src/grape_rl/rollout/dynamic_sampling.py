"""A step's responses: drawn once, or drawn again for other prompts where there is nothing to compare."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from pydantic import NonNegativeInt
from torch import Tensor
from torch.nn.functional import pad

from grape_rl.types import Response, Rollout, Scores


@dataclass(frozen=True)
class Revised:
    """Which of a draw's responses are others written anew: its last rows, in order.

    ``of`` is the row that each revises, ``critiques`` what the policy read as it wrote it. ``metrics`` and ``warnings``
    are what the log says of it.
    """

    of: tuple[int, ...] = ()
    critiques: tuple[str, ...] = ()
    metrics: dict[str, float] = field(default_factory=dict[str, float])
    warnings: tuple[tuple[str, str], ...] = ()


UNREVISED = Revised()
"""None of them is."""


@dataclass(frozen=True)
class ScoredRollout:
    """Responses that were sampled, as graders saw them, with scores, and log-probs under the reference, if any."""

    rollout: Rollout
    answers: tuple[Response, ...]
    scores: Scores
    reference_logp: Float[Tensor, "_ t"] | None = None
    revised: Revised = UNREVISED

    @property
    def sampled(self) -> int:
        """How many of the responses were sampled from their prompt alone: the first ones."""
        return len(self.answers) - len(self.revised.of)

    @property
    def revision_of(self) -> Int[Tensor, " b"]:
        """The row that each row revises; -1 for a response that was sampled from its prompt alone."""
        sampled = torch.full((len(self.rollout.group) - len(self.revised.of),), -1)
        return torch.cat([sampled, torch.tensor(self.revised.of, dtype=torch.long)])

    @property
    def own(self) -> Bool[Tensor, "b t"]:
        """The tokens that were sampled from their prompt alone: all that say how the policy stands to another."""
        return self.rollout.mask & (self.revision_of < 0)[:, None]


Draw = Callable[[int, int], ScoredRollout]
"""The round, from 0, and how many prompts → their responses. Each round has prompts and a seed of its own."""


def once(draw: Draw, prompts: int) -> ScoredRollout:
    """The first draw, whatever came of it."""
    return draw(0, prompts)


def dynamic_sampling(draw: Draw, prompts: int, extra_draws: NonNegativeInt = 3) -> ScoredRollout:
    """Draws until no group's rewards are all equal, or ``extra_draws`` more were made: DAPO's dynamic sampling.

    A group whose rewards are all equal has no advantage, and its prompt is wasted. Each further draw asks as many other
    prompts as there are such groups, and those whose rewards differ take the places of groups whose rewards do not.
    DAPO (arXiv 2503.14476), section 3.2, draws on until the batch is full; here a bound keeps a step's cost in hand.
    """
    drawn = draw(0, prompts)
    for extra in range(1, extra_draws + 1):
        missing = int(zero_variance_groups(drawn.scores.reward, drawn.rollout.group).sum())
        if not missing:
            break
        drawn = _filled(drawn, draw(extra, missing))
    return drawn


def zero_variance_groups(reward: Float[Tensor, " b"], group: Int[Tensor, " b"]) -> Bool[Tensor, " g"]:
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


def appended(old: Rollout, new: Rollout) -> Rollout:
    """The rows of both, as wide as the wider one. The prompts are ``old``'s, and the groups of both mean those."""
    return replace(
        old,
        tokens=stacked_rows(old.tokens, new.tokens),
        mask=stacked_rows(old.mask, new.mask),
        group=torch.cat([old.group, new.group]),
        behavior_logp=stacked_rows(old.behavior_logp, new.behavior_logp),
        finish=old.finish + new.finish,
    )


def stacked_rows(*fields: Tensor) -> Tensor:
    """Fields ``"b t"`` one below the other, as wide as the widest, with zeros behind the others."""
    width = max(field.shape[1] for field in fields)
    return torch.cat([pad(field, (0, width - field.shape[1])) for field in fields])


def _filled(old: ScoredRollout, new: ScoredRollout) -> ScoredRollout:
    """The old groups, but for each new one whose rewards differ, in the place of one whose rewards do not."""
    idle = zero_variance_groups(old.scores.reward, old.rollout.group).nonzero().flatten().tolist()
    fresh = (~zero_variance_groups(new.scores.reward, new.rollout.group)).nonzero().flatten().tolist()
    place = dict(zip(fresh, idle, strict=False))
    leaving, prompts = set(place.values()), list(old.rollout.prompts)
    for n, g in place.items():
        prompts[g] = new.rollout.prompts[n]
    stay = torch.tensor([g not in leaving for g in old.rollout.group.tolist()])
    come = torch.tensor([n in place for n in new.rollout.group.tolist()])
    renumbered = torch.tensor([place.get(n, -1) for n in new.rollout.group.tolist()])
    both, kept = appended(old.rollout, replace(new.rollout, group=renumbered)), torch.cat([stay, come])

    def joined(a: Sequence[Any], b: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(v for values, rows in ((a, stay), (b, come)) for v, kept in zip(values, rows, strict=True) if kept)

    rollout = replace(
        both,
        prompts=tuple(prompts),
        tokens=both.tokens[kept],
        mask=both.mask[kept],
        group=both.group[kept],
        behavior_logp=both.behavior_logp[kept],
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
        joined(old.scores.items, new.scores.items) if old.scores.items else (),
    )
    reference_logp = None
    if old.reference_logp is not None and new.reference_logp is not None:
        reference_logp = stacked_rows(old.reference_logp, new.reference_logp)[kept]
    return ScoredRollout(rollout, joined(old.answers, new.answers), scores, reference_logp)
