"""From rewards to pairs: which of the responses to a prompt is preferred to which."""

from typing import Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from grape_rl.maths.advantage import group_rank
from grape_rl.maths.bounds import NonNegative

Pairing = Literal["best_worst", "adjacent", "all", "revised"]
"""Which of a group's responses stand against each other."""


def ranked_pairs(
    reward: Float[Tensor, " b"],
    group: Int[Tensor, " b"],
    response: Int[Tensor, " b"],
    revision_of: Int[Tensor, " b"],
    pairing: Pairing = "best_worst",
    min_gap: NonNegative = 0.0,
) -> Int[Tensor, "p 2"]:
    """The chosen and the rejected response of each pair, by number: ``reward[chosen] > reward[rejected]``, one group.

    ``pairing``: the best against the worst of each group; each against the next in rank (adjacent); each against every
    worse one (all), which makes G(G−1)/2 pairs of G responses, and as many for the update to run; or each revision
    against the response that it revises (revised), where it is the better one. ``revision_of`` is the row that each row
    revises, −1 for none; to the other pairings a revision is a response like any. Of equal rewards the earliest stands
    first, for the best as for the worst: samples of one policy are alike whatever their order, so that favors none.

    No pair: equal rewards, a gap under ``min_gap`` (in units of the reward), a missing reward (NaN), or twice the same
    response (equal numbers in ``response``), whose rewards differ only if the scorer wavers. In groups of two that
    were sampled the first three pairings are one: the pairs of online DPO (arXiv 2402.04792), labeled by a reward.
    More than two a group, and revisions, are our reading of it.

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
        raise ValueError(f"min_gap is {min_gap}; the least difference of two rewards must be at least 0")
    rank, last = group_rank(reward, group), group_rank(-reward, group)
    found = [torch.zeros(0, 2, dtype=torch.long, device=reward.device)]
    ids = cast(list[int], group.tolist())  # pyright: ignore[reportUnknownMemberType]
    for one in sorted(set(ids)):
        members = (group == one).nonzero().flatten()
        place = rank[members, None]
        match pairing:
            case "best_worst":
                opposed = (place == 0) & (last[members] == 0)
            case "adjacent":
                opposed = place + 1 == rank[members]
            case "all":
                opposed = place < rank[members]
            case "revised":
                opposed = revision_of[members, None] == members
            case _:
                raise ValueError(f"pairing is {pairing!r}; it must be 'best_worst', 'adjacent', 'all' or 'revised'")
        gap = reward[members, None] - reward[members]  # NaN where either is missing, and NaN is not above anything
        differ = response[members, None] != response[members]
        found.append(members[(opposed & differ & (gap > 0) & (gap >= min_gap)).nonzero()])
    return torch.cat(found)
