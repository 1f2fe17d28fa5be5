"""Demonstrations as experience."""

from collections.abc import Callable, Sequence

import torch

from grape_rl.data.chat import Example, collate_examples
from grape_rl.data.order import rows_of_step
from grape_rl.model.logprobs import row_lengths
from grape_rl.rollout.experience import TokenExperience
from grape_rl.types import TokenBatch


def demonstrations(examples: Sequence[Example], rows_per_step: int, seed: int) -> Callable[[int], TokenExperience]:
    """A source of demonstrations: every token that is learned with advantage 1, so that −A · logp is SFT's loss."""

    def source(step: int) -> TokenExperience:
        sequences = collate_examples([examples[i] for i in rows_of_step(len(examples), rows_per_step, step, seed)])
        ones, zeros = sequences.mask.float(), torch.zeros(sequences.mask.shape)
        metrics = {
            "length": float(ones.sum(dim=1).mean()),
            "tokens": float(row_lengths(sequences.mask).sum() + sum(len(p) for p in sequences.prompts)),
        }
        return TokenExperience(sequences, TokenBatch(sequences.mask, zeros, zeros, ones), metrics)

    return source
