"""Checks in a worker process, which is killed when one hangs: a pattern or a function may never end.

The process serves one batch after another, and is started again after it was killed.
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

from grape_rl.reward.check.checks import Check, Length, check_verdict
from grape_rl.reward.check.unit_tests import UnitTests
from grape_rl.types import Response, Verdict, failed


class CheckJob(NamedTuple):
    """One response to grade on one item by a check.

    ``worst`` is the score that lowers the reward most: 0, or 1 on a pitfall.
    """

    item: str
    check: Check
    response: Response
    worst: float = 0.0


LOADING_S = 300.0
"""Seconds to start the process and to load what the checks need, before the time limit of the first check begins."""


def run_checks(jobs: Sequence[CheckJob]) -> list[Verdict]:
    """The verdicts of the jobs, in order. A job that takes longer than its check's ``timeout_s`` is missing."""
    verdicts: dict[int, Verdict] = {}
    programs = [i for i, job in enumerate(jobs) if isinstance(job.check, UnitTests)]
    may_hang = [i for i, job in enumerate(jobs) if not isinstance(job.check, UnitTests | Length)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # threads suffice: unit tests run in processes of their own
        program_verdicts = pool.map(lambda i: check_verdict(*jobs[i]), programs)
        verdicts |= zip(may_hang, _WORKER.verdicts([jobs[i] for i in may_hang]), strict=True)
        verdicts |= zip(programs, program_verdicts, strict=True)
    return [verdicts[i] if i in verdicts else check_verdict(*job) for i, job in enumerate(jobs)]


class Worker:
    """A process that grades one job after another. It starts with the first batch."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None

    def verdicts(self, jobs: Sequence[CheckJob]) -> list[Verdict]:
        """The verdicts of the jobs; missing where a job takes too long or ends the process."""
        verdicts: list[Verdict] = []
        while len(verdicts) < len(jobs):
            verdicts += self._verdicts(jobs[len(verdicts) :])
        return verdicts

    def _verdicts(self, jobs: Sequence[CheckJob]) -> Iterator[Verdict]:
        """The verdicts up to and including the first job after which the process has to be started again."""
        done = 0
        try:
            _write(self._running().stdin, pickle.dumps(list(jobs)))
            load_error: str = self._receive(LOADING_S)
            for item, check, *_ in jobs:
                assert not isinstance(check, Length), "it needs no process of its own"
                verdict = failed(item, "infrastructure", load_error) if load_error else self._receive(check.timeout_s)
                yield replace(verdict, provenance=verdict.provenance or check.type)
                done += 1
        except TimeoutError as error:
            self.end()
            yield failed(jobs[done].item, "timeout", str(error), jobs[done].check.type)
        except (EOFError, OSError):
            reason = f"the check ended its process (status {self.end(5.0)})"
            yield failed(jobs[done].item, "infrastructure", reason, jobs[done].check.type)
        except BaseException:
            self.end()  # its remaining output would be read as verdicts of the next batch
            raise

    def end(self, patience: float = 0.0) -> int | None:
        """The exit status of the process, which is killed if it does not end within ``patience`` seconds."""
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

    def _receive(self, seconds: float) -> Any:
        """The next message of the process.

        Raises:
            TimeoutError: no message within ``seconds``.
            EOFError: the process has ended.
        """
        assert self.process and self.process.stdout
        deadline, stream = time.monotonic() + seconds, self.process.stdout.fileno()
        message, size = b"", 8
        while len(message) < size:
            if not select.select([stream], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError(f"no verdict within {seconds:g} seconds")
            part = os.read(stream, size - len(message))
            if not part:
                raise EOFError
            message += part
            if len(message) == 8:
                size += struct.unpack("<Q", message)[0]
        return pickle.loads(message[8:])


_WORKER = Worker()
atexit.register(_WORKER.end)


def serve() -> None:
    """Grade the batches that arrive on standard input until it closes: the main function of the worker process.

    Output that checks print goes to standard error, and their standard input is empty. Each job starts in the folder in
    which the process started.
    """
    jobs, verdicts = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    home = os.open(".", os.O_RDONLY)  # an open descriptor stays valid even if the folder is renamed or removed
    for content in _messages(jobs):
        os.chdir(home)
        try:
            batch: list[CheckJob] = pickle.loads(content)
        except Exception as error:  # for instance, the module of a python check cannot be imported
            _write(verdicts, pickle.dumps(f"{type(error).__name__}: {error}"))
            continue
        _write(verdicts, pickle.dumps(""))
        for job in batch:
            os.chdir(home)
            _write(verdicts, pickle.dumps(check_verdict(*job)))


def _messages(stream: Any) -> Iterator[bytes]:
    while len(head := stream.read(8)) == 8:
        yield stream.read(struct.unpack("<Q", head)[0])


def _write(stream: Any, content: bytes) -> None:
    stream.write(struct.pack("<Q", len(content)) + content)
    stream.flush()
