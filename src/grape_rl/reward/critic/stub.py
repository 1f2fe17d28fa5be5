"""A critic without a model: to try out a rubric, for tests and for benchmarks.

Its opinion of a response is derived from a seeded hash of the question, or returned by a function. The same question
has the same answer on every machine and in a resumed run. It fails at configured rates, in every way in which a critic
can fail.
"""

import asyncio
import hashlib
import json
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import ConfigDict, Field, PrivateAttr, model_validator

from grape_rl.reward.check.callables import python_callable
from grape_rl.reward.critic.prompt import TOP_CONFIDENCE
from grape_rl.reward.critic.reply import Reply
from grape_rl.schema import Strict

MAX_TRIES = 8
"""Tries of a call that is refused by the rate limit."""

Rate = Annotated[float, Field(ge=0, le=1)]


class FaultRates(Strict):
    """Fractions of the calls that fail, by kind. A hash selects the calls: the same ones in a repeated run."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    timeout: Rate = 0.0
    unparseable: Rate = 0.0
    """The answer is malformed JSON."""
    truncated: Rate = 0.0
    """The answer is truncated at the token limit."""
    refused: Rate = 0.0
    infrastructure: Rate = 0.0
    dropped: Rate = 0.0
    """The answer is JSON without the item's verdict."""
    rate_limited: Rate = 0.0
    """The fraction of tries, not of calls, that the server rejects (429); the call is tried again."""

    @model_validator(mode="after")
    def _at_most_one(self) -> "FaultRates":
        if (total := sum(rate for _, rate in self._kinds())) > 1 + 1e-9:
            raise ValueError(f"a call fails in one way only, and these rates add up to {total:g}: at most 1")
        return self

    def _kinds(self) -> list[tuple[str, float]]:
        return [(name, rate) for name, rate in self if name != "rate_limited"]

    def kind(self, chance: float) -> str | None:
        """The kind of failure of a call with the random number ``chance`` in [0, 1); None if the call succeeds.

        >>> [FaultRates(timeout=0.1, refused=0.2).kind(chance) for chance in (0.05, 0.25, 0.35)]
        ['timeout', 'refused', None]
        """
        for name, rate in self._kinds():
            if chance < rate:
                return name
            chance -= rate
        return None


