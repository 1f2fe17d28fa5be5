"""Packing: sequences in one row without padding. A prompt shared by several responses is stored once.

With shared-prefix packing, a row has two kinds of segments. A *prefix* starts at position 0: a prompt shared by several
responses, or a prompt with its only response. A *suffix* continues a prefix: one of several responses to a prompt. All
prefixes come first, then all suffixes, in the order of their prefixes.
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
    """A row of tokens with their positions, and the layout of its segments.

    Attributes:
        tokens: all segments, concatenated.
        positions: the position of each token in its own sequence.
        prefix_lengths: the lengths of the prefixes.
        suffix_lengths: the lengths of the suffixes.
        parent: the number of the prefix that each suffix continues. The suffixes of a prefix are adjacent.
        predictor: the index into the row of the token whose hidden state predicts ``tokens[i, t]`` of the unpacked
            sequences; an arbitrary index after the last masked token of sequence i.
    """

    tokens: Int[Tensor, " n"]
    positions: Int[Tensor, " n"]
    prefix_lengths: tuple[int, ...]
    suffix_lengths: tuple[int, ...]
    parent: tuple[int, ...]
    predictor: Int[Tensor, "b t"]

    @property
    def max_length(self) -> int:
        """The length of the longest sequence; a suffix counts with its prefix."""
        continued = (self.prefix_lengths[p] + n for p, n in zip(self.parent, self.suffix_lengths, strict=True))
        return max([*self.prefix_lengths, *continued])


def pack_prompts(prompts: Sequence[Int[Tensor, " _"]]) -> PackedSequences:
    """Prompts without responses in one row, one prefix per prompt."""
    dummy = torch.zeros(len(prompts), 1, dtype=torch.long, device=prompts[0].device)
    return pack(Sequences(tuple(prompts), dummy, dummy == 0, torch.arange(len(prompts))))


def pack(sequences: Sequences, share_prompts: bool = True) -> PackedSequences:
    """The sequences in one row. Each ends before its last masked token, which is predicted but never read.

    With ``share_prompts`` False, each sequence has its own copy of the prompt, and the sequences keep their order.
    """
    # The tokens of each response that are read, and the sequences that share a segment for their prompt.
    group = sequences.group.tolist()
    ends = [max(1, n) for n in row_lengths(sequences.mask).tolist()]
    responses = [y[: n - 1] for y, n in zip(sequences.tokens, ends, strict=True)]
    sharing: list[list[int]] = [[i] for i in range(len(group))]
    if share_prompts:
        members_of: dict[int, list[int]] = {}
        for i, g in enumerate(group):
            members_of.setdefault(g, []).append(i)
        sharing = [members_of[g] for g in sorted(members_of)]
    # Prefixes, then suffixes; for each sequence the row's index of its prompt's last and its response's first token.
    prefixes, suffixes, parent = list[Tensor](), list[Tensor](), list[int]()
    prompt_end, response_start = [0] * len(group), [0] * len(group)
    offset = 0
    for members in sharing:
        prompt = sequences.prompts[group[members[0]]]
        prefix = torch.cat([prompt, responses[members[0]]]) if len(members) == 1 else prompt
        for i in members:
            prompt_end[i], response_start[i] = offset + len(prompt) - 1, offset + len(prompt)
        offset += len(prefix)
        prefixes.append(prefix)
    for p, members in enumerate(sharing):
        for i in members if len(members) > 1 else ():
            response_start[i] = offset
            if len(responses[i]):
                suffixes.append(responses[i])
                parent.append(p)
                offset += len(responses[i])
    # Positions within each sequence, and the index of each token's predictor.
    begins = [0] * len(prefixes) + [len(prefixes[p]) for p in parent]
    device, t = sequences.tokens.device, sequences.tokens.shape[1]
    positions = torch.cat([torch.arange(b, b + len(x)) for b, x in zip(begins, [*prefixes, *suffixes], strict=True)])
    column = torch.arange(-1, t - 1)
    predictor = (torch.tensor(response_start)[:, None] + column).clamp(max=offset - 1)
    predictor[:, 0] = torch.tensor(prompt_end)
    return PackedSequences(
        torch.cat([*prefixes, *suffixes]),
        positions.to(device),
        tuple(len(x) for x in prefixes),
        tuple(len(x) for x in suffixes),
        tuple(parent),
        predictor.to(device),
    )


def pad_to_multiple(packed: PackedSequences) -> PackedSequences:
    """The row padded to a multiple of its ``padding_multiple`` by one more prefix of zeros.

    >>> pad_to_multiple(pack_prompts([torch.zeros(70, dtype=torch.long)])).prefix_lengths
    (70, 2)
    """
    n = len(packed.tokens)
    padding = -n % padding_multiple(n)
    if not padding:
        return packed
    positions = torch.arange(padding, device=packed.tokens.device)
    end = sum(packed.prefix_lengths)
    return replace(
        packed,
        tokens=torch.cat([packed.tokens[:end], torch.zeros_like(positions), packed.tokens[end:]]),
        positions=torch.cat([packed.positions[:end], positions, packed.positions[end:]]),
        prefix_lengths=(*packed.prefix_lengths, padding),
        predictor=packed.predictor + padding * (packed.predictor >= end),
    )


def spans(lengths: tuple[int, ...], start: int = 0) -> list[slice]:
    """The slices of consecutive segments of these lengths.

    >>> spans((2, 3), start=1)
    [slice(1, 3, None), slice(3, 6, None)]
    """
    ends = list(accumulate(lengths, initial=start))
    return [slice(a, b) for a, b in pairwise(ends)]


def row_lengths(mask: Bool[Tensor, "b t"]) -> Int[Tensor, " b"]:
    """The length of each row up to its last masked token; later tokens cannot change a loss."""
    columns = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    return (mask * columns).amax(dim=1)
