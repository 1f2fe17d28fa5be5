"""A check of mathematical answers by their meaning, with math-verify."""

import importlib.util
from typing import Any, Literal

from pydantic import model_validator

from grape_rl.reward.check.extract import extract_text, gold_text
from grape_rl.reward.check.field_types import GoldAnswer, Pattern, TimeLimit
from grape_rl.schema import Strict
from grape_rl.types import Response


class MathVerify(Strict):
    """1 if the answer is mathematically equal to the gold answer, else 0: math-verify parses LaTeX and expressions."""

    type: Literal["math_verify"]
    gold: GoldAnswer
    extract: Pattern | None = None
    gold_extract: Pattern | None = None
    timeout_s: TimeLimit = 10.0

    @model_validator(mode="after")
    def _installed(self) -> "MathVerify":
        if importlib.util.find_spec("math_verify") is None:
            raise ValueError("the math_verify check needs the math-verify package: install grape-rl[math]")
        return self

    def score(self, response: Response) -> tuple[float, str]:
        """The score and its reason."""
        import math_verify

        gold_answer = gold_text(self.gold, self.gold_extract)
        gold = math_verify.parse(_formula(gold_answer), **_PARSING)
        if not gold:
            raise ValueError(f"the gold answer {gold_answer!r} is not mathematics")
        answer = extract_text(self.extract, response.text)
        if answer is None:
            return 0.0, f"nothing matches {self.extract!r}"
        parsed = math_verify.parse(_formula(answer) if self.extract else answer, **_PARSING)
        if not parsed:
            return 0.0, f"no mathematics in {answer[-80:]!r}"
        equal = math_verify.verify(gold, parsed, timeout_seconds=None)
        return float(equal), f"{str(parsed[0])[:80]} against {str(gold[0])[:80]}"


_PARSING: dict[str, Any] = {"parsing_timeout": None, "fallback_mode": "no_fallback"}
"""math-verify's own time limits are alarms, which work in the main thread only; here the whole process has a limit.
Text that is not mathematics is not compared as text: the ``exact`` check does that."""


def _formula(text: str) -> str:
    """The expression as a formula in dollar signs, without which math-verify ignores bare LaTeX."""
    return text if any(mark in text for mark in ("$", "\\boxed", "\\(", "\\[")) else f"${text}$"
