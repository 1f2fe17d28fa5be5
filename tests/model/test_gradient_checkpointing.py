"""Recomputation in backward: the bit-identical gradient, and two forward passes per layer."""

import copy

import pytest
import torch
from tiny import MODELS, gradient, sequences, sharp
from torch import nn

from grape_rl.model.gradient_checkpointing import enable_gradient_checkpointing
from grape_rl.model.logprobs import compute_logprobs

MIXED = sequences([3, 9], [[7, 2], [5, 9, 1]])


def passes(model):
    """A list that grows by one at each run of a layer."""
    seen = []
    for layer in model.base_model.layers:
        layer.mlp.register_forward_pre_hook(lambda *_: seen.append(1))
    return seen


@pytest.mark.parametrize("name", [name for name in MODELS if not name.startswith("gpt2")])
def test_the_gradient_is_the_same_to_the_bit(name):
    plain, again = sharp(MODELS[name], torch.float32), sharp(MODELS[name], torch.float32)
    enable_gradient_checkpointing(again)
    found, expected = (gradient(m, compute_logprobs(m, MIXED, 0.7).logp.sum()) for m in (again, plain))
    assert torch.equal(found, expected) and expected.abs().max() > 0
    assert not any(module.training for module in again.modules())


def test_layers_run_twice_with_a_gradient_and_once_without():
    model = sharp(MODELS["qwen2"])
    enable_gradient_checkpointing(model)
    seen = passes(model)
    with torch.no_grad():
        compute_logprobs(model, MIXED)
    assert len(seen) == 2
    compute_logprobs(model, MIXED).logp.sum().backward()
    assert len(seen) == 2 + 4


def test_less_is_saved_for_backward():
    def saved_numbers(model):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
            compute_logprobs(model, MIXED)
        return sum(sizes)

    plain = sharp(MODELS["qwen2"])
    again = copy.deepcopy(plain)
    enable_gradient_checkpointing(again)
    assert saved_numbers(again) < 0.5 * saved_numbers(plain)


def test_a_copy_recomputes_its_own_layers():
    model = sharp(MODELS["qwen2"])
    enable_gradient_checkpointing(model)
    other = copy.deepcopy(model)
    enable_gradient_checkpointing(other)
    expected = gradient(model, compute_logprobs(model, MIXED).logp.sum())
    del model
    assert torch.equal(gradient(other, compute_logprobs(other, MIXED).logp.sum()), expected)


def test_a_model_without_such_layers_is_refused():
    with pytest.raises(ValueError, match="the layers of Linear do not support it"):
        enable_gradient_checkpointing(nn.Linear(2, 2))
