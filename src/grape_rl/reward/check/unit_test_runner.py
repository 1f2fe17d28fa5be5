"""Unit tests of a program written by the policy. The program runs in one sandbox, the tests in another.

The tests reach the program through a pipe: they call its functions and receive plain data. Nothing that the program
does in its own process (exit, replace ``assert``, delete files, return objects equal to everything) affects the tests.
The only way to pass a test is to return the right answer.
"""

import json
import math
import os
import secrets
import select
import time
from dataclasses import dataclass
from typing import Any

from grape_rl.reward.check.sandbox import Isolation, SandboxedProcess, SandboxLimits, start_in_sandbox

GRACE_S = 10.0
"""Seconds allowed for the tests' own computation, in addition to the time that they wait for the program."""


@dataclass(frozen=True)
class CaseResult:
    """The result of one test case; ``reason`` is why it failed."""

    name: str
    passed: bool
    reason: str


@dataclass(frozen=True)
class UnitTestReport:
    """The results of a program's test cases, or the ``fault`` for which there are none, such as a failure to load."""

    cases: tuple[CaseResult, ...]
    fault: str = ""


def run_unit_tests(
    program: str,
    tests: str,
    limits: SandboxLimits,
    seconds: float,
    entry_point: str = "",
    objects: bool = False,
    isolation: Isolation = "bwrap",
) -> UnitTestReport:
    """Run ``tests`` against ``program`` (both Python source) and report each case.

    ``seconds`` limits the total time that the program takes for its answers. With ``objects`` the tests may compare and
    add objects of the program's classes, so the program's own methods decide the result.

    Raises:
        ValueError: bubblewrap does not work on this machine, or the tests themselves are faulty.
        TimeoutError: the tests did not end by themselves.
    """
    processes = [start_in_sandbox("program.py", limits, isolation)]
    try:
        # The tester inherits the pipes to the program; this process keeps neither.
        requests, answers = processes[0].streams
        descriptors = (answers.fileno(), requests.fileno())
        tester = start_in_sandbox("tests.py", limits, isolation, pass_fds=descriptors)
        processes.append(tester)
        marker = secrets.token_hex(16)
        job = {
            "program": program, "tests": tests, "entry_point": entry_point, "objects": objects, "seconds": seconds,
            "marker": marker, "answers": descriptors[0], "requests": descriptors[1],
        }  # fmt: skip
        requests.close()
        answers.close()
        report = _report(tester, job, seconds + GRACE_S)
    finally:
        for process in processes:
            process.end()
    if report.get("marker") != marker:
        raise ValueError("the tests ended without a report")
    if "unsupported" in report:
        raise ValueError(str(report["unsupported"]))
    return UnitTestReport(tuple(CaseResult(**case) for case in report["cases"]), str(report.get("fault", "")))


def _report(tester: SandboxedProcess, job: dict[str, object], seconds: float) -> dict[str, Any]:
    """Send the job to the tester and read its report, one line of JSON; empty if the tester ends without one."""
    stdin, stdout = tester.streams
    try:
        stdin.write(json.dumps(job).encode() + b"\n")
        stdin.close()
    except BrokenPipeError:
        return {}
    deadline, line = time.monotonic() + seconds, b""
    while not line.endswith(b"\n"):
        remaining = deadline - time.monotonic()
        if remaining <= 0 or not select.select([stdout], [], [], remaining)[0]:
            raise TimeoutError(f"the tests did not end within {math.ceil(seconds)} seconds")
        part = os.read(stdout.fileno(), 2**16)
        if not part:
            break
        line += part
    return json.loads(line) if line.endswith(b"\n") else {}
