"""glibc's malloc on CPUs: freed memory is retained for reuse during a run (mallopt, malloc_trim)."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""glibc's parameters of mallopt: the free memory retained at the top of the heap, and the block size that is mapped."""


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Within this context, glibc retains freed memory, and allocates blocks of up to 32 MiB from it.

    A training step frees and allocates the same hundreds of megabytes again and again. Without this, the kernel clears
    every page again each time, which costs up to a tenth of the step. On exit, free memory is returned. Does nothing on
    systems other than Linux with glibc.
    """
    libc: Any = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(libc, "mallopt"):
        yield
        return
    libc.mallopt(M_MMAP_THRESHOLD, 2**25)  # glibc's maximum
    libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        libc.mallopt(M_TRIM_THRESHOLD, 2**17)
        libc.malloc_trim(0)
