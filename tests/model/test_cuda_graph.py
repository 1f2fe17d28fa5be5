"""Captured steps, replayed on a CPU by a stand-in for CUDA's graphs: each operation again, on the memory it had."""

import warnings
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from tiny import MODELS, exactness, sharp
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from grape_rl.model.cuda_graph import make_graphed
from grape_rl.model.decode import CUDA_SCHEDULE, generate_tokens
from grape_rl.model.sampler import SamplingParams, sample_inverse_cdf, sampling_probabilities


class Graph:
    """What CUDA's own does: writes down operations without doing them, then does them on the same memory."""

    made: ClassVar[list["Graph"]] = []

    def __init__(self):
        self.operations, self.replays = [], 0
        Graph.made.append(self)

    def replay(self):
        self.replays += 1
        for function, args, kwargs, outs in self.operations:
            for old, new in zip(outs, tree_leaves(function(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class Capture(TorchDispatchMode):
    """Operations are done, to have something to return, and what they changed is put back at the end."""

    def __init__(self, graph):
        super().__init__()
        self.graph, self.before = graph, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        kwargs = kwargs or {}
        for at, argument in enumerate(function._schema.arguments):
            if argument.alias_info and argument.alias_info.is_write:
                changed = kwargs[argument.name] if argument.kwarg_only else args[at]
                self.before.append((changed, changed.clone()))
        out = function(*args, **kwargs)
        self.graph.operations.append((function, args, kwargs, tree_leaves(out)))
        return out


@contextmanager
def capturing(graph, capture_error_mode):
    assert capture_error_mode == "thread_local"
    mode = Capture(graph)
    try:
        with mode:
            yield
    finally:
        for changed, before in reversed(mode.before):
            changed.copy_(before)


@pytest.fixture
def stand_in(monkeypatch):
    class Stream:
        def wait_stream(self, other):
            assert isinstance(other, Stream)

    Graph.made = []
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capturing)


def test_some_steps_run_one_is_captured_and_all_later_ones_are_replays(stand_in):
    number, calls = torch.zeros(1), []

    def step():
        calls.append(1)
        number.add_(1)

    run = make_graphed(step)
    for n in range(1, 8):
        run()
        assert number.item() == n and len(calls) == min(n, 3)
    assert [graph.replays for graph in Graph.made] == [5]


def test_a_step_that_asks_for_a_value_goes_on_uncaptured_and_says_so_once(stand_in):
    number = torch.zeros(1)

    def step():
        number.add_(1)
        number.fill_(number.item())

    run = make_graphed(step)
    with pytest.warns(UserWarning, match="decoding runs without CUDA graphs: operation not permitted") as told:
        for _ in range(6):
            run()
    assert number.item() == 6 and len(told) == 1


PROMPTS = [torch.tensor(ids) for ids in ([5, 9, 3, 17], [4], [8, 8, 21, 3, 6, 12, 7])]


@pytest.mark.parametrize("name", MODELS)
def test_replayed_steps_write_what_plain_ones_do(name, stand_in):
    """Through wider rooms and smaller batches, each of which needs a graph of its own."""
    model = sharp(MODELS[name], exactness(name)[0])
    generator = torch.Generator().manual_seed(4)
    uniform = torch.rand(24, 40, dtype=torch.float64, generator=generator)
    end = torch.tensor([3])

    def draw(logits, quantile):
        return sample_inverse_cdf(sampling_probabilities(logits.float(), SamplingParams(40, temperature=2.0)), quantile)

    expected = generate_tokens(model, PROMPTS, uniform, draw, end)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = generate_tokens(model, PROMPTS, uniform, draw, end, pace=replace(CUDA_SCHEDULE, look=6, room=12))
    assert torch.equal(found[0], expected[0]) and torch.equal(found[2], expected[2])
    torch.testing.assert_close(found[1], expected[1], rtol=0, atol=exactness(name)[1] + 1e-6)
    assert len(Graph.made) > 2 and all(graph.replays for graph in Graph.made)
