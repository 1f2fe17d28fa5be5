"""Checks: the rubric items that a program grades. Each is a part of the rubric file that can grade a response.

What the policy did wrong (no answer where one is looked for) scores 0. What went wrong in the grading (a gold answer
that is no number, a function that raised) is a missing verdict and never a score.
"""

import functools
import importlib.util
import inspect
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, model_validator

from grape_rl.reward.check.callables import awaited, python_callable
from grape_rl.reward.check.extract import extracted, gold_number, gold_text, numbers
from grape_rl.reward.check.fields import PATTERNS, Count, Gold, Pattern, Seconds, Text, Tolerance
from grape_rl.reward.check.formal import JsonSchema, MathVerify
from grape_rl.reward.check.lookup import filled, lookups
from grape_rl.reward.check.unit_tests import UnitTests
from grape_rl.schema import Strict
from grape_rl.types import Response, Verdict, failed


class Exact(Strict):
    """1 if the answer is the gold text, up to white space (and case, if it says so); else 0."""

    type: Literal["exact"]
    gold: Gold
    extract: Pattern | None = None
    gold_extract: Pattern | None = None
    ignore_case: bool = False
    timeout_s: Seconds = 10.0

    def score(self, response: Response) -> tuple[float, str]:
        """The score, and what it rests on."""
        gold = gold_text(self.gold, self.gold_extract)
        answer = extracted(self.extract, response.text)
        if answer is None:
            return 0.0, f"nothing matches {self.extract!r}"
        same = self._plain(answer) == self._plain(gold)
        return float(same), f"{answer!r} against {gold!r}"

    def _plain(self, text: str) -> str:
        words = " ".join(text.split())
        return words.casefold() if self.ignore_case else words


class Numeric(Strict):
    """1 if the answer is within ``max(abs_tol, rel_tol · |gold|)`` of the gold number; else 0.

    The answer is the one number in what ``extract`` captures (two numbers there are no answer), or without ``extract``
    the last number of the response. Numbers are compared exactly: a gold answer computed in floating point needs a
    tolerance.
    """

    type: Literal["numeric"]
    gold: Gold
    extract: Pattern | None = None
    gold_extract: Pattern | None = None
    abs_tol: Tolerance = 0.0
    rel_tol: Tolerance = 0.0
    timeout_s: Seconds = 10.0

    def score(self, response: Response) -> tuple[float, str]:
        """The score, and what it rests on."""
        gold = gold_number(self.gold, self.gold_extract)
        text = extracted(self.extract, response.text)
        if text is None:
            return 0.0, f"nothing matches {self.extract!r}"
        found = numbers(text)
        if len(found) == 0 or (self.extract is not None and len(found) > 1):
            return 0.0, f"{len(found)} numbers in {text[:80]!r}"
        # The tolerances as they are written: the fraction that the float 0.3 stands for is under 3/10.
        tolerance = max(Fraction(str(self.abs_tol)), Fraction(str(self.rel_tol)) * abs(gold))
        return float(abs(found[-1] - gold) <= tolerance), f"{found[-1]} against {gold}"


class Regex(Strict):
    """1 if the pattern is found anywhere in the response, else 0. ``multiline``: ^ and $ match at every line."""

    type: Literal["regex"]
    pattern: Pattern
    multiline: bool = False
    timeout_s: Seconds = 10.0

    def score(self, response: Response) -> tuple[float, str]:
        """The score, and what it rests on."""
        match = re.search(self.pattern, response.text, re.MULTILINE if self.multiline else 0)
        return (1.0, f"{match[0][:80]!r}") if match else (0.0, f"nothing matches {self.pattern!r}")


class Length(Strict):
    """1 if the response has at least ``min_tokens``, at most ``max_tokens`` and at most ``max_characters``; else 0.

    Tokens count all that the policy wrote, its end token included; characters are those of the text.
    """

    type: Literal["length"]
    min_tokens: Count | None = None
    max_tokens: Count | None = None
    max_characters: Count | None = None

    @model_validator(mode="after")
    def _some_limit(self) -> "Length":
        low, high = self.min_tokens, self.max_tokens
        if low is None and high is None and self.max_characters is None:
            raise ValueError("a length check needs max_tokens, min_tokens or max_characters")
        if low is not None and high is not None and low > high:
            raise ValueError(f"min_tokens {low} is over max_tokens {high}")
        return self

    def score(self, response: Response) -> tuple[float, str]:
        """The score, and what it rests on."""
        within = (
            (self.min_tokens is None or response.tokens >= self.min_tokens)
            and (self.max_tokens is None or response.tokens <= self.max_tokens)
            and (self.max_characters is None or len(response.text) <= self.max_characters)
        )
        return float(within), f"{response.tokens} tokens, {len(response.text)} characters"


