"""Packing: sequences laid end to end in rows, each reading itself alone, so that fewer positions are padding."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

PACKS = "packs_sequences"


def packs(model: nn.Module) -> bool:
    """Whether the model was proved to read packed sequences apart: see ``grape_rl.model.load.readied``."""
    return getattr(model, PACKS, False)


def first_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Bins of the lengths, by number: each of ``capacity`` at most, or of one length that is longer.

    First fit decreasing: from the longest to the shortest, each into the first bin that has room for it; of equal ones
    the first first. At most 11/9 of the fewest bins possible, and one more.

    >>> first_fit([2, 5, 3, 4], capacity=5)
    [[1], [3], [2, 0]]
    """
    bins: list[list[int]] = []
    room: list[int] = []
    for i in _longest_first(lengths):
        at = _first_with_room(room, lengths[i])
        if at == len(bins):
            bins.append([])
            room.append(capacity)
        bins[at].append(i)
        room[at] -= lengths[i]
    return bins


def packed_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """The lengths, by number, in batches: packed by ``first_fit`` in bins of its longest, each is within the budget.

    From the longest to the shortest, so that a batch holds similar lengths; one length over the budget stands alone.

    >>> packed_batches([2, 5, 3, 4], budget=10)
    [[1, 3], [2, 0]]
    """
    batches: list[list[int]] = []
    room: list[int] = []
    for i in _longest_first(lengths):
        at = _first_with_room(room, lengths[i])
        if at == len(room):
            if not batches or (len(room) + 1) * lengths[batches[-1][0]] > budget:
                batches.append([])
                at, room = 0, []
            room.append(lengths[batches[-1][0]] if batches[-1] else lengths[i])
        batches[-1].append(i)
        room[at] -= lengths[i]
    return batches


def _longest_first(lengths: Sequence[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lambda i: -lengths[i])


def _first_with_room(room: Sequence[int], length: int) -> int:
    """The first bin that has room, or else the number that a new one will have."""
    return next((b for b, left in enumerate(room) if length <= left), len(room))


def laid_out(
    sequences: Sequence[Int[Tensor, " _"]], bins: Sequence[Sequence[int]]
) -> tuple[Int[Tensor, "r w"], Int[Tensor, "r w"], Int[Tensor, " b"], Int[Tensor, " b"]]:
    """The bins as rows: tokens, positions, and for each sequence its row and the column that it begins at.

    Positions count from 0 anew in each sequence: by that, a model tells them apart. Padding on the right has token 0,
    each at position 0: a sequence of its own.
    """
    row, start = ([0] * len(sequences) for _ in range(2))
    for r, members in enumerate(bins):
        column = 0
        for i in members:
            row[i], start[i] = r, column
            column += len(sequences[i])
    device = sequences[0].device
    tokens = pad_sequence([torch.cat([sequences[i] for i in members]) for members in bins], batch_first=True)
    counted = [torch.cat([torch.arange(len(sequences[i]), device=device) for i in members]) for members in bins]
    places = pad_sequence(counted, batch_first=True)
    return tokens, places, torch.tensor(row, device=device), torch.tensor(start, device=device)
