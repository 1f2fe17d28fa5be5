"""CUDA graphs: a decode step that the device replays, without launching each of its kernels from the host.

Not yet run or measured on a CUDA device: tests replay the step on a CPU, operation by operation, on the same memory.
"""

import warnings
from collections.abc import Callable

import torch

WARMUP_STEPS = 2
"""The number of eager steps before the capture, so that one-time allocations have been made."""


def make_graphed(step: Callable[[], None]) -> Callable[[], None]:
    """A function that runs ``step``: eagerly for ``WARMUP_STEPS`` calls, then captured once and replayed.

    Each call is one step. ``step`` must work in place on the same memory each time, and must not read a tensor's value
    on the host. A step that cannot be captured continues eagerly, with a warning.
    """
    side = torch.cuda.Stream()
    calls = 0

    def eager() -> None:
        nonlocal calls, run
        if calls == WARMUP_STEPS:
            run = _graph(step)
            return run()
        calls += 1
        side.wait_stream(torch.cuda.current_stream())  # a captured stream allocates from another memory pool
        with torch.cuda.stream(side):
            step()
        torch.cuda.current_stream().wait_stream(side)

    run = eager
    return lambda: run()


def _graph(step: Callable[[], None]) -> Callable[[], None]:
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # critics may use the device in parallel
            step()
    except RuntimeError as error:
        warnings.warn(f"decoding runs without CUDA graphs: {error}", stacklevel=2)
        return step
    return graph.replay
