"""How often a program reads a number from a tensor, and so waits until the device has come to it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from torch import Tensor


@contextmanager
def waits_counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What read a number from a tensor of floats, each time. Masks and lengths, which come from data, do not count."""
    waits: list[str] = []

    def counted(name: str, whole: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
        def read(self: Tensor) -> Any:
            if self.is_floating_point():
                waits.append(name)
            return whole(self)

        return read

    with monkeypatch.context() as patch:
        for name in ("item", "tolist", "__float__", "__bool__"):
            patch.setattr(Tensor, name, counted(name, getattr(Tensor, name)))
        yield waits
