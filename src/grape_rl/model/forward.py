"""The settings of a forward pass that are no part of the method: micro-batch size, precision, temperature."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass


@dataclass(frozen=True)
class ForwardContext:
    """Settings shared by every forward pass of a run.

    Attributes:
        tokens_per_microbatch: the most positions in one forward pass. It trades memory for time and never changes a
            result.
        precision: makes the autocast context of one forward pass. It is entered for each pass, because autocast caches
            its copies of the weights until it is left.
        temperature: the logits are divided by it before the softmax.
    """

    tokens_per_microbatch: int
    precision: Callable[[], AbstractContextManager[object]] = nullcontext
    temperature: float = 1.0
