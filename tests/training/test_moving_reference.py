"""A reference that moves: by how much, when, and that the source asks the moved one."""

import copy
import inspect

import pytest
import torch

from grape_rl import ALGORITHMS
from grape_rl.data.preferences import Pair
from grape_rl.methods import build_objective, resolve_options
from grape_rl.model.forward import ForwardContext
from grape_rl.sources.preferences import experience_from_pairs
from grape_rl.training.moving_reference import moving_reference
from grape_rl.training.pairs import pair_logprobs
from grape_rl.training.update import UpdateSettings

SETTINGS = UpdateSettings(ForwardContext(100, temperature=1.0), max_tokens=9, max_grad_norm=1e9, seed=3)


def stepped(model, reference, steps, **options):
    """The reference's parameters after each of some steps on one pair, and the margins at their beginnings."""
    pair = Pair(torch.tensor([5, 6]), torch.tensor([7, 8]), torch.tensor([9]))

    def logprobs(sequences):
        return pair_logprobs(reference, sequences, ForwardContext(100))

    row = ALGORITHMS["tr_dpo"]
    goal, sgd = build_objective(row, resolve_options(row, {})), torch.optim.SGD(model.parameters(), lr=0.01)
    found, margins = [], []
    for step in range(steps):
        experience = experience_from_pairs([pair], logprobs, reference)
        told = moving_reference(model, sgd, experience, goal, SETTINGS, step, **options)
        margins.append(told["margin"])
        found.append([p.clone() for p in reference.parameters()])
    return found, margins


def test_the_reference_is_mixed_with_the_policy_every_so_many_steps(model):
    reference = copy.deepcopy(model).requires_grad_(False)
    start = [p.clone() for p in reference.parameters()]
    same = lambda a, b: all(torch.equal(x, y) for x, y in zip(a, b, strict=True))  # noqa: E731
    found, margins = stepped(model, reference, 3, reference_mix=0.25, reference_every=2)
    assert same(found[0], start) and not same(found[1], start) and same(found[2], found[1])
    assert margins[0] == 0 < margins[1]
    model, reference = copy.deepcopy(model), copy.deepcopy(model).requires_grad_(False)
    start = [p.clone() for p in reference.parameters()]
    (found,), _ = stepped(model, reference, 1, reference_mix=0.25, reference_every=1)
    for after, before, policy in zip(found, start, model.parameters(), strict=True):
        torch.testing.assert_close(after, 0.25 * policy + 0.75 * before)


def test_a_reference_that_becomes_the_policy_has_no_margin(model):
    reference = copy.deepcopy(model).requires_grad_(False)
    found, margins = stepped(model, reference, 3, reference_mix=1.0, reference_every=1)
    assert margins == [0.0, 0.0, 0.0], "the source asks the reference as it is now"
    for theirs, ours in zip(found[-1], model.parameters(), strict=True):
        torch.testing.assert_close(theirs, ours.detach(), rtol=0, atol=1e-6)
    assert not any(p.requires_grad for p in reference.parameters())


def test_trl_s_defaults():
    parameters = inspect.signature(moving_reference).parameters
    assert (parameters["reference_mix"].default, parameters["reference_every"].default) == (0.6, 512)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"reference_mix": 0.0}, "reference_mix: Input should be greater than 0"),
        ({"reference_mix": 1.5}, "reference_mix: Input should be less than or equal to 1"),
        ({"reference_every": 0}, "reference_every: Input should be greater than 0"),
    ],
)
def test_what_cannot_be_set(given, message):
    with pytest.raises(ValueError) as told:
        resolve_options(ALGORITHMS["tr_dpo"], given)
    assert message in str(told.value)