class ReasoningGym(Strict):
    """The task's own score of the answer. Unless ``partial``, what scores under 1 there scores 0 here."""

    type: Literal["reasoning_gym"]
    task: Text = "${row.task}"
    entry: Text = "${row.entry}"
    extract: Pattern | None = None
    partial: bool = False
    timeout_s: Seconds = 60.0

    @model_validator(mode="after")
    def _installed(self) -> "ReasoningGym":
        if importlib.util.find_spec("reasoning_gym") is None:
            raise ValueError("the reasoning_gym check needs the reasoning-gym package: install grape-rl[tasks]")
        return self

    def score(self, response: Response) -> tuple[float, str]:
        """The score, and what it rests on."""
        answer = extracted(self.extract, response.text)
        if answer is None:
            return 0.0, f"nothing matches {self.extract!r}"
        score = float(_reasoning_gym_score(self.task)(answer=answer, entry=self.entry))
        if not 0 <= score <= 1 + 1e-9:
            raise ValueError(f"the task {self.task!r} gave the score {score}, which is not in [0, 1]")
        # Not ``>= 1``: partial credit summed in floating point can end above 1 for a wrong answer (spell_backward
        # gives 1.0000000000000002 to a right answer with more letters behind it, for some lengths).
        return min(score, 1.0) if self.partial else float(score == 1), f"{answer!r}"


@functools.cache  # each look-up there builds the whole dataset
def _reasoning_gym_score(task: str) -> Callable[..., float]:
    import reasoning_gym  # here, because it is an extra and slow to import

    return reasoning_gym.get_score_answer_fn(task)


class Python(Strict):
    """A function of one's own, ``f(response) -> float | bool | Verdict``: ``"file.py:name"`` or ``"module:name"``.

    ``async`` ones too, one response after the other.
    """

    type: Literal["python"]
    call: str
    timeout_s: Seconds = 60.0

    _function: Callable[[Response], Any] = PrivateAttr()
    _found: tuple[Path, Collection[str]] = PrivateAttr()

    @model_validator(mode="after")
    def _loaded(self, info: Any) -> "Python":  # a pydantic.ValidationInfo, which beartype cannot check
        self._found = (info.context["folder"], info.context["allow"])
        self._function = python_callable(self.call, *self._found)
        return self

    def __reduce__(self) -> Any:
        """Another process loads the function anew: it can't be sent."""
        return _python, (self.model_dump(), *self._found)

    def score(self, response: Response) -> tuple[float, str] | Verdict:
        """What the function returns."""
        result = self._function(response)
        if inspect.iscoroutine(result):
            result = awaited(result)
        return result if isinstance(result, Verdict) else (real(result), "")


def _python(fields: dict[str, Any], folder: Path, allow: Collection[str]) -> Python:
    return Python.model_validate(fields, context={"folder": folder, "allow": allow})


Check = Annotated[
    Exact | Numeric | Regex | Length | JsonSchema | MathVerify | ReasoningGym | UnitTests | Python,
    Field(discriminator="type"),
]


def verdict(item: str, check: Check, response: Response, worst: float = 0.0) -> Verdict:
    """One response graded by one check. If the grading goes wrong, the verdict is missing and says why.

    ``worst`` is what a ``policy_fault`` scores, whatever the check gave it: 0, or 1 on a pitfall.
    """
    try:
        result = _filled(check, response.row).score(response)
        found = result if isinstance(result, Verdict) else Verdict(item, result[0], reasoning=result[1])
        if found.status == "policy_fault":
            found = replace(found, score=worst, confidence=1.0)
        if not found.missing and not 0 <= found.score <= 1:
            raise ValueError(f"score {found.score} is not in [0, 1]")
    except TimeoutError as error:
        return failed(item, "timeout", str(error), check.type)
    except (Exception, SystemExit) as error:
        return failed(item, "infrastructure", f"{type(error).__name__}: {error}", check.type)
    return replace(found, item=item, provenance=found.provenance or check.type)


def check_lookups(check: Check) -> tuple[str, ...]:
    """The look-ups in the fields of a check, as written."""
    return tuple(lookup for text in _texts(check).values() for lookup in lookups(text))


def real(value: Any) -> float:
    """A number that a user's function returned: whatever ``float`` takes, but no text.

    Raises:
        TypeError: it is no number.
    """
    try:
        if not isinstance(value, str | bytes | bytearray):  # all of which float reads
            return float(value)
    except (TypeError, ValueError, RuntimeError):  # a tensor of several numbers raises the last
        pass
    raise TypeError(f"returned {value!r:.80}, which is no number")


def _texts(check: Check) -> dict[str, str]:
    values = {name: getattr(check, name) for name in type(check).model_fields if name not in ("type", "call")}
    return {name: value for name, value in values.items() if isinstance(value, str)}


def _filled(check: Check, row: Mapping[str, Any]) -> Check:
    """The check with its look-ups filled in. In a pattern, what the row says is matched literally."""
    found = {
        name: filled(text, row, re.escape if name in PATTERNS else None)
        for name, text in _texts(check).items()
        if lookups(text)
    }
    return check.model_copy(update=found)
