"""A sandbox for programs that a policy wrote: what runs in it has no network, no files, and an end.

A program runs under bubblewrap, in namespaces of its own: it sees the Python installation and /usr, all read-only, an
empty /tmp in memory, no network, no other processes and an empty environment. It runs as an unprivileged user without
capabilities, under limits on CPU time, memory, file size and processes. When its sandbox ends, so does every process in
it, and nothing that it wrote is left.

What this does not protect from: faults of the kernel and of bubblewrap (a kernel is shared, as with any container),
reading what lies in /usr and in Python's own installation, learning of the machine's load through timing, and using all
of the processor time and memory that the limits allow.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Literal

Isolation = Literal["bwrap", "none"]
"""How a program is kept apart; ``none`` keeps the limits alone, and is for code that one trusts."""

SANDBOXED = Path(__file__).with_name("sandboxed")
"""The scripts that run in sandboxes: they import the standard library alone."""


@dataclass(frozen=True)
class Limits:
    """What a sandboxed program may use: CPU seconds, MiB of memory a process, MiB of files, and processes at once."""

    cpu_s: int = 10
    memory_mb: int = 512
    files_mb: int = 16
    processes: int = 16


@dataclass(frozen=True)
class Sandboxed:
    """A process in its sandbox, and the process id (out here) of the first one in there: with it all of them end."""

    process: subprocess.Popen[bytes]
    first: int

    @property
    def streams(self) -> tuple[IO[bytes], IO[bytes]]:
        """Its standard input and output."""
        assert self.process.stdin and self.process.stdout
        return self.process.stdin, self.process.stdout

    def end(self) -> None:
        """Kill whatever runs in the sandbox, and wait until it is gone."""
        if self.process.poll() is None:
            for pid in (self.first, self.process.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                with suppress(subprocess.TimeoutExpired):
                    self.process.wait(10)
                    break
        for stream in self.streams:
            if not stream.closed:
                stream.close()


def python_in_sandbox(script: str, limits: Limits, isolation: Isolation, pass_fds: Sequence[int] = ()) -> Sandboxed:
    """A script of ``inside`` under this Python, in a sandbox, with its standard input and output as pipes.

    The script calls ``confined`` before anything that it does not trust: what ``limits`` says is its argument.

    Raises:
        ValueError: bubblewrap is asked for and does not work here.
    """
    user = 0
    command: list[str] = []
    if isolation == "bwrap":
        if fault := unusable():
            raise ValueError(fault)
        user = _stranger() if os.geteuid() == 0 else 0
        command = _bwrap(limits, as_root=os.geteuid() == 0)
    base = Path(sys.base_prefix) / "bin" / "python3"
    python = str(base if base.exists() else Path(os.path.realpath(sys.executable)))
    told = [str(n) for n in (limits.cpu_s, limits.memory_mb, limits.files_mb, limits.processes, user)]
    told_by, tells = os.pipe()
    if command:
        command = [command[0], "--info-fd", str(tells), *command[1:], "--"]
        pass_fds = (*pass_fds, tells)
    # -I and -S: no environment, no site packages, nothing of the user's.
    process = subprocess.Popen(
        [*command, python, "-I", "-S", "-B", str(SANDBOXED / script), *told],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={},
        pass_fds=pass_fds,
        start_new_session=True,
        cwd="/",
    )
    os.close(tells)
    with os.fdopen(told_by) as info:
        said = info.read()
    return Sandboxed(process, json.loads(said)["child-pid"] if said else process.pid)


@cache
def unusable() -> str:
    """Why bubblewrap can't be used here; nothing if it can."""
    if sys.platform != "linux" or shutil.which("bwrap") is None:
        return (
            "programs of the policy run under bubblewrap, and there is no bwrap here: install it (Debian, Ubuntu: "
            "bubblewrap), or, for programs that you trust, say isolation: none"
        )
    tried = subprocess.run(
        [*_bwrap(Limits(), as_root=os.geteuid() == 0), "--", "/usr/bin/true"], env={}, capture_output=True, text=True
    )
    if tried.returncode == 0:
        return ""
    reason = " ".join(tried.stderr.split())[:200]
    return (
        f"bwrap does not work here ({reason}): allow user namespaces on this machine, or, for programs that you trust, "
        "say isolation: none"
    )


def _bwrap(limits: Limits, as_root: bool) -> list[str]:
    command = [
        "bwrap", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try",
        "--die-with-parent", "--new-session", "--clearenv", "--cap-drop", "ALL",
    ]  # fmt: skip
    # Root would be free of the limit on processes: the script gives itself another user (``confined``), which it may
    # do with these two; they are gone after it.
    command += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"] if as_root else ["--unshare-user"]
    for top in ("/bin", "/lib", "/lib32", "/lib64", "/sbin"):
        if os.path.islink(top):
            command += ["--symlink", os.readlink(top), top]
        elif os.path.isdir(top):
            command += ["--ro-bind", top, top]
    room = str(limits.files_mb * 2**20)
    command += ["--proc", "/proc", "--dev", "/dev", "--perms", "1777", "--size", room, "--tmpfs", "/tmp"]
    # After /tmp, since an installation may lie below it.
    for tree in dict.fromkeys(["/usr", sys.base_prefix, str(SANDBOXED)]):
        for above in reversed(Path(tree).parents[:-1]):  # bwrap would make them for its own user alone
            command += ["--perms", "0755", "--dir", str(above)]
        command += ["--ro-bind", tree, tree]
    return [
        *command, "--chdir", "/tmp", "--setenv", "PATH", "/usr/bin:/bin", "--setenv", "HOME", "/tmp",
    ]  # fmt: skip


def _stranger() -> int:
    """A user id that nobody has, another one for each sandbox: the limit on processes counts by user."""
    return 2**30 + int.from_bytes(os.urandom(3), "big")
