"""Sequences from pairs of a prompt and a completion, with each distinct prompt stored once."""

from collections.abc import Iterable

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from grape_rl.types import Sequences

Tokens = Int[Tensor, " _"]


def shared_prompt_sequences(pairs: Iterable[tuple[Tokens, Tokens]]) -> Sequences:
    """One row for each pair of a prompt and a completion; rows with equal prompts are one group.

    The mask is True on the whole completion. There is at least one column, even if all completions are empty.

    >>> prompt, yes, no = torch.tensor([1, 2]), torch.tensor([5, 9]), torch.tensor([6, 7, 9])
    >>> sequences = shared_prompt_sequences([(prompt, yes), (prompt, no)])
    >>> sequences.tokens.tolist(), sequences.group.tolist()
    ([[5, 9, 0], [6, 7, 9]], [0, 0])
    """
    pairs = list(pairs)
    prompts: dict[tuple[int, ...], int] = {}
    group = [prompts.setdefault(tuple(prompt.tolist()), len(prompts)) for prompt, _ in pairs]
    lengths = torch.tensor([len(completion) for _, completion in pairs])
    tokens = pad_sequence([completion for _, completion in pairs], batch_first=True)
    if tokens.shape[1] == 0:
        tokens = torch.nn.functional.pad(tokens, (0, 1))
    mask = torch.arange(tokens.shape[1]) < lengths[:, None]
    return Sequences(tuple(torch.tensor(prompt) for prompt in prompts), tokens, mask, torch.tensor(group))
