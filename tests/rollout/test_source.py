"""Demonstrations as experience."""

import torch

from grape_rl.data.chat import Example
from grape_rl.rollout.source import demonstrations


def test_demonstrations_are_rows_with_advantage_one():
    taught = [Example(torch.arange(4, 4 + i), torch.arange(10, 12 + i)) for i in range(1, 4)]
    experience = demonstrations(taught, 3, seed=0)(0)
    sequences, batch = experience.sequences, experience.batch
    assert sorted(len(p) for p in sequences.prompts) == [1, 2, 3]
    for row, prompt in enumerate(sequences.prompts):
        assert torch.equal(sequences.tokens[row][sequences.mask[row]], taught[len(prompt) - 1].completion)
    assert torch.equal(batch.advantage, batch.mask.float())
    assert torch.equal(batch.mask, sequences.mask)
    assert experience.metrics == {"length": 4.0, "tokens": 3 + 4 + 5 + 6}
    assert torch.equal(demonstrations(taught, 3, seed=0)(0).sequences.tokens, sequences.tokens)
