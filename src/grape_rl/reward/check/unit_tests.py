"""The check that runs a policy's program against tests, in sandboxes."""

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from grape_rl.reward.check.extract import extracted
from grape_rl.reward.check.fields import Pattern, Seconds, Text
from grape_rl.reward.check.sandbox import Isolation, Limits, unusable
from grape_rl.reward.check.unit_test_runner import examined
from grape_rl.schema import Strict
from grape_rl.types import Response

_FENCED = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)^[ \t]*```[ \t]*$", re.DOTALL | re.MULTILINE)


class UnitTests(Strict):
    """The share of tests that the response's program passes, or with ``score: all`` 1 if it passes all, else 0.

    The program is what ``extract`` captures, or the last fenced block of the response, or all of it. ``tests`` is
    Python source: ``assert`` statements, functions ``test_…``, classes of ``unittest``, or, with ``entry_point``, a
    function ``check`` that takes the program's function of that name. The names of the program are there; it can also
    be imported, as ``solution``. It has ``timeout_s`` in all to answer; what has no answer then has failed.
    """

    type: Literal["unit_tests"]
    tests: Text
    extract: Pattern | None = None
    entry_point: Text = ""
    measure: Annotated[Literal["fraction", "all"], Field(alias="score")] = "fraction"
    timeout_s: Seconds = 10.0
    memory_mb: Annotated[int, Field(ge=64)] = 512
    processes: Annotated[int, Field(ge=1)] = 16
    objects: bool = False
    isolation: Isolation = "bwrap"

    @model_validator(mode="after")
    def _isolated(self) -> "UnitTests":
        if self.isolation == "bwrap" and (fault := unusable()):
            raise ValueError(fault)
        return self

    def score(self, response: Response) -> tuple[float, str]:
        """The score, and what it rests on.

        Raises:
            ValueError: the tests themselves are at fault.
            TimeoutError: the tests did not end by themselves.
        """
        program = code(response.text) if self.extract is None else extracted(self.extract, response.text)
        if not program:
            return 0.0, f"nothing matches {self.extract!r}"
        limits = Limits(cpu_s=int(self.timeout_s) + 1, memory_mb=self.memory_mb, processes=self.processes)
        told = examined(program, self.tests, limits, self.timeout_s, self.entry_point, self.objects, self.isolation)
        if told.fault:
            return 0.0, told.fault
        passed = sum(case.passed for case in told.cases)
        first = next((f"; {case.name[:80]}: {case.why}" for case in told.cases if not case.passed), "")
        share = passed / len(told.cases)
        return share if self.measure == "fraction" else float(share == 1), f"{passed} of {len(told.cases)}{first}"


def code(text: str) -> str:
    r"""The program in a text: its last fenced block, or without one all of it.

    >>> code("Here it is:\n```python\nx = 1\n```\nDone.")
    'x = 1\n'
    """
    found = _FENCED.findall(text)
    return found[-1] if found else text
