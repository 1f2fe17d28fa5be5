"""Freed memory is retained within the context and returned after it; elsewhere nothing happens."""

import ctypes
import sys

import pytest

from grape_rl.model import malloc
from grape_rl.model.malloc import keep_freed_memory


class Libc:
    def __init__(self):
        self.calls = []

    def mallopt(self, name, value):
        self.calls.append((name, value))
        return 1

    def malloc_trim(self, pad):
        self.calls.append(("trim", pad))
        return 1


def test_the_settings_are_restored_even_after_an_error(monkeypatch):
    libc = Libc()
    monkeypatch.setattr(malloc.ctypes, "CDLL", lambda name: libc)
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(RuntimeError, match="stop"), keep_freed_memory():
        settings = dict(libc.calls)
        raise RuntimeError("stop")
    assert settings == {malloc.M_MMAP_THRESHOLD: 2**25, malloc.M_TRIM_THRESHOLD: 2**31 - 1}
    assert libc.calls[2:] == [(malloc.M_TRIM_THRESHOLD, 2**17), ("trim", 0)]


@pytest.mark.parametrize(("platform", "libc"), [("darwin", Libc()), ("linux", object())])
def test_elsewhere_nothing_happens(monkeypatch, platform, libc):
    monkeypatch.setattr(malloc.ctypes, "CDLL", lambda name: libc)
    monkeypatch.setattr(sys, "platform", platform)
    with keep_freed_memory():
        assert not getattr(libc, "calls", None)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")
def test_glibc_accepts_the_settings():
    libc = ctypes.CDLL(None)
    assert libc.mallopt(malloc.M_MMAP_THRESHOLD, 2**25) == 1 and libc.mallopt(malloc.M_TRIM_THRESHOLD, 2**31 - 1) == 1
    libc.mallopt(malloc.M_TRIM_THRESHOLD, 2**17)
