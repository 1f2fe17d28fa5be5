"""A step that a CUDA device repeats by itself, without a host that names each of its operations.

Not yet run on a device, nor measured: tests replay it on a CPU, operation by operation, on the same memory.
"""

import warnings
from collections.abc import Callable

import torch

WARMUP_STEPS = 2
"""How many steps run as they are before one is captured, so that what is made once is there."""


def make_graphed(step: Callable[[], None]) -> Callable[[], None]:
    """``step``, to be called again and again: some times as it is, then captured once and replayed.

    Each call is one step. It has to work in place on the same memory each time, and may not read a tensor's value on
    the host. One that can't be captured goes on as it is, with a warning.
    """
    side = torch.cuda.Stream()
    calls = 0

    def plain() -> None:
        nonlocal calls, run
        if calls == WARMUP_STEPS:
            run = _graph(step)
            return run()
        calls += 1
        side.wait_stream(torch.cuda.current_stream())  # memory that a captured stream takes is of another kind
        with torch.cuda.stream(side):
            step()
        torch.cuda.current_stream().wait_stream(side)

    run = plain
    return lambda: run()


def _graph(step: Callable[[], None]) -> Callable[[], None]:
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # judges may use the device beside us
            step()
    except RuntimeError as error:
        warnings.warn(f"decoding runs without CUDA graphs: {error}", stacklevel=2)
        return step
    return graph.replay
