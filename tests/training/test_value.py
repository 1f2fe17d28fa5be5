"""What the value function says of a rollout before the update: the same however it is cut, and without a graph."""

import pytest
import torch

from grape_rl.model.forward import ForwardContext
from grape_rl.model.logprobs import compute_values
from grape_rl.model.value_head import PolicyWithValue, separate_value_model, shared_value_head
from grape_rl.training.value import value_estimates
from grape_rl.types import Sequences


@pytest.mark.parametrize("trunk", ["own", "shared"])
def test_values_of_a_rollout_are_those_of_one_pass_and_follow_the_model(model, trunk):
    whole = PolicyWithValue(model, separate_value_model(model) if trunk == "own" else shared_value_head(model))
    head = whole.value.score if trunk == "own" else whole.value
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        head.weight.copy_(torch.randn(head.weight.shape, generator=generator))
    tokens = torch.randint(4, 40, (5, 6), generator=generator)
    mask = torch.arange(6) < torch.tensor([6, 1, 4, 2, 3])[:, None]
    prompts = tuple(torch.randint(4, 40, (n,), generator=generator) for n in (3, 7))
    sequences = Sequences(prompts, tokens, mask, torch.tensor([0, 0, 1, 1, 1]))
    expected = compute_values(whole, sequences)
    assert expected.requires_grad and expected[mask].std() > 0.1 and not expected[~mask].any()
    for limit in (1, 30, 10_000):
        found = value_estimates(whole, ForwardContext(limit))(sequences)
        assert not found.requires_grad
        torch.testing.assert_close(found, expected.detach(), rtol=0, atol=1e-4)  # float32, values of some units
    estimates = value_estimates(whole, ForwardContext(30))
    with torch.no_grad():
        head.weight.mul_(2)
    torch.testing.assert_close(estimates(sequences), 2 * expected.detach(), rtol=0, atol=2e-4)
