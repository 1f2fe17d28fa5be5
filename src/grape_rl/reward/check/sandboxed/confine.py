"""What a script in a sandbox does first: take its limits, and give up every right that it does not need."""

import ctypes
import os
import resource
import sys

_NO_NEW_PRIVILEGES, _DUMPABLE = 38, 4


def confined() -> None:
    """Take the limits that the command line tells: CPU seconds, MiB of memory and of files, processes, user."""
    cpu, memory, files, processes, user = (int(word) for word in sys.argv[1:6])
    if user:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    libc = ctypes.CDLL(None)
    libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    for what, most in (
        (resource.RLIMIT_CPU, cpu),
        (resource.RLIMIT_AS, memory * 2**20),
        (resource.RLIMIT_FSIZE, files * 2**20),
        (resource.RLIMIT_NPROC, processes),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(what)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (most, most))
    # No core, and no other process of this user can read or trace it.
    libc.prctl(_DUMPABLE, 0, 0, 0, 0)
