"""Memory that a CPU run gives back and asks for again, kept in between."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

TRIM, MMAP = -1, -3
"""mallopt's names in glibc: how much may lie free at the top of the heap, and from which size a block is mapped."""


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Within it, glibc keeps freed memory for the process, and makes blocks of up to 32 MiB out of it.

    A training step frees and takes the same hundreds of megabytes again and again; each time, the kernel would have to
    clear every page anew, which costs as much as a tenth of the step. Afterwards what is free is given back. Elsewhere
    than on Linux with glibc nothing happens.
    """
    libc: Any = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(libc, "mallopt"):
        yield
        return
    libc.mallopt(MMAP, 2**25)  # the most that it takes
    libc.mallopt(TRIM, 2**31 - 1)
    try:
        yield
    finally:
        libc.mallopt(TRIM, 2**17)
        libc.malloc_trim(0)
