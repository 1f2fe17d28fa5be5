"""Checks: rubric items graded by a program. Each is a section of the rubric file with a ``score`` method.

A mistake of the policy (no answer in the expected place) scores 0. A failure of the grading itself (a gold answer that
is not a number, a function that raised) is a missing verdict, never a score.
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

from grape_rl.reward.check.callables import python_callable, run_coroutine
from grape_rl.reward.check.extract import extract_text, gold_number, gold_text, parse_numbers
from grape_rl.reward.check.field_types import (
    PATTERN_FIELDS,
    GoldAnswer,
    LookupText,
    Pattern,
    SizeLimit,
    TimeLimit,
    Tolerance,
)
from grape_rl.reward.check.json_schema import JsonSchema
from grape_rl.reward.check.lookup import filled, lookups
from grape_rl.reward.check.math_verify import MathVerify
from grape_rl.reward.check.unit_tests import UnitTests
from grape_rl.schema import Strict
from grape_rl.types import Response, Verdict, failed


class Exact(Strict):
    """1 if the answer equals the gold text, ignoring white space (and case, with ``ignore_case``); else 0."""

    type: Literal["exact"]
    gold: GoldAnswer
    extract: Pattern | None = None
    gold_extract: Pattern | None = None
    ignore_case: bool = False
    timeout_s: TimeLimit = 10.0

    def score(self, response: Response) -> tuple[float, str]:
        """The score and its reason."""
        gold = gold_text(self.gold, self.gold_extract)
        answer = extract_text(self.extract, response.text)
        if answer is None:
            return 0.0, f"nothing matches {self.extract!r}"
        equal = self._normalized(answer) == self._normalized(gold)
        return float(equal), f"{answer!r} against {gold!r}"

    def _normalized(self, text: str) -> str:
        words = " ".join(text.split())
        return words.casefold() if self.ignore_case else words


class Numeric(Strict):
    """1 if the answer is within ``max(abs_tol, rel_tol · |gold|)`` of the gold number; else 0.

    The answer is the only number in the text that ``extract`` captures; two numbers count as no answer. Without
    ``extract`` it is the last number of the response. Numbers are compared exactly, so a gold answer computed in
    floating point needs a tolerance.
    """

    type: Literal["numeric"]
    gold: GoldAnswer
    extract: Pattern | None = None
    gold_extract: Pattern | None = None
    abs_tol: Tolerance = 0.0
    rel_tol: Tolerance = 0.0
    timeout_s: TimeLimit = 10.0

    def score(self, response: Response) -> tuple[float, str]:
        """The score and its reason."""
        gold = gold_number(self.gold, self.gold_extract)
        text = extract_text(self.extract, response.text)
        if text is None:
            return 0.0, f"nothing matches {self.extract!r}"
        values = parse_numbers(text)
        if len(values) == 0 or (self.extract is not None and len(values) > 1):
            return 0.0, f"{len(values)} numbers in {text[:80]!r}"
        # str() gives the tolerance as written in the file: the float 0.3 itself is slightly below 3/10.
        tolerance = max(Fraction(str(self.abs_tol)), Fraction(str(self.rel_tol)) * abs(gold))
        return float(abs(values[-1] - gold) <= tolerance), f"{values[-1]} against {gold}"


class Regex(Strict):
    """1 if the pattern matches anywhere in the response, else 0. With ``multiline``, ^ and $ match at every line."""

    type: Literal["regex"]
    pattern: Pattern
    multiline: bool = False
    timeout_s: TimeLimit = 10.0

    def score(self, response: Response) -> tuple[float, str]:
        """The score and its reason."""
        match = re.search(self.pattern, response.text, re.MULTILINE if self.multiline else 0)
        return (1.0, f"{match[0][:80]!r}") if match else (0.0, f"nothing matches {self.pattern!r}")


class Length(Strict):
    """1 if the response has at least ``min_tokens``, at most ``max_tokens`` and at most ``max_characters``; else 0.

    Tokens are counted with the end token, characters in the text without special tokens.
    """

    type: Literal["length"]
    min_tokens: SizeLimit | None = None
    max_tokens: SizeLimit | None = None
    max_characters: SizeLimit | None = None

    @model_validator(mode="after")
    def _some_limit(self) -> "Length":
        low, high = self.min_tokens, self.max_tokens
        if low is None and high is None and self.max_characters is None:
            raise ValueError("a length check needs max_tokens, min_tokens or max_characters")
        if low is not None and high is not None and low > high:
            raise ValueError(f"min_tokens {low} is greater than max_tokens {high}")
        return self

    def score(self, response: Response) -> tuple[float, str]:
        """The score and its reason."""
        within = (
            (self.min_tokens is None or response.tokens >= self.min_tokens)
            and (self.max_tokens is None or response.tokens <= self.max_tokens)
            and (self.max_characters is None or len(response.text) <= self.max_characters)
        )
        return float(within), f"{response.tokens} tokens, {len(response.text)} characters"


class ReasoningGym(Strict):
    """The score of the answer by its reasoning-gym task. Without ``partial``, a score below 1 counts as 0."""

    type: Literal["reasoning_gym"]
    task: LookupText = "${row.task}"
    entry: LookupText = "${row.entry}"
    extract: Pattern | None = None
    partial: bool = False
    timeout_s: TimeLimit = 60.0

    @model_validator(mode="after")
    def _installed(self) -> "ReasoningGym":
        if importlib.util.find_spec("reasoning_gym") is None:
            raise ValueError("the reasoning_gym check needs the reasoning-gym package: install grape-rl[tasks]")
        return self

    def score(self, response: Response) -> tuple[float, str]:
        """The score and its reason."""
        answer = extract_text(self.extract, response.text)
        if answer is None:
            return 0.0, f"nothing matches {self.extract!r}"
        score = float(_reasoning_gym_score(self.task)(answer=answer, entry=self.entry))
        if not 0 <= score <= 1 + 1e-9:
            raise ValueError(f"the task {self.task!r} returned the score {score}, which is not in [0, 1]")
        # Not ``>= 1``: partial credit summed in floating point can exceed 1 for a wrong answer. At some lengths
        # spell_backward gives 1.0000000000000002 to a right answer followed by more letters.
        return min(score, 1.0) if self.partial else float(score == 1), f"{answer!r}"


@functools.cache  # each call of get_score_answer_fn builds the whole dataset
def _reasoning_gym_score(task: str) -> Callable[..., float]:
    import reasoning_gym  # an optional dependency, and slow to import

    return reasoning_gym.get_score_answer_fn(task)


class Python(Strict):
    """A user's function ``f(response) -> float | bool | Verdict``, named ``"file.py:name"`` or ``"module:name"``.

    It may be ``async``; responses are graded one after the other.
    """

    type: Literal["python"]
    call: str
    timeout_s: TimeLimit = 60.0

    _function: Callable[[Response], Any] = PrivateAttr()
    _source: tuple[Path, Collection[str]] = PrivateAttr()

    @model_validator(mode="after")
    def _loaded(self, info: Any) -> "Python":  # a pydantic.ValidationInfo, which beartype cannot check
        self._source = (info.context["folder"], info.context["allow"])
        self._function = python_callable(self.call, *self._source)
        return self

    def __reduce__(self) -> Any:
        """Pickle the name and not the function, which cannot be pickled: the other process loads it again."""
        return _python, (self.model_dump(), *self._source)

    def score(self, response: Response) -> tuple[float, str] | Verdict:
        """The function's verdict, or its score with an empty reason."""
        result = self._function(response)
        if inspect.iscoroutine(result):
            result = run_coroutine(result)
        return result if isinstance(result, Verdict) else (returned_number(result), "")


