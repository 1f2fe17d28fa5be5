"""Calibration files: by how sure a critic is of an item, how likely its label is right, as people's labels show."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor

from grape_rl.maths.calibration import (
    Correct,
    cross_validated,
    expected_calibration_error,
    interpolated,
    isotonic,
    platt,
)
from grape_rl.schema import Strict, parsed, validated

FEWEST = 30
"""Labels that a curve is fitted to, at least: with fewer the item takes that of its critic as a whole."""

FOLDS = 5
"""What is said of a curve is measured on a fifth of the prompts at a time, by a curve that is fitted to the others."""

FitMethod = Literal["isotonic", "platt"]
Unit = Annotated[float, Field(ge=0, le=1)]


class Judged(Strict):
    """Whose confidence it is: what has to be the same for a curve to hold.

    ``criterion`` is as the rubric has it, look-ups unfilled. Without criterion and labels it is the critic as a whole.
    """

    critic: str
    mode: Literal["verbalized", "logprob", "agreement"]
    k: Annotated[int, Field(ge=1)] = 1
    criterion: str | None = None
    labels: dict[str, float] | None = None

    @property
    def whole(self) -> "Judged":
        """The critic as a whole."""
        return self.model_copy(update={"criterion": None, "labels": None})


class Curve(Strict):
    """The probability that the critic's label is right, by its confidence, and how it was found.

    ``isotonic``: through ``knots`` (see ``interpolated``). ``platt``: ``σ(a confidence + b)``. ``items`` names, for
    people to read, what it was fitted to: ``n`` labels. ``ece_after`` is of curves that had not seen what they
    calibrate; None where there was one prompt only.
    """

    of: Judged
    items: tuple[str, ...]
    method: FitMethod
    knots: tuple[tuple[Unit, Unit], ...] | None = None
    a: float | None = None
    b: float | None = None
    n: Annotated[int, Field(ge=1)]
    ece_before: float
    ece_after: float | None = None

    @model_validator(mode="after")
    def _whole(self) -> "Curve":
        if self.method == "platt" and (self.a is None or self.b is None or self.knots is not None):
            raise ValueError("method platt needs a and b, and no knots")
        if self.method == "isotonic" and (not self.knots or self.a is not None or self.b is not None):
            raise ValueError("method isotonic needs knots, and neither a nor b")
        pairs = list(zip(self.knots or (), (self.knots or ())[1:], strict=False))
        if any(x >= next_x or y > next_y for (x, y), (next_x, next_y) in pairs):
            raise ValueError("the knots have to rise: each confidence above the last, no probability below it")
        return self

    def __call__(self, confidence: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The probabilities that labels of these confidences are right."""
        if self.knots:
            x, y = torch.tensor(self.knots, dtype=torch.float64).unbind(1)
            return interpolated(confidence, x, y)
        assert self.a is not None and self.b is not None
        return (self.a * confidence.double() + self.b).sigmoid()


class Calibration(Strict):
    """A calibration file: curves, for items and for critics as a whole."""

    version: Annotated[Literal["grape-calibration/1"], Field(alias="schema")] = "grape-calibration/1"
    curves: tuple[Curve, ...]

    def curve(self, of: Judged) -> Curve:
        """The item's own curve, or else that of its critic as a whole.

        Raises:
            ValueError: there is neither.
        """
        for wanted in (of, of.whole):
            for each in self.curves:
                if each.of == wanted:
                    return each
        there = ", ".join(dict.fromkeys(_said(each.of) for each in self.curves)) or "nothing"
        raise ValueError(
            f"the calibration has nothing for {_said(of)} (it has {there}): make it again with grape calibrate"
        )


def load_calibration(path: Path) -> Calibration:
    """The calibration of a file.

    Raises:
        ValueError: there is no such file, or it does not say what a calibration says; in one line.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; make it with grape calibrate")
    return validated(Calibration, parsed(path), str(path), {})


def written(calibration: Calibration) -> str:
    """The text of a calibration file."""
    return json.dumps(calibration.model_dump(by_alias=True, exclude_none=True), indent=2, ensure_ascii=False) + "\n"


def fitted(
    of: Judged,
    items: tuple[str, ...],
    method: FitMethod,
    confidence: Float[Tensor, " n"],
    correct: Correct,
    group: Int[Tensor, " n"],
) -> Curve:
    """The curve of some verdicts, each right or not, on the responses to the prompts that ``group`` numbers."""

    def fit(confidence: Float[Tensor, " m"], correct: Correct) -> Curve:
        shape: dict[str, Any] = {}
        if method == "isotonic":
            x, y = isotonic(confidence, correct)
            shape["knots"] = tuple(zip(x.tolist(), y.tolist(), strict=True))
        else:
            shape["a"], shape["b"] = platt(confidence, correct)
        before = expected_calibration_error(confidence, correct)
        return Curve(of=of, items=items, method=method, n=len(confidence), ece_before=before, **shape)

    unseen = cross_validated(fit, confidence, correct, folds(group))
    after = None if bool(unseen.isnan().any()) else expected_calibration_error(unseen, correct)
    return fit(confidence, correct).model_copy(update={"ece_after": after})


def folds(group: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """A fold for each response, the same for all that answer one prompt; which, is drawn once and for all."""
    _, number = group.unique(return_inverse=True)
    count = int(number.max()) + 1
    return (torch.randperm(count, generator=torch.Generator().manual_seed(0)) % FOLDS)[number]


def raw(data: Any) -> Any:
    """A rubric file's data with every confidence as the critic told it: what a calibration is fitted to.

    >>> raw([{"confidence": {"mode": "logprob", "transform": "calibrated", "calibration": "c.json"}}])
    [{'confidence': {'mode': 'logprob'}}]
    """
    if isinstance(data, list):
        return [raw(each) for each in data]
    if not isinstance(data, Mapping):
        return data
    kept = {key: raw(value) for key, value in data.items()}
    if isinstance(told := kept.get("confidence"), Mapping):
        kept["confidence"] = {key: value for key, value in told.items() if key not in ("transform", "calibration")}
    return kept


def _said(of: Judged) -> str:
    samples = f" of {of.k} calls" if of.mode == "agreement" else ""
    what = "as a whole" if of.criterion is None else f"on {of.criterion!r:.60}"
    return f"critic {of.critic!r} in mode {of.mode}{samples}, {what}"
