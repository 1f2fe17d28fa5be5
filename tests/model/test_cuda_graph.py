"""Captured steps, replayed on a CPU by a fake of CUDA graphs: each operation again, on the same memory."""

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
    """A fake of CUDA's graph: records operations, then runs them again on the same memory."""

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
    """Runs operations, so that they return something; their changes are undone at the end."""

    def __init__(self, graph):
        super().__init__()
        self.graph, self.before = graph, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        kwargs = kwargs or {}
        for position, argument in enumerate(function._schema.arguments):
            if argument.alias_info and argument.alias_info.is_write:
                changed = kwargs[argument.name] if argument.kwarg_only else args[position]
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
def fake_cuda(monkeypatch):
    class Stream:
        def wait_stream(self, other):
            assert isinstance(other, Stream)

    Graph.made = []
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capturing)


def test_after_the_warm_up_one_step_is_captured_and_later_ones_are_replays(fake_cuda):
    number, calls = torch.zeros(1), []

    def step():
        calls.append(1)
        number.add_(1)

    run = make_graphed(step)
    for n in range(1, 8):
        run()
        assert number.item() == n and len(calls) == min(n, 3)
    assert [graph.replays for graph in Graph.made] == [5]


def test_a_step_that_reads_a_value_continues_uncaptured_with_one_warning(fake_cuda):
    number = torch.zeros(1)

    def step():
        number.add_(1)
        number.fill_(number.item())

    run = make_graphed(step)
    with pytest.warns(UserWarning, match="decoding runs without CUDA graphs: operation not permitted") as warned:
        for _ in range(6):
            run()
    assert number.item() == 6 and len(warned) == 1


PROMPTS = [torch.tensor(ids) for ids in ([5, 9, 3, 17], [4], [8, 8, 21, 3, 6, 12, 7])]


@pytest.mark.parametrize("name", MODELS)
def test_replayed_steps_equal_plain_ones(name, fake_cuda):
    """With growing room and shrinking batches, each of which needs its own graph."""
    model = sharp(MODELS[name], exactness(name)[0])
    generator = torch.Generator().manual_seed(4)
    uniform = torch.rand(24, 40, dtype=torch.float64, generator=generator)
    end = torch.tensor([3])

    def draw(logits, quantile):
        return sample_inverse_cdf(sampling_probabilities(logits.float(), SamplingParams(40, temperature=2.0)), quantile)

    expected = generate_tokens(model, PROMPTS, uniform, draw, end)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schedule = replace(CUDA_SCHEDULE, check_every=6, room_multiple=12)
        found = generate_tokens(model, PROMPTS, uniform, draw, end, schedule=schedule)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[2], expected[2])
    torch.testing.assert_close(found[1], expected[1], rtol=0, atol=exactness(name)[1] + 1e-6)
    assert len(Graph.made) > 2 and all(graph.replays for graph in Graph.made)
