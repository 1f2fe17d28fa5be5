"""The settings of a forward pass that do not depend on the method: micro-batch size, precision, temperature."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass


@dataclass(frozen=True)
class ForwardContext:
    """Settings shared by every forward pass of a run.

    Attributes:
        tokens_per_microbatch: the maximum number of positions in one forward pass. It trades memory for time and never
            changes a result.
        precision: returns the autocast context of one forward pass. Each pass enters a new one, because autocast caches
            its copies of the weights until the context exits.
        temperature: the logits are divided by it before the softmax.
    """

    tokens_per_microbatch: int
    precision: Callable[[], AbstractContextManager[object]] = nullcontext
    temperature: float = 1.0