class StubSettings(Strict):
    """Settings of a critic without a model: its opinions, its speed and its failure rates."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    seed: int = 0
    """The seed of its opinions."""
    call: str | None = None
    """A function for its opinions instead of a hash: "file.py:name" (in the rubric's folder) or "package.module:name".
    f(response, criterion, labels) returns a label, or a label and a confidence in [0, 1], or None to refuse."""
    delay_s: Annotated[float, Field(ge=0)] = 0.0
    """Duration of each try."""
    concurrency: Annotated[int, Field(ge=1)] = 32
    faults: FaultRates = FaultRates()
    fault_seed: int = 0
    """The seed that selects the calls that fail."""

    _function: Callable[..., Any] | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _loaded(self, info: Any) -> "StubSettings":  # a pydantic.ValidationInfo, which beartype cannot check
        if self.call and info.context and "allow" in info.context:
            source: tuple[Path, Collection[str]] = (info.context["folder"], info.context["allow"])
            self._function = python_callable(self.call, *source)
        return self

    @property
    def function(self) -> Callable[..., Any] | None:
        """The function named by ``call``; None until it is loaded with a rubric's folder and ``allow``."""
        return self._function


class _Opinion(NamedTuple):
    """An opinion of one response on one item: a label, and the probability that the label is right."""

    label: str
    confidence: float


class StubCritic:
    """A critic that answers by its ``StubSettings``, in the requested form. It belongs to one event loop.

    It has one opinion of a response on a criterion, in every confidence mode. A verbalized confidence and log-probs of
    labels express the opinion's confidence; each of several samples gives the opinion's label with that probability.
    """

    def __init__(self, settings: StubSettings) -> None:
        if settings.call and not settings.function:
            raise ValueError(f"the stub critic's call {settings.call!r} was not loaded: it needs the rubric's folder")
        self.settings, self.concurrency = settings, settings.concurrency
        self.deadline_s: float | None = None
        self.name = json.dumps({"stub": {"seed": settings.seed, "call": settings.call}})

    async def close(self) -> None:
        """Do nothing: the stub has no resources to release."""

    async def reply(
        self,
        messages: Sequence[Mapping[str, str]],
        schema: Mapping[str, Any],
        labels: Sequence[str],
        seed: int,
        items: int = 1,
    ) -> Reply:
        """The answer or the failure that a hash of the arguments selects. The mark of the fence is not hashed."""
        settings = self.settings
        conversation = _unmarked(messages)
        call = json.dumps([conversation, schema, list(labels), seed])
        # The rate limit: one random number for each try.
        tries = 0
        rejected = True
        while rejected and tries < MAX_TRIES:
            tries += 1
            await asyncio.sleep(settings.delay_s)
            rejected = _uniform(settings.fault_seed, "429", call, tries) < settings.faults.rate_limited
        if rejected:
            return Reply(f"RateLimitError: 429 on each of {tries} tries", status="infrastructure", tries=tries)
        # Failures without an answer.
        fault = settings.faults.kind(_uniform(settings.fault_seed, "fault", call))
        if fault in ("timeout", "refused", "infrastructure"):
            return Reply(f"the stub critic's configured {fault}", status=fault, tries=tries)
        # The opinion on each item, by its name in the call; a single item has the name "".
        forms = {"": schema} if "verdict" in schema["properties"] else schema["properties"]
        try:
            all_opinions = {name: self._opinion(conversation, name, form) for name, form in forms.items()}
        except Exception as error:
            return Reply(f"{settings.call}: {type(error).__name__}: {error}", status="infrastructure", tries=tries)
        if None in all_opinions.values():
            return Reply(f"{settings.call} returned no label", status="refused", tries=tries)
        opinions = {name: opinion for name, opinion in all_opinions.items() if opinion}
        # The answer, and the failures within it.
        if labels:
            logp = {} if fault else _logp(opinions[""], labels)
            return Reply("" if fault else opinions[""].label, label_logp=logp, tries=tries)
        answers = {name: self._answer(opinions[name], form, call) for name, form in forms.items()}
        if fault == "dropped":
            answers.get("", answers).pop("verdict" if "" in answers else [*answers][-1])
        text = json.dumps(answers.get("", answers), ensure_ascii=False)
        if fault in ("truncated", "unparseable"):
            text = text[: len(text) // 2]
        return Reply(text, "length" if fault == "truncated" else "stop", tries=tries)

    def _opinion(
        self, conversation: Sequence[Mapping[str, str]], name: str, form: Mapping[str, Any]
    ) -> _Opinion | None:
        settings, labels = self.settings, form["properties"]["verdict"]["enum"]
        shown, criterion = _shown_and_criterion(conversation[-1]["content"], name)
        if settings.function is None:
            question = json.dumps([shown, criterion, labels])
            confidence = 1 / len(labels) + (1 - 1 / len(labels)) * _uniform(settings.seed, "confidence", question)
            return _Opinion(labels[int(len(labels) * _uniform(settings.seed, "label", question))], confidence)
        result = settings.function(_response(shown), criterion, tuple(labels))
        if result is None:
            return None
        label, confidence = result if isinstance(result, tuple) else (result, 1.0)
        if label not in labels:
            raise ValueError(f"returned {label!r}, which is not one of the labels {', '.join(labels)}")
        if not 0 <= confidence <= 1:
            raise ValueError(f"returned the confidence {confidence!r}, which is not in [0, 1]")
        return _Opinion(label, float(confidence))

    def _answer(self, opinion: _Opinion, form: Mapping[str, Any], call: str) -> dict[str, Any]:
        """The fields of one item's answer. A form without a confidence means one of several samples."""
        labels, label = form["properties"]["verdict"]["enum"], opinion.label
        answer: dict[str, Any] = {"reasoning": "No model judged this: the stub critic did."}
        if "confidence" in form["properties"]:
            return answer | {"verdict": label, "confidence": round(opinion.confidence * TOP_CONFIDENCE)}
        others = [name for name in labels if name != label]
        if _uniform(self.settings.seed, "sample", call) >= opinion.confidence:
            label = others[int(len(others) * _uniform(self.settings.seed, "other", call))]
        return answer | {"verdict": label}


def _uniform(*key: object) -> float:
    """A number in [0, 1) that is determined by the key alone."""
    digest = hashlib.blake2b(json.dumps(key).encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def _logp(opinion: _Opinion, labels: Sequence[str]) -> dict[str, float]:
    """Log-probabilities that make the opinion's label the most probable one.

    If the opinion's confidence is below a random guess's, the label is more probable by 1e-9 only.
    """
    confidence = min(max(opinion.confidence, 1 / len(labels) + 1e-9), 1 - 1e-9)
    rest = math.log((1 - confidence) / (len(labels) - 1))
    return {name: math.log(confidence) if name == opinion.label else rest for name in labels}


_MARK = re.compile(r"\[[0-9a-f]{16}\]")
_ENDS = re.compile(r"^\[mark\] (?:prompt|reference|response) ends$", re.MULTILINE)


def _unmarked(messages: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """The messages with the mark of the fence, which the rules name, replaced by [mark]."""
    match = _MARK.search(messages[0]["content"])
    mark = match[0] if match else "[mark]"
    return [{**message, "content": message["content"].replace(mark, "[mark]")} for message in messages]


def _shown_and_criterion(text: str, name: str) -> tuple[str, str]:
    """The fenced texts, and the criterion of this name in the call, with the descriptions of its labels."""
    ends = [fence.end() for fence in _ENDS.finditer(text)]
    shown, rest = text[: ends[-1]] if ends else "", text[ends[-1] :] if ends else text
    if name:
        return shown, rest.partition(f"Criterion {name}: ")[2].partition("\nIts labels: ")[0]
    return shown, rest.partition("Criterion: ")[2].rpartition("\n\n")[0]


def _response(shown: str) -> str:
    return shown.partition("[mark] response begins\n")[2].rpartition("\n[mark] response ends")[0]
