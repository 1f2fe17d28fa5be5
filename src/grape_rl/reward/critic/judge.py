"""The ``judge`` of a rubric item: its criterion, its labels, and the source of the critic's confidence."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PrivateAttr, model_validator

from grape_rl.reward.check.field_types import LookupText
from grape_rl.reward.check.lookup import filled, lookups
from grape_rl.reward.critic.calibration import Calibration, CalibrationCurve, ConfidenceSource, load_calibration
from grape_rl.schema import Strict, require_allowed

_TEXTS = ("criterion", "reference")
MAX_CALLS = 100
"""The most calls for one verdict. A rubric may come from a stranger, and each call is paid for."""
Show = Literal["prompt", "response", "reference"]


def _labels(value: Any) -> Any:
    if isinstance(value, dict):
        for name in value:
            if not isinstance(name, str):
                raise ValueError(f"the label {name!r} is not text; put it in quotes (yes and no are booleans in YAML)")
    return value


def _calibration(value: Any, info: Any) -> Any:  # a pydantic.ValidationInfo, which beartype cannot check
    if not isinstance(value, str):
        return value
    require_allowed(value, info.context)
    return load_calibration(Path((info.context or {}).get("folder", Path())) / value)


class Confidence(Strict):
    """The source of the critic's confidence (``mode``), and its transform.

    Modes:

    - ``verbalized``: the critic states its confidence, from 0 to 20.
    - ``logprob``: the critic answers with a label only; its probability among the labels.
    - ``agreement``: the agreement of ``k`` calls.

    Transforms:

    - ``raw``: none, as in the paper.
    - ``chance_corrected``: the confidence of a random guess is subtracted.
    - ``calibrated``: the probability that the label is right, by the curves of the file ``calibration`` in the rubric's
      folder (see ``grape calibrate``).
    - ``calibrated_chance_corrected``: calibrated first, then chance corrected.
    """

    mode: Literal["verbalized", "logprob", "agreement"] = "verbalized"
    k: Annotated[int, Field(ge=1, le=MAX_CALLS)] = 1
    transform: Literal["raw", "chance_corrected", "calibrated", "calibrated_chance_corrected"] = "raw"
    calibration: Annotated[Calibration, BeforeValidator(_calibration)] | None = None

    @model_validator(mode="after")
    def _calibration_and_transform(self) -> "Confidence":
        if self.transform.startswith("calibrated") != (self.calibration is not None):
            raise ValueError("transform calibrated and a calibration file go together: set both, or neither")
        return self

    @model_validator(mode="after")
    def _k_and_mode(self) -> "Confidence":
        if self.mode == "agreement" and self.k < 2:
            raise ValueError("agreement needs k of at least 2: a single call agrees with itself")
        if self.mode != "agreement" and self.k != 1:
            raise ValueError(f"k is the number of calls in mode agreement; mode {self.mode} makes one call")
        return self


class Judge(Strict):
    """A criterion that a critic judges by choosing one of several ``labels``, each with a score in [0, 1].

    ``anchors`` describes labels: {"1": "wrong throughout", "5": "right in every detail"}. With ``calls: batched`` the
    items of a response with equal ``show``, reference and confidence mode share one call: cheaper, but verdicts in one
    answer influence one another. A response longer than ``max_characters`` is the policy's own fault. With
    ``canary: false`` the item is not tested on responses without content, for a criterion that they meet ("is brief").
    """

    criterion: LookupText
    labels: Annotated[dict[str, Annotated[float, Field(ge=0, le=1)]], BeforeValidator(_labels)] = Field(
        default_factory=lambda: {"no": 0.0, "yes": 1.0}
    )
    anchors: Annotated[dict[str, LookupText], BeforeValidator(_labels)] = Field(default_factory=dict[str, str])
    show: tuple[Show, ...] = ("prompt", "response")
    reference: LookupText | None = None
    confidence: Confidence = Confidence()
    critic: str = "default"
    calls: Literal["per_item", "batched"] = "per_item"
    max_characters: Annotated[int, Field(ge=1)] | None = None
    canary: Annotated[bool, Field(strict=True)] = True
    _curve: CalibrationCurve | None = PrivateAttr(None)

    @property
    def confidence_source(self) -> ConfidenceSource:
        """The item's identity in a calibration file."""
        confidence = self.confidence
        return ConfidenceSource(
            critic=self.critic, mode=confidence.mode, k=confidence.k, criterion=self.criterion, labels=self.labels
        )

    @property
    def curve(self) -> CalibrationCurve | None:
        """The calibration curve of its confidence, selected when the rubric loads, before look-ups are filled in."""
        return self._curve

    @model_validator(mode="after")
    def _calibrated(self) -> "Judge":
        if calibration := self.confidence.calibration:
            self._curve = calibration.curve(self.confidence_source)
        return self

    @property
    def lookups(self) -> tuple[str, ...]:
        """The look-ups in its criterion and reference, as written."""
        return tuple(lookup for name in _TEXTS if (text := getattr(self, name)) for lookup in lookups(text))

    def for_row(self, row: Mapping[str, Any]) -> "Judge":
        """This judge with its look-ups filled in from a row."""
        if not self.lookups:
            return self
        return self.model_copy(update={n: filled(text, row) for n in _TEXTS if (text := getattr(self, n))})

    @model_validator(mode="after")
    def _sensible(self) -> "Judge":
        if self.calls == "batched" and self.confidence.mode == "logprob":
            raise ValueError("calls: batched: in confidence mode logprob an answer is one label, for one item")
        if not self.criterion.strip():
            raise ValueError("the criterion is empty")
        if len(self.labels) < 2 or len(set(self.labels.values())) < 2:
            raise ValueError("labels needs at least two labels, with different scores")
        if stray := [name for name in self.anchors if name not in self.labels]:
            raise ValueError(f"anchors: {stray[0]!r} is not one of the labels {', '.join(self.labels)}")
        if ("reference" in self.show) != (self.reference is not None):
            raise ValueError("a reference needs both 'show: [.., reference]' and 'reference': set both, or neither")
        return self
