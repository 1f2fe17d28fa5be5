"""A sandbox for programs written by a policy: no network, no access to files, and limits on resources and time.

A program runs under bubblewrap in its own namespaces. It sees /usr and the Python installation read-only, an empty
/tmp in memory, no network, and neither processes nor environment variables of the host. It runs as an unprivileged
user without capabilities, under limits on CPU time, memory, file size and the number of processes. When the sandbox
ends, all of its processes are killed and everything that they wrote is discarded.

The sandbox does not protect against:

- Vulnerabilities of the kernel or of bubblewrap. The kernel is shared with the host, as with any container.
- Reading of /usr and of the Python installation: keep secrets out of both.
- Timing: a program can measure the load of the machine.
- Use of all the CPU time and memory that the limits allow.
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
"""The isolation of a program. ``none`` applies the resource limits only, and is for trusted code."""

SCRIPTS = Path(__file__).with_name("sandboxed")
"""The folder of the scripts that run in sandboxes. They import the standard library only."""


@dataclass(frozen=True)
class SandboxLimits:
    """Resource limits of a sandboxed program.

    Attributes:
        cpu_s: CPU seconds of a process.
        memory_mb: MiB of address space of a process.
        files_mb: MiB of a file, and of all of /tmp.
        processes: processes and threads at a time.
    """

    cpu_s: int = 10
    memory_mb: int = 512
    files_mb: int = 16
    processes: int = 16


@dataclass(frozen=True)
class SandboxedProcess:
    """A process in its sandbox.

    ``first`` is the id, outside of the sandbox, of the first process inside: killing it ends all other processes.
    """

    process: subprocess.Popen[bytes]
    first: int

    @property
    def streams(self) -> tuple[IO[bytes], IO[bytes]]:
        """Its standard input and standard output."""
        assert self.process.stdin and self.process.stdout
        return self.process.stdin, self.process.stdout

    def end(self) -> None:
        """Kill every process in the sandbox, and wait until they have ended."""
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


def start_in_sandbox(
    script: str, limits: SandboxLimits, isolation: Isolation, pass_fds: Sequence[int] = ()
) -> SandboxedProcess:
    """Start a script of ``sandboxed/`` with this Python in a new sandbox, its standard input and output as pipes.

    The limits are passed on the command line. The script must call ``confine`` before it runs any untrusted code.

    Raises:
        ValueError: ``isolation`` is ``bwrap`` and bubblewrap does not work on this machine.
    """
    user = 0
    command: list[str] = []
    if isolation == "bwrap":
        if problem := bubblewrap_problem():
            raise ValueError(problem)
        user = _unused_user_id() if os.geteuid() == 0 else 0
        command = _bwrap(limits, as_root=os.geteuid() == 0)
    base = Path(sys.base_prefix) / "bin" / "python3"
    python = str(base if base.exists() else Path(os.path.realpath(sys.executable)))
    arguments = [str(n) for n in (limits.cpu_s, limits.memory_mb, limits.files_mb, limits.processes, user)]
    # bwrap writes the id of the first process inside to this pipe; without bwrap the pipe closes empty.
    info_reader, info_writer = os.pipe()
    if command:
        command = [command[0], "--info-fd", str(info_writer), *command[1:], "--"]
        pass_fds = (*pass_fds, info_writer)
    # -I and -S: no environment variables, no site packages, no user site.
    process = subprocess.Popen(
        [*command, python, "-I", "-S", "-B", str(SCRIPTS / script), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={},
        pass_fds=pass_fds,
        start_new_session=True,
        cwd="/",
    )
    os.close(info_writer)
    with os.fdopen(info_reader) as pipe:
        info = pipe.read()
    return SandboxedProcess(process, json.loads(info)["child-pid"] if info else process.pid)


@cache
def bubblewrap_problem() -> str:
    """The reason why bubblewrap cannot be used on this machine; empty if it can."""
    if sys.platform != "linux" or shutil.which("bwrap") is None:
        return (
            "the policy's programs run under bubblewrap, and bwrap is not installed: install it (Debian, Ubuntu: "
            "bubblewrap), or set isolation: none if you trust the programs"
        )
    trial = subprocess.run(
        [*_bwrap(SandboxLimits(), as_root=os.geteuid() == 0), "--", "/usr/bin/true"],
        env={},
        capture_output=True,
        text=True,
    )
    if trial.returncode == 0:
        return ""
    reason = " ".join(trial.stderr.split())[:200]
    return (
        f"bwrap does not work on this machine ({reason}): allow user namespaces, or set isolation: none if you trust "
        "the programs"
    )


def _bwrap(limits: SandboxLimits, as_root: bool) -> list[str]:
    bwrap = shutil.which("bwrap") or "bwrap"  # an absolute path: the sandbox starts without the host's PATH
    command = [
        bwrap, "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try",
        "--die-with-parent", "--new-session", "--clearenv", "--cap-drop", "ALL",
    ]  # fmt: skip
    # The limit on processes does not apply to root. With these two capabilities the script can switch to another user
    # (see ``confine``); the switch removes both.
    command += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"] if as_root else ["--unshare-user"]
    for top in ("/bin", "/lib", "/lib32", "/lib64", "/sbin"):
        if os.path.islink(top):
            command += ["--symlink", os.readlink(top), top]
        elif os.path.isdir(top):
            command += ["--ro-bind", top, top]
    size = str(limits.files_mb * 2**20)
    command += ["--proc", "/proc", "--dev", "/dev", "--perms", "1777", "--size", size, "--tmpfs", "/tmp"]
    # Mounted after /tmp, because a Python installation may be under /tmp.
    for tree in dict.fromkeys(["/usr", sys.base_prefix, str(SCRIPTS)]):
        for parent in reversed(Path(tree).parents[:-1]):  # bwrap itself would create them readable by its user only
            command += ["--perms", "0755", "--dir", str(parent)]
        command += ["--ro-bind", tree, tree]
    return [
        *command, "--chdir", "/tmp", "--setenv", "PATH", "/usr/bin:/bin", "--setenv", "HOME", "/tmp",
    ]  # fmt: skip


def _unused_user_id() -> int:
    """A random user id that no account has. The limit on processes is per user, so each sandbox gets its own."""
    return 2**30 + int.from_bytes(os.urandom(3), "big")
