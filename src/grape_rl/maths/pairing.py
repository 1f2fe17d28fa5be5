"""Preference pairs from rewards: pairs of responses to one prompt, the one with the higher reward chosen."""

from typing import Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from grape_rl.maths.bounds import NonNegative
from grape_rl.maths.groups import group_rank

Pairing = Literal["best_worst", "adjacent", "all", "revised"]
"""The pairs that are formed within a group."""


def ranked_pairs(
    reward: Float[Tensor, " b"],
    group: Int[Tensor, " b"],
    response: Int[Tensor, " b"],
    revision_of: Int[Tensor, " b"],
    pairing: Pairing = "best_worst",
    min_gap: NonNegative = 0.0,
) -> Int[Tensor, "p 2"]:
    """Indices (chosen, rejected) of each pair: two responses of one group with ``reward[chosen] > reward[rejected]``.

    ``pairing`` selects the pairs: "best_worst" pairs the best with the worst response of each group, "adjacent" each
    response with the next in rank, "all" each response with every worse one, and "revised" each revision with the
    response that it revises. "all" makes up to G(G−1)/2 pairs of G responses, and the update's cost grows with them.
    "revised" needs the revision to be the better one; ``revision_of`` is the row that each row revises, −1 for none.
    The other pairings treat a revision like any other response.

    Ties are broken by order: the earliest response is the best, or the worst. Samples of one policy are exchangeable,
    so the tie-break introduces no bias.

    A pair is dropped if its rewards are equal, if one is missing (NaN), or if both responses are identical (equal
    numbers in ``response``), which can differ in reward only by noise of the scorer. ``min_gap`` is the smallest
    difference of rewards that makes a pair, in the units of the reward.

    For groups of two samples the first three pairings coincide: they are the pairs of online DPO (arXiv 2402.04792),
    labeled by a reward. Larger groups and revisions are our extension.

    Raises:
        ValueError: an infinite reward, an unknown ``pairing``, or a ``min_gap`` that is below 0 or NaN.

    >>> reward, group = torch.tensor([1.0, 3.0, 2.0, 5.0, 5.0]), torch.tensor([0, 0, 0, 1, 1])
    >>> revises = torch.tensor([-1, -1, 0, -1, -1])
    >>> ranked_pairs(reward, group, torch.arange(5), revises).tolist()
    [[1, 0]]
    >>> ranked_pairs(reward, group, torch.arange(5), revises, "all").tolist()
    [[1, 0], [1, 2], [2, 0]]
    >>> ranked_pairs(reward, group, torch.arange(5), revises, "revised").tolist()
    [[2, 0]]
    """
    if reward.isinf().any():
        raise ValueError("reward has an infinite entry; rewards must be finite, or NaN where missing")
    if not min_gap >= 0:
        raise ValueError(f"min_gap is {min_gap}; it must be at least 0")
    rank, last = group_rank(reward, group), group_rank(-reward, group)
    pairs = [torch.zeros(0, 2, dtype=torch.long, device=reward.device)]
    ids = cast(list[int], group.tolist())  # pyright: ignore[reportUnknownMemberType]
    for group_id in sorted(set(ids)):
        members = (group == group_id).nonzero().flatten()
        position = rank[members, None]
        match pairing:
            case "best_worst":
                paired = (position == 0) & (last[members] == 0)
            case "adjacent":
                paired = position + 1 == rank[members]
            case "all":
                paired = position < rank[members]
            case "revised":
                paired = revision_of[members, None] == members
            case _:
                raise ValueError(f"pairing is {pairing!r}; it must be 'best_worst', 'adjacent', 'all' or 'revised'")
        gap = reward[members, None] - reward[members]  # NaN if either is missing, and NaN > 0 is False
        differ = response[members, None] != response[members]
        pairs.append(members[(paired & differ & (gap > 0) & (gap >= min_gap)).nonzero()])
    return torch.cat(pairs)
