"""The first action of every sandboxed script: apply the resource limits and drop all privileges."""

import ctypes
import os
import resource
import sys

_NO_NEW_PRIVILEGES, _DUMPABLE = 38, 4


def confine() -> None:
    """Apply the limits on the command line: CPU seconds, MiB of memory, MiB of files, processes, user id."""
    cpu, memory, files, processes, user = (int(word) for word in sys.argv[1:6])
    if user:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    libc = ctypes.CDLL(None)
    libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    for kind, limit in (
        (resource.RLIMIT_CPU, cpu),
        (resource.RLIMIT_AS, memory * 2**20),
        (resource.RLIMIT_FSIZE, files * 2**20),
        (resource.RLIMIT_NPROC, processes),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (limit, limit))
    # No core dumps, and no other process of this user can read or trace this one.
    libc.prctl(_DUMPABLE, 0, 0, 0, 0)
