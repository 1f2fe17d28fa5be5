"""Sequences laid in one row without padding, each prompt that several responses share standing there once.

A *stem* is read from its start: a prompt, or a prompt with its only response. A *branch* goes on from a stem: one of
several responses to a prompt. Stems come first, then branches, in the order of their stems.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from grape_rl.model.onednn_linear import padding_multiple
from grape_rl.types import Sequences


@dataclass(frozen=True)
class PackedSequences:
    """A row of tokens with their positions, and where each sequence stands in it.

    ``stems`` and ``branches`` are lengths; branch i goes on from stem ``parent[i]``, and no stem's branches stand
    apart. ``before[i, t]`` is the place in the row that the choice of ``tokens[i, t]`` was made at; where nothing of a
    row's tokens is read, any place.
    """

    tokens: Int[Tensor, " n"]
    positions: Int[Tensor, " n"]
    stems: tuple[int, ...]
    branches: tuple[int, ...]
    parent: tuple[int, ...]
    before: Int[Tensor, "b t"]

    @property
    def longest(self) -> int:
        """The length of the longest sequence, a branch's with its stem."""
        return max([*self.stems, *(self.stems[p] + n for p, n in zip(self.parent, self.branches, strict=True))])


def pack_prompts(prompts: Sequence[Int[Tensor, " _"]]) -> PackedSequences:
    """Prompts alone as one row: a stem each."""
    nothing = torch.zeros(len(prompts), 1, dtype=torch.long, device=prompts[0].device)
    return pack(Sequences(tuple(prompts), nothing, nothing == 0, torch.arange(len(prompts))))


def pack(sequences: Sequences, apart: bool = False) -> PackedSequences:
    """The sequences as one row, each read up to its last masked token but one: the last is chosen and never read.

    ``apart`` gives each row its prompt for itself, the rows in their order.
    """
    group = sequences.group.tolist()
    ends = [max(1, n) for n in row_lengths(sequences.mask).tolist()]
    read = [y[: n - 1] for y, n in zip(sequences.tokens, ends, strict=True)]
    rows: list[list[int]] = [[i] for i in range(len(group))]
    if not apart:
        of_prompt: dict[int, list[int]] = {}
        for i, g in enumerate(group):
            of_prompt.setdefault(g, []).append(i)
        rows = [of_prompt[g] for g in sorted(of_prompt)]
    stems, branches, parent = list[Tensor](), list[Tensor](), list[int]()
    start, first = [0] * len(group), [0] * len(group)  # where the prompt's last token stands, and the first one read
    at = 0
    for members in rows:
        prompt = sequences.prompts[group[members[0]]]
        stem = torch.cat([prompt, read[members[0]]]) if len(members) == 1 else prompt
        for i in members:
            start[i], first[i] = at + len(prompt) - 1, at + len(prompt)
        at += len(stem)
        stems.append(stem)
    for s, members in enumerate(rows):
        for i in members if len(members) > 1 else ():
            first[i] = at
            if len(read[i]):
                branches.append(read[i])
                parent.append(s)
                at += len(read[i])
    begins = [0] * len(stems) + [len(stems[p]) for p in parent]
    device, t = sequences.tokens.device, sequences.tokens.shape[1]
    places = torch.cat([torch.arange(b, b + len(x)) for b, x in zip(begins, [*stems, *branches], strict=True)])
    column = torch.arange(-1, t - 1)
    before = (torch.tensor(first)[:, None] + column).clamp(max=at - 1)
    before[:, 0] = torch.tensor(start)
    return PackedSequences(
        torch.cat([*stems, *branches]),
        places.to(device),
        tuple(len(x) for x in stems),
        tuple(len(x) for x in branches),
        tuple(parent),
        before.to(device),
    )


def pad_to_multiple(forest: PackedSequences) -> PackedSequences:
    """The forest with one more stem of junk, where it takes that to be a multiple of its ``granule``.

    >>> rounded(forest_of([torch.zeros(70, dtype=torch.long)])).stems
    (70, 2)
    """
    n = len(forest.tokens)
    more = -n % padding_multiple(n)
    if not more:
        return forest
    junk = torch.arange(more, device=forest.tokens.device)
    at = sum(forest.stems)
    return replace(
        forest,
        tokens=torch.cat([forest.tokens[:at], torch.zeros_like(junk), forest.tokens[at:]]),
        positions=torch.cat([forest.positions[:at], junk, forest.positions[at:]]),
        stems=(*forest.stems, more),
        before=forest.before + more * (forest.before >= at),
    )


def spans(sizes: tuple[int, ...], start: int = 0) -> list[slice]:
    """Where pieces of these sizes lie, one behind the other.

    >>> spans((2, 3), start=1)
    [slice(1, 3, None), slice(3, 6, None)]
    """
    ends = list(accumulate(sizes, initial=start))
    return [slice(a, b) for a, b in pairwise(ends)]


def row_lengths(mask: Bool[Tensor, "b t"]) -> Int[Tensor, " b"]:
    """How many columns of each row matter: up to its last masked token, since later ones can't change a loss."""
    columns = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    return (mask * columns).amax(dim=1)
