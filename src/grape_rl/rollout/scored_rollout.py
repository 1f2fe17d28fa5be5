"""Scored rollouts: sampled responses with their grades, and the operations that join two of them."""

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from grape_rl.types import Response, Rollout, Scores


@dataclass(frozen=True)
class Revisions:
    """Responses at the end of a rollout that are revisions of earlier ones.

    Attributes:
        originals: for each revision, the row of the response that it revises.
        critiques: for each revision, the critique in its prompt.
        metrics: numbers for the log.
        warnings: keys and messages for the log.
    """

    originals: tuple[int, ...] = ()
    critiques: tuple[str, ...] = ()
    metrics: dict[str, float] = field(default_factory=dict[str, float])
    warnings: tuple[tuple[str, str], ...] = ()


NO_REVISIONS = Revisions()


@dataclass(frozen=True)
class ScoredRollout:
    """Sampled responses with their scores.

    Attributes:
        rollout: tokens and log-probs under the behavior policy.
        responses: the text of each row, as it is graded.
        scores: verdicts and rewards.
        reference_logp: log-probs (nats) under the reference policy; None without one.
        revisions: which of the last rows are revisions.
    """

    rollout: Rollout
    responses: tuple[Response, ...]
    scores: Scores
    reference_logp: Float[Tensor, "_ t"] | None = None
    revisions: Revisions = NO_REVISIONS

    @property
    def sampled_count(self) -> int:
        """Number of responses that were sampled from their prompt alone. They are the first rows."""
        return len(self.responses) - len(self.revisions.originals)

    @property
    def revision_of(self) -> Int[Tensor, " b"]:
        """For each row, the row that it revises; -1 for a response that was sampled from its prompt alone."""
        originals = self.revisions.originals
        sampled = torch.full((len(self.rollout.group) - len(originals),), -1)
        return torch.cat([sampled, torch.tensor(originals, dtype=torch.long)])

    @property
    def sampled_mask(self) -> Bool[Tensor, "b t"]:
        """Tokens that were sampled from their prompt alone. KL estimates are over these tokens only."""
        return self.rollout.mask & (self.revision_of < 0)[:, None]


def response_ids(rollout: Rollout) -> Int[Tensor, " b"]:
    """A number for each row. Two rows have the same number if they have the same prompt and the same tokens."""
    padding = rollout.mask.flip(1).cumsum(dim=1).flip(1) == 0  # no token of the policy at or after this column
    parts = (rollout.group[:, None], rollout.mask.long(), rollout.tokens.masked_fill(padding, -1))
    return torch.unique(torch.cat(parts, dim=1), dim=0, return_inverse=True)[1]


def append_rows(old: Rollout, new: Rollout) -> Rollout:
    """The rows of ``old``, then those of ``new``, padded to the wider one. Both groups index the prompts of ``old``."""
    return replace(
        old,
        tokens=stack_padded(old.tokens, new.tokens),
        mask=stack_padded(old.mask, new.mask),
        group=torch.cat([old.group, new.group]),
        behavior_logp=stack_padded(old.behavior_logp, new.behavior_logp),
        finish=old.finish + new.finish,
    )


def stack_padded(*fields: Tensor) -> Tensor:
    """The rows of all ``"b t"`` fields in one, padded with zeros on the right to the widest field."""
    width = max(field.shape[1] for field in fields)
    return torch.cat([pad(field, (0, width - field.shape[1])) for field in fields])
