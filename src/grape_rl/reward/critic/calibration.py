"""Calibration files: the probability that a critic's label is right, as a function of its confidence.

The curves are fitted to labels by people.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor

from grape_rl.maths.bounds import UnitInterval
from grape_rl.maths.calibration import (
    Correct,
    cross_validated,
    expected_calibration_error,
    interpolated,
    isotonic,
    platt,
)
from grape_rl.schema import Strict, parsed, validated

MIN_LABELS = 30
"""The fewest labels for a curve. An item with fewer uses the curve of its critic as a whole."""

N_FOLDS = 5
"""Folds of the cross-validation that measures a curve: each fifth of the prompts by a curve fitted to the rest."""

FitMethod = Literal["isotonic", "platt"]


class ConfidenceSource(Strict):
    """The source of a confidence: a curve is valid only for the source that it was fitted to.

    ``criterion`` is the rubric's text with its look-ups not filled in. Without ``criterion`` and ``labels`` the source
    is the critic as a whole.
    """

    critic: str
    mode: Literal["verbalized", "logprob", "agreement"]
    k: Annotated[int, Field(ge=1)] = 1
    criterion: str | None = None
    labels: dict[str, float] | None = None

    @property
    def whole_critic(self) -> "ConfidenceSource":
        """The critic as a whole, in this mode."""
        return self.model_copy(update={"criterion": None, "labels": None})


class CalibrationCurve(Strict):
    """The probability that the critic's label is right, as a function of its confidence.

    Attributes:
        source: the source of the confidence.
        items: the items that the curve was fitted to, for human readers.
        method: ``isotonic``, piecewise linear through ``knots`` (see ``interpolated``), or ``platt``,
            ``σ(a confidence + b)``.
        n: the number of labels that the curve was fitted to.
        ece_before: expected calibration error of the uncalibrated confidence.
        ece_after: expected calibration error of out-of-fold calibrated confidence; None if there was only one prompt.
    """

    source: ConfidenceSource = Field(alias="of")
    items: tuple[str, ...]
    method: FitMethod
    knots: tuple[tuple[UnitInterval, UnitInterval], ...] | None = None
    a: float | None = None
    b: float | None = None
    n: Annotated[int, Field(ge=1)]
    ece_before: float
    ece_after: float | None = None

    @model_validator(mode="after")
    def _parameters(self) -> "CalibrationCurve":
        if self.method == "platt" and (self.a is None or self.b is None or self.knots is not None):
            raise ValueError("method platt needs a and b, and no knots")
        if self.method == "isotonic" and (not self.knots or self.a is not None or self.b is not None):
            raise ValueError("method isotonic needs knots, and neither a nor b")
        pairs = list(zip(self.knots or (), (self.knots or ())[1:], strict=False))
        if any(x >= next_x or y > next_y for (x, y), (next_x, next_y) in pairs):
            raise ValueError("the knots must have increasing confidences and non-decreasing probabilities")
        return self

    def __call__(self, confidence: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The probability that a label of this confidence is right."""
        if self.knots:
            x, y = torch.tensor(self.knots, dtype=torch.float64).unbind(1)
            return interpolated(confidence, x, y)
        assert self.a is not None and self.b is not None
        return (self.a * confidence.double() + self.b).sigmoid()


class Calibration(Strict):
    """A calibration file: curves of items and of critics as a whole."""

    version: Annotated[Literal["grape-calibration/1"], Field(alias="schema")] = "grape-calibration/1"
    curves: tuple[CalibrationCurve, ...]

    def curve(self, source: ConfidenceSource) -> CalibrationCurve:
        """The item's own curve, or else the curve of its critic as a whole.

        Raises:
            ValueError: the file has neither.
        """
        for candidate in (source, source.whole_critic):
            for curve in self.curves:
                if curve.source == candidate:
                    return curve
        available = ", ".join(dict.fromkeys(_description(curve.source) for curve in self.curves)) or "nothing"
        raise ValueError(
            f"the calibration has nothing for {_description(source)} (it has {available}): make it again with "
            "grape calibrate"
        )


def load_calibration(path: Path) -> Calibration:
    """Load a calibration file.

    Raises:
        ValueError: there is no such file, or it is not a calibration file; in one line.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; make it with grape calibrate")
    return validated(Calibration, parsed(path), str(path), {})


def calibration_text(calibration: Calibration) -> str:
    """The contents of a calibration file."""
    return json.dumps(calibration.model_dump(by_alias=True, exclude_none=True), indent=2, ensure_ascii=False) + "\n"


def fit_curve(
    source: ConfidenceSource,
    items: tuple[str, ...],
    method: FitMethod,
    confidence: Float[Tensor, " n"],
    correct: Correct,
    group: Int[Tensor, " n"],
) -> CalibrationCurve:
    """Fit a curve to verdicts and their correctness; ``group`` numbers the prompts of the responses."""

    def fit(confidence: Float[Tensor, " m"], correct: Correct) -> CalibrationCurve:
        parameters: dict[str, Any] = {}
        if method == "isotonic":
            x, y = isotonic(confidence, correct)
            parameters["knots"] = tuple(zip(x.tolist(), y.tolist(), strict=True))
        else:
            parameters["a"], parameters["b"] = platt(confidence, correct)
        before = expected_calibration_error(confidence, correct)
        return CalibrationCurve(
            of=source, items=items, method=method, n=len(confidence), ece_before=before, **parameters
        )

    out_of_fold = cross_validated(fit, confidence, correct, prompt_folds(group))
    after = None if bool(out_of_fold.isnan().any()) else expected_calibration_error(out_of_fold, correct)
    return fit(confidence, correct).model_copy(update={"ece_after": after})


def prompt_folds(group: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """The fold of each response: random with a fixed seed, and equal for all responses to a prompt."""
    _, number = group.unique(return_inverse=True)
    count = int(number.max()) + 1
    return (torch.randperm(count, generator=torch.Generator().manual_seed(0)) % N_FOLDS)[number]


def without_calibration(data: Any) -> Any:
    """The data of a rubric file with the critic's raw confidence everywhere, which a calibration is fitted to.

    >>> without_calibration([{"confidence": {"mode": "logprob", "transform": "calibrated", "calibration": "c.json"}}])
    [{'confidence': {'mode': 'logprob'}}]
    """
    if isinstance(data, list):
        return [without_calibration(entry) for entry in data]
    if not isinstance(data, Mapping):
        return data
    result = {key: without_calibration(value) for key, value in data.items()}
    if isinstance(confidence := result.get("confidence"), Mapping):
        raw = {key: value for key, value in confidence.items() if key not in ("transform", "calibration")}
        result["confidence"] = raw
    return result


def _description(source: ConfidenceSource) -> str:
    samples = f" of {source.k} calls" if source.mode == "agreement" else ""
    scope = "as a whole" if source.criterion is None else f"on {source.criterion!r:.60}"
    return f"critic {source.critic!r} in mode {source.mode}{samples}, {scope}"
