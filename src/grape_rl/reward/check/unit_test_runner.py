"""Unit tests of a program that the policy wrote: the program in one sandbox, the tests in another.

The tests see the program through a pipe: they call its functions and get plain data back. So nothing that the program
does in its own process (ending it, replacing ``assert``, deleting files, comparing equal to all) reaches the tests,
and the only way to pass a test is to answer it.
"""

import json
import math
import os
import secrets
import select
import time
from dataclasses import dataclass
from typing import Any

from grape_rl.reward.check.sandbox import Isolation, Limits, Sandboxed, python_in_sandbox

GRACE_S = 10.0
"""Seconds that the tests get of their own, beside those that they wait for the program."""


@dataclass(frozen=True)
class Case:
    """One test: whether it passed, and why not."""

    name: str
    passed: bool
    why: str


@dataclass(frozen=True)
class Report:
    """What tests said of a program: its cases, or the fault for which there are none (it does not load, say)."""

    cases: tuple[Case, ...]
    fault: str = ""


def examined(
    program: str,
    tests: str,
    limits: Limits,
    seconds: float,
    entry_point: str = "",
    objects: bool = False,
    isolation: Isolation = "bwrap",
) -> Report:
    """The report of the ``tests`` (Python source) on the ``program`` (Python source).

    The program has ``seconds`` in all to answer. With ``objects`` the tests may compare and add up objects of the
    program's classes, whose own methods then say what comes out.

    Raises:
        ValueError: bubblewrap is asked for and does not work here, or the tests themselves are at fault.
        TimeoutError: the tests did not end by themselves.
    """
    started = [python_in_sandbox("program.py", limits, isolation)]
    try:
        requests, answers = started[0].streams
        ways = (answers.fileno(), requests.fileno())
        tester = python_in_sandbox("tests.py", limits, isolation, pass_fds=ways)
        started.append(tester)
        marker = secrets.token_hex(16)
        told = {
            "program": program, "tests": tests, "entry_point": entry_point, "objects": objects, "seconds": seconds,
            "marker": marker, "answers": ways[0], "requests": ways[1],
        }  # fmt: skip
        requests.close()
        answers.close()
        found = _reported(tester, told, seconds + GRACE_S)
    finally:
        for each in started:
            each.end()
    if found.get("marker") != marker:
        raise ValueError("the tests ended without a report")
    if "unsupported" in found:
        raise ValueError(str(found["unsupported"]))
    return Report(tuple(Case(**case) for case in found["cases"]), str(found.get("fault", "")))


def _reported(tester: Sandboxed, told: dict[str, object], seconds: float) -> dict[str, Any]:
    asks, tells = tester.streams
    try:
        asks.write(json.dumps(told).encode() + b"\n")
        asks.close()
    except BrokenPipeError:
        return {}
    deadline, found = time.monotonic() + seconds, b""
    while not found.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([tells], [], [], left)[0]:
            raise TimeoutError(f"the tests did not end within {math.ceil(seconds)} seconds")
        part = os.read(tells.fileno(), 2**16)
        if not part:
            break
        found += part
    return json.loads(found) if found.endswith(b"\n") else {}