def _python(fields: dict[str, Any], folder: Path, allow: Collection[str]) -> Python:
    return Python.model_validate(fields, context={"folder": folder, "allow": allow})


Check = Annotated[
    Exact | Numeric | Regex | Length | JsonSchema | MathVerify | ReasoningGym | UnitTests | Python,
    Field(discriminator="type"),
]


def check_verdict(item: str, check: Check, response: Response, worst: float = 0.0) -> Verdict:
    """The verdict of one check on one response; a missing verdict, with the error, if the grading fails.

    ``worst`` is the score of a ``policy_fault``, whatever score the check returned: 0, or 1 on a pitfall.
    """
    try:
        result = _filled(check, response.row).score(response)
        verdict = result if isinstance(result, Verdict) else Verdict(item, result[0], reasoning=result[1])
        if verdict.status == "policy_fault":
            verdict = replace(verdict, score=worst, confidence=1.0)
        if not verdict.missing and not 0 <= verdict.score <= 1:
            raise ValueError(f"score {verdict.score} is not in [0, 1]")
    except TimeoutError as error:
        return failed(item, "timeout", str(error), check.type)
    except (Exception, SystemExit) as error:
        return failed(item, "infrastructure", f"{type(error).__name__}: {error}", check.type)
    return replace(verdict, item=item, provenance=verdict.provenance or check.type)


def check_lookups(check: Check) -> tuple[str, ...]:
    """The look-ups in the fields of a check, as written."""
    return tuple(lookup for text in _texts(check).values() for lookup in lookups(text))


def returned_number(value: Any) -> float:
    """The number that a user's function returned: anything that ``float`` accepts except text.

    Raises:
        TypeError: the value is not a number.
    """
    try:
        if not isinstance(value, str | bytes | bytearray):  # float would parse these
            return float(value)
    except (TypeError, ValueError, RuntimeError):  # RuntimeError: a tensor of several numbers
        pass
    raise TypeError(f"returned {value!r:.80}, which is not a number")


def _texts(check: Check) -> dict[str, str]:
    values = {name: getattr(check, name) for name in type(check).model_fields if name not in ("type", "call")}
    return {name: value for name, value in values.items() if isinstance(value, str)}


def _filled(check: Check, row: Mapping[str, Any]) -> Check:
    """The check with its look-ups filled in from the row; in patterns the row's text is escaped, to match literally."""
    fields = {
        name: filled(text, row, re.escape if name in PATTERN_FIELDS else None)
        for name, text in _texts(check).items()
        if lookups(text)
    }
    return check.model_copy(update=fields)
