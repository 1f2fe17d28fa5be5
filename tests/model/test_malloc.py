"""The heap is kept within a run and given back after it, and elsewhere nothing happens."""

import ctypes
import sys

import pytest

from grape_rl.model import malloc
from grape_rl.model.malloc import keep_freed_memory


class Libc:
    def __init__(self):
        self.told = []

    def mallopt(self, name, value):
        self.told.append((name, value))
        return 1

    def malloc_trim(self, pad):
        self.told.append(("trim", pad))
        return 1


def test_what_is_set_is_set_back_whatever_happens(monkeypatch):
    libc = Libc()
    monkeypatch.setattr(malloc.ctypes, "CDLL", lambda name: libc)
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(RuntimeError, match="stop"), keep_freed_memory():
        kept = dict(libc.told)
        raise RuntimeError("stop")
    assert kept == {malloc.MMAP: 2**25, malloc.TRIM: 2**31 - 1}
    assert libc.told[2:] == [(malloc.TRIM, 2**17), ("trim", 0)]


@pytest.mark.parametrize(("platform", "libc"), [("darwin", Libc()), ("linux", object())])
def test_elsewhere_nothing_happens(monkeypatch, platform, libc):
    monkeypatch.setattr(malloc.ctypes, "CDLL", lambda name: libc)
    monkeypatch.setattr(sys, "platform", platform)
    with keep_freed_memory():
        assert not getattr(libc, "told", None)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")
def test_glibc_takes_it():
    libc = ctypes.CDLL(None)
    assert libc.mallopt(malloc.MMAP, 2**25) == 1 and libc.mallopt(malloc.TRIM, 2**31 - 1) == 1
    libc.mallopt(malloc.TRIM, 2**17)
