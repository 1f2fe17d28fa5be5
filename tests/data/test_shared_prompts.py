"""Rows with equal prompts share one, and the mask is each completion."""

import torch

from grape_rl.data.shared_prompts import shared_prompt_sequences


def test_each_pair_is_a_row():
    pairs = [([1, 2], [5]), ([3], [6, 7, 8]), ([1, 2], []), ([1], [9, 9])]
    sequences = shared_prompt_sequences((torch.tensor(p), torch.tensor(c, dtype=torch.long)) for p, c in pairs)
    assert [prompt.tolist() for prompt in sequences.prompts] == [[1, 2], [3], [1]]
    for i, (prompt, completion) in enumerate(pairs):
        assert sequences.prompts[sequences.group[i]].tolist() == prompt
        assert sequences.tokens[i][sequences.mask[i]].tolist() == completion
        assert sequences.mask[i].tolist() == [t < len(completion) for t in range(3)]


def test_empty_completions_have_a_column():
    sequences = shared_prompt_sequences([(torch.tensor([1]), torch.zeros(0, dtype=torch.long))] * 2)
    assert sequences.tokens.shape == (2, 1) and not sequences.mask.any()
