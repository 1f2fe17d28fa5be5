"""Counts of host synchronizations: reads of a tensor's value, for which the host waits for the device."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from torch import Tensor


@contextmanager
def waits_counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A list of the methods that read a float tensor's value. Masks and lengths, which come from data, do not count."""
    waits: list[str] = []

    def counted(name: str, method: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
        def read(self: Tensor) -> Any:
            if self.is_floating_point():
                waits.append(name)
            return method(self)

        return read

    with monkeypatch.context() as patch:
        for name in ("item", "tolist", "__float__", "__bool__"):
            patch.setattr(Tensor, name, counted(name, getattr(Tensor, name)))
        yield waits
