"""The check that runs the policy's program against unit tests, in sandboxes."""

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from grape_rl.reward.check.extract import extract_text
from grape_rl.reward.check.field_types import LookupText, Pattern, TimeLimit
from grape_rl.reward.check.sandbox import Isolation, SandboxLimits, bubblewrap_problem
from grape_rl.reward.check.unit_test_runner import run_unit_tests
from grape_rl.schema import Strict
from grape_rl.types import Response

_FENCED = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)^[ \t]*```[ \t]*$", re.DOTALL | re.MULTILINE)


class UnitTests(Strict):
    """The fraction of unit tests that the response's program passes; with ``score: all``, 1 if it passes all, else 0.

    The program is the text that ``extract`` captures, or the last fenced code block of the response, or else the whole
    response. ``tests`` is Python source with ``assert`` statements, ``test_…`` functions or ``unittest`` classes. With
    ``entry_point`` it defines a function ``check``, which is called with the program's function of that name. The
    program's names are global in the tests; it can also be imported, as ``solution``. ``timeout_s`` limits the total
    time of the program's answers; a test without an answer by then has failed.
    """

    type: Literal["unit_tests"]
    tests: LookupText
    extract: Pattern | None = None
    entry_point: LookupText = ""
    measure: Annotated[Literal["fraction", "all"], Field(alias="score")] = "fraction"
    timeout_s: TimeLimit = 10.0
    memory_mb: Annotated[int, Field(ge=64)] = 512
    processes: Annotated[int, Field(ge=1)] = 16
    objects: bool = False
    isolation: Isolation = "bwrap"

    @model_validator(mode="after")
    def _isolated(self) -> "UnitTests":
        if self.isolation == "bwrap" and (problem := bubblewrap_problem()):
            raise ValueError(problem)
        return self

    def score(self, response: Response) -> tuple[float, str]:
        """The score and its reason.

        Raises:
            ValueError: the tests themselves are faulty.
            TimeoutError: the tests did not end by themselves.
        """
        program = extract_program(response.text) if self.extract is None else extract_text(self.extract, response.text)
        if not program:
            return 0.0, f"nothing matches {self.extract!r}"
        limits = SandboxLimits(cpu_s=int(self.timeout_s) + 1, memory_mb=self.memory_mb, processes=self.processes)
        report = run_unit_tests(
            program, self.tests, limits, self.timeout_s, self.entry_point, self.objects, self.isolation
        )
        if report.fault:
            return 0.0, report.fault
        passed = sum(case.passed for case in report.cases)
        first = next((f"; {case.name[:80]}: {case.reason}" for case in report.cases if not case.passed), "")
        fraction = passed / len(report.cases)
        score = fraction if self.measure == "fraction" else float(fraction == 1)
        return score, f"{passed} of {len(report.cases)}{first}"


def extract_program(text: str) -> str:
    r"""The program in a text: its last fenced code block, or the whole text if it has none.

    >>> extract_program("Here it is:\n```python\nx = 1\n```\nDone.")
    'x = 1\n'
    """
    blocks = _FENCED.findall(text)
    return blocks[-1] if blocks else text
