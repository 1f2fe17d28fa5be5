"""The ``judge`` of a rubric's item: what a critic is asked, which answers it may give, and how sure of them it is."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PrivateAttr, model_validator

from grape_rl.reward.check.fields import Text
from grape_rl.reward.check.lookup import filled, lookups
from grape_rl.reward.critic.calibration import Calibration, Curve, Judged, load_calibration
from grape_rl.schema import Strict, require_allowed

_TEXTS = ("criterion", "reference")
MOST_CALLS = 100
"""Of one verdict: a rubric may be a stranger's, and each is paid for."""
Show = Literal["prompt", "response", "reference"]


def _labels(value: Any) -> Any:
    if isinstance(value, dict):
        for name in value:
            if not isinstance(name, str):
                raise ValueError(f"the label {name!r} is no text; put it in quotes (YAML reads no and yes as booleans)")
    return value


def _calibration(value: Any, info: Any) -> Any:  # a pydantic.ValidationInfo, which beartype cannot check
    if not isinstance(value, str):
        return value
    require_allowed(value, info.context)
    return load_calibration(Path((info.context or {}).get("folder", Path())) / value)


class Confidence(Strict):
    """How the critic's confidence is found, and what becomes of it.

    ``verbalized``: it names it, from 0 to 20. ``logprob``: the probability of its label among the labels, when it
    answers by a label alone. ``agreement``: ``k`` calls, and how many of them agree. ``raw`` takes it as it is, as the
    paper does; ``chance_corrected`` takes off what a guess would have; ``calibrated`` is the probability that the label
    is right, by the curves of the file ``calibration`` beside the rubric (see ``grape calibrate``);
    ``calibrated_chance_corrected`` is that, with a guess's taken off.
    """

    mode: Literal["verbalized", "logprob", "agreement"] = "verbalized"
    k: Annotated[int, Field(ge=1, le=MOST_CALLS)] = 1
    transform: Literal["raw", "chance_corrected", "calibrated", "calibrated_chance_corrected"] = "raw"
    calibration: Annotated[Calibration, BeforeValidator(_calibration)] | None = None

    @model_validator(mode="after")
    def _told(self) -> "Confidence":
        if self.transform.startswith("calibrated") != (self.calibration is not None):
            raise ValueError("transform calibrated and a file as calibration go together: name both, or neither")
        return self

    @model_validator(mode="after")
    def _several(self) -> "Confidence":
        if self.mode == "agreement" and self.k < 2:
            raise ValueError("agreement needs k of at least 2: a single call agrees with itself")
        if self.mode != "agreement" and self.k != 1:
            raise ValueError(f"k is the number of calls of mode agreement; mode {self.mode} makes one")
        return self


class Judge(Strict):
    """A criterion that a critic judges by one of several ``labels``, each with its score in [0, 1].

    ``anchors`` says of labels what they stand for: {"1": "wrong throughout", "5": "right in every detail"}. With
    ``calls: batched`` the items of a response that show and ask the same are asked in one call: cheaper, but verdicts
    in one answer pull at each other. A response of more than ``max_characters`` is the policy's own fault. With
    ``canary: false`` an item is not tried out on responses that say nothing: one that they rightly meet ("is brief").
    """

    criterion: Text
    labels: Annotated[dict[str, Annotated[float, Field(ge=0, le=1)]], BeforeValidator(_labels)] = Field(
        default_factory=lambda: {"no": 0.0, "yes": 1.0}
    )
    anchors: Annotated[dict[str, Text], BeforeValidator(_labels)] = Field(default_factory=dict[str, str])
    show: tuple[Show, ...] = ("prompt", "response")
    reference: Text | None = None
    confidence: Confidence = Confidence()
    critic: str = "default"
    calls: Literal["per_item", "batched"] = "per_item"
    max_characters: Annotated[int, Field(ge=1)] | None = None
    canary: Annotated[bool, Field(strict=True)] = True
    _curve: Curve | None = PrivateAttr(None)

    @property
    def judged(self) -> Judged:
        """What a calibration knows the item by."""
        told = {"critic": self.critic, "mode": self.confidence.mode, "k": self.confidence.k}
        return Judged(**told, criterion=self.criterion, labels=self.labels)

    @property
    def curve(self) -> Curve | None:
        """What calibrates its confidence: found as the rubric loads, before look-ups are filled in."""
        return self._curve

    @model_validator(mode="after")
    def _calibrated(self) -> "Judge":
        if found := self.confidence.calibration:
            self._curve = found.curve(self.judged)
        return self

    @property
    def lookups(self) -> tuple[str, ...]:
        """The look-ups in its texts, as written."""
        return tuple(found for name in _TEXTS if (text := getattr(self, name)) for found in lookups(text))

    def of(self, row: Mapping[str, Any]) -> "Judge":
        """The same with its look-ups filled in from a row."""
        if not self.lookups:
            return self
        return self.model_copy(update={n: filled(text, row) for n in _TEXTS if (text := getattr(self, n))})

    @model_validator(mode="after")
    def _sensible(self) -> "Judge":
        if self.calls == "batched" and self.confidence.mode == "logprob":
            raise ValueError("calls: batched: with confidence mode logprob an answer is one label, for one item")
        if not self.criterion.strip():
            raise ValueError("the criterion is empty")
        if len(self.labels) < 2 or len(set(self.labels.values())) < 2:
            raise ValueError("labels needs at least two labels, with different scores")
        if stray := [name for name in self.anchors if name not in self.labels]:
            raise ValueError(f"anchors: {stray[0]!r} is none of the labels {', '.join(self.labels)}")
        if ("reference" in self.show) != (self.reference is not None):
            raise ValueError(
                "a reference is shown where there is one: name both 'show: [.., reference]' and 'reference'"
            )
        return self
