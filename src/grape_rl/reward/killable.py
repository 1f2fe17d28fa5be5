"""Grading in a process of its own, which is killed if it hangs: a pattern or a function may run without an end.

The process lives on from one batch to the next, and is started again after it was killed.
"""

import atexit
import os
import pickle
import select
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Any

from grape_rl.reward.checks import Check, verdict
from grape_rl.reward.unit_tests import UnitTests
from grape_rl.types import Response, Verdict, failed

Job = tuple[str, Check, Response]
"""An item's name, its check, and the response to grade."""

LOADING_S = 300.0
"""Seconds to start the process and to load what a check needs, before the check's own time begins."""


def graded(jobs: Sequence[Job]) -> list[Verdict]:
    """The verdicts of the jobs, in their order. One that takes longer than its check's ``timeout_s`` is missing."""
    programs = [isinstance(check, UnitTests) for _, check, _ in jobs]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # programs are in processes of their own already
        waiting = [pool.submit(verdict, *job) if own else None for job, own in zip(jobs, programs, strict=True)]
        others = [None if own else _verdict(job) for job, own in zip(jobs, programs, strict=True)]
        return [one.result() if one else other for one, other in zip(waiting, others, strict=True)]  # pyright: ignore[reportReturnType]


def _verdict(job: Job) -> Verdict:
    limit = getattr(job[1], "timeout_s", None)
    return verdict(*job) if limit is None else _WORKER.verdict(job, limit)


class Worker:
    """A process that grades, one job at a time. It starts with the first job."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None

    def verdict(self, job: Job, seconds: float) -> Verdict:
        """The verdict of a job, or a missing one if it takes longer than ``seconds`` or ends the process."""
        item, check, _ = job
        try:
            _write(self._running().stdin, pickle.dumps(job))
            self._heard(LOADING_S)
            found: Verdict = self._heard(seconds)
            return replace(found, item=item, provenance=found.provenance or check.type)
        except TimeoutError as error:
            self.end()
            return failed(item, "timeout", str(error), check.type)
        except (EOFError, OSError):
            return failed(item, "infrastructure", f"the check ended its process (status {self.end()})", check.type)

    def end(self) -> int | None:
        """Kill the process, if there is one, and say by which status it had ended."""
        process, self.process = self.process, None
        if process is None:
            return None
        if process.stdin:
            with suppress(OSError):
                process.stdin.close()  # upon which it ends by itself, if it still can
        try:
            code = process.wait(0.5)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        if process.stdout:
            process.stdout.close()
        return code

    def _running(self) -> subprocess.Popen[bytes]:
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, "-c", "from grape_rl.reward.killable import serve; serve()"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
            )
        return self.process

    def _heard(self, seconds: float) -> Any:
        """What the process says next.

        Raises:
            TimeoutError: nothing within ``seconds``.
            EOFError: it is gone.
        """
        assert self.process and self.process.stdout
        deadline, stream = time.monotonic() + seconds, self.process.stdout.fileno()
        found, wanted = b"", 8
        while len(found) < wanted:
            if not select.select([stream], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError(f"no verdict within {seconds:g} seconds")
            part = os.read(stream, wanted - len(found))
            if not part:
                raise EOFError
            found += part
            if len(found) == 8:
                wanted += struct.unpack("<Q", found)[0]
        return pickle.loads(found[8:])


_WORKER = Worker()
atexit.register(_WORKER.end)


def serve() -> None:
    """Grade what comes over standard input, until it ends. What checks print goes to standard error."""
    jobs, verdicts = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    for content in _messages(jobs):
        try:
            job: Job | None = pickle.loads(content)
            fault = ""
        except Exception as error:  # the check's own module does not load here
            job, fault = None, f"{type(error).__name__}: {error}"
        _write(verdicts, pickle.dumps("loaded"))
        _write(verdicts, pickle.dumps(verdict(*job) if job else failed("", "infrastructure", fault)))


def _messages(stream: Any) -> Iterator[bytes]:
    while len(head := stream.read(8)) == 8:
        yield stream.read(struct.unpack("<Q", head)[0])


def _write(stream: Any, content: bytes) -> None:
    stream.write(struct.pack("<Q", len(content)) + content)
    stream.flush()
