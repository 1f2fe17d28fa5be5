"""Rejection sampling: an advantage of 1 for the best responses of each group, and NaN (left out) for the rest."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from grape_rl.maths.bounds import PositiveInt
from grape_rl.maths.groups import group_rank, require_finite


def best_of_group(
    reward: Float[Tensor, " b"],
    group: Int[Tensor, " b"],
    keep: PositiveInt = 1,
    threshold: float = -math.inf,
) -> Float[Tensor, " b"]:
    """Rejection-sampling advantage: 1 for the ``keep`` best responses of each group, NaN for the rest.

    A response is kept only if ``reward ≥ threshold``. Ties keep the earliest response, so a group of equal rewards
    keeps its first ``keep``. The policy gradient with this advantage is SFT on the kept responses.

    Raises:
        ValueError: an infinite reward, ``keep`` under 1, or a NaN ``threshold``.

    >>> best_of_group(torch.tensor([1.0, 3.0, 3.0, 0.0]), torch.tensor([0, 0, 0, 1]))
    tensor([nan, 1., nan, 1.])
    """
    require_finite(reward)
    if keep < 1:
        raise ValueError(f"keep is {keep}; at least 1 response of a group must be kept")
    if math.isnan(threshold):
        raise ValueError("threshold is NaN; it must be a number, or -inf for no threshold")
    best = (group_rank(reward, group) < keep) & (reward >= threshold)
    return torch.where(best, torch.ones_like(reward), torch.nan)


def accepted(
    reward: Float[Tensor, " b"],
    group: Int[Tensor, " b"],
    response: Int[Tensor, " b"],
    keep: PositiveInt = 1,
    threshold: float = -math.inf,
    deduplicate: bool = False,
) -> Float[Tensor, " b"]:
    """Rejection-sampling advantage with deduplication: 1 for the accepted responses, NaN for the rest.

    The accepted responses are the ``keep`` best responses of each group with reward ≥ ``threshold``; a group may have
    none. ``deduplicate`` drops repeated responses to a prompt (equal numbers in ``response``) before the best are
    selected, and keeps the earliest one that has a reward: frequent responses are not reinforced, and the policy stays
    diverse.

    ``keep`` 1 is RAFT (arXiv 2304.06767). A threshold with a large ``keep`` is rejection sampling fine-tuning.

    Raises:
        ValueError: as ``best_of_group``.

    >>> reward, group = torch.tensor([1.0, 3.0, 3.0, 2.0]), torch.zeros(4, dtype=torch.long)
    >>> accepted(reward, group, torch.tensor([0, 1, 1, 2]), keep=2, deduplicate=True)
    tensor([nan, 1., nan, 1.])
    """
    if deduplicate:
        known = torch.where(reward.isnan(), torch.nan, 0.0)
        reward = reward.masked_fill(group_rank(known, response) > 0, torch.nan)
    return best_of_group(reward, group, keep, threshold)
