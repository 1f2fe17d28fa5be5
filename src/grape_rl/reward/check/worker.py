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
from typing import Any, NamedTuple

from grape_rl.reward.check.checks import Check, Length, verdict
from grape_rl.reward.check.unit_tests import UnitTests
from grape_rl.types import Response, Verdict, failed


class Job(NamedTuple):
    """A verdict to give: on which item, by which check, and of which response.

    ``worst`` is the score that hurts the response most: 0, or 1 on a pitfall.
    """

    item: str
    check: Check
    response: Response
    worst: float = 0.0


LOADING_S = 300.0
"""Seconds to start the process and to load what a check needs, before the check's own time begins."""


def graded(jobs: Sequence[Job]) -> list[Verdict]:
    """The verdicts of the jobs, in their order. One that takes longer than its check's ``timeout_s`` is missing."""
    found: dict[int, Verdict] = {}
    programs = [i for i, job in enumerate(jobs) if isinstance(job.check, UnitTests)]
    hanging = [i for i, job in enumerate(jobs) if not isinstance(job.check, UnitTests | Length)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # programs are in processes of their own already
        waiting = pool.map(lambda i: verdict(*jobs[i]), programs)
        found |= zip(hanging, _WORKER.verdicts([jobs[i] for i in hanging]), strict=True)
        found |= zip(programs, waiting, strict=True)
    return [found[i] if i in found else verdict(*job) for i, job in enumerate(jobs)]


class Worker:
    """A process that grades, one job after the other. It starts with the first batch."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None

    def verdicts(self, jobs: Sequence[Job]) -> list[Verdict]:
        """The verdicts of the jobs; a missing one where a job takes too long, or ends the process."""
        found: list[Verdict] = []
        while len(found) < len(jobs):
            found += self._verdicts(jobs[len(found) :])
        return found

    def _verdicts(self, jobs: Sequence[Job]) -> Iterator[Verdict]:
        """The same, up to the first job for which the process has to be started again."""
        done = 0
        try:
            _write(self._running().stdin, pickle.dumps(list(jobs)))
            fault: str = self._heard(LOADING_S)
            for item, check, *_ in jobs:
                assert not isinstance(check, Length), "it needs no process of its own"
                found = failed(item, "infrastructure", fault) if fault else self._heard(check.timeout_s)
                yield replace(found, provenance=found.provenance or check.type)
                done += 1
        except TimeoutError as error:
            self.end()
            yield failed(jobs[done].item, "timeout", str(error), jobs[done].check.type)
        except (EOFError, OSError):
            reason = f"the check ended its process (status {self.end(5.0)})"
            yield failed(jobs[done].item, "infrastructure", reason, jobs[done].check.type)
        except BaseException:
            self.end()  # or what it has yet to say would be taken for verdicts of the next batch
            raise

    def end(self, patience: float = 0.0) -> int | None:
        """Kill the process, if there is one that does not end within ``patience`` seconds; by which status it ended."""
        process, self.process = self.process, None
        if process is None:
            return None
        try:
            code = process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        for stream in (process.stdin, process.stdout):
            with suppress(OSError):
                stream.close()  # pyright: ignore[reportOptionalMemberAccess]
        return code

    def _running(self) -> subprocess.Popen[bytes]:
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, "-c", "from grape_rl.reward.check.worker import serve; serve()"],
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
    """Grade what comes over standard input, until it ends. What checks print goes to standard error.

    They read nothing from standard input, and each begins in the folder where this one did.
    """
    jobs, verdicts = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    home = os.open(".", os.O_RDONLY)  # the folder itself, which is there even if its name is gone
    for content in _messages(jobs):
        os.chdir(home)
        try:
            loaded: list[Job] = pickle.loads(content)
        except Exception as error:  # a check's own module does not load here
            _write(verdicts, pickle.dumps(f"{type(error).__name__}: {error}"))
            continue
        _write(verdicts, pickle.dumps(""))
        for job in loaded:
            os.chdir(home)
            _write(verdicts, pickle.dumps(verdict(*job)))


def _messages(stream: Any) -> Iterator[bytes]:
    while len(head := stream.read(8)) == 8:
        yield stream.read(struct.unpack("<Q", head)[0])


def _write(stream: Any, content: bytes) -> None:
    stream.write(struct.pack("<Q", len(content)) + content)
    stream.flush()
