"""Reference log-probs: those of one forward pass over all sequences, whatever the micro-batches."""

from collections import Counter

import torch

from grape_rl.model.forward import ForwardContext
from grape_rl.model.logprobs import compute_logprobs
from grape_rl.model.reference_logprobs import reference_logprobs
from grape_rl.types import Sequences


def test_reference_logprobs_do_not_depend_on_the_micro_batches(model):
    mask = torch.tensor([[True, True, False], [True, True, True], [True, False, False], [True, True, True]])
    tokens = torch.arange(4, 16).view(4, 3)
    sequences = Sequences((torch.arange(4, 6), torch.arange(4, 7)), tokens, mask, torch.tensor([0, 0, 1, 1]))
    expected = compute_logprobs(model, sequences, 0.7).logp.detach()
    for size in (1, 10, 10_000):
        logp = reference_logprobs(model, ForwardContext(size, temperature=0.7))(sequences)
        assert not logp.requires_grad
        assert torch.allclose(logp, expected, atol=1e-5)  # float32
        assert Counter((logp == 0).ravel().tolist()) == Counter((~mask).ravel().tolist())
