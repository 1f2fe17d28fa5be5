"""A critic without a model: for trying out a rubric, for tests and for benchmarks.

Its opinion of a response is drawn by a seeded hash of what it is asked, or is a function's: the same question has the
same answer on every machine, and in a run that was resumed. It fails as often as it is told, in every way in which a
critic can.
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
from grape_rl.reward.critic.prompt import CERTAINTY
from grape_rl.reward.critic.reply import Reply
from grape_rl.schema import Strict

TRIES = 8
"""How often a call is tried that the rate limit turns away."""

Rate = Annotated[float, Field(ge=0, le=1)]


class Faults(Strict):
    """Which share of the calls fails, by kind. Which of them, a hash says: the same ones when all is run again."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    timeout: Rate = 0.0
    unparseable: Rate = 0.0
    """The answer is malformed JSON."""
    truncated: Rate = 0.0
    """The answer was cut off at the token limit."""
    refused: Rate = 0.0
    infrastructure: Rate = 0.0
    dropped: Rate = 0.0
    """The answer is JSON, and the item's verdict is not in it."""
    rate_limited: Rate = 0.0
    """Of the tries, not of the calls: the server turns one away (429), and it is tried again."""

    @model_validator(mode="after")
    def _one_each(self) -> "Faults":
        if (total := sum(rate for _, rate in self._kinds())) > 1 + 1e-9:
            raise ValueError(f"a call fails in one way, and these rates come to {total:g}")
        return self

    def _kinds(self) -> list[tuple[str, float]]:
        return [(name, rate) for name, rate in self if name != "rate_limited"]

    def kind(self, chance: float) -> str | None:
        """How the call fails that drew this number in [0, 1); None for one that does not.

        >>> [Faults(timeout=0.1, refused=0.2).kind(chance) for chance in (0.05, 0.25, 0.35)]
        ['timeout', 'refused', None]
        """
        for name, rate in self._kinds():
            if chance < rate:
                return name
            chance -= rate
        return None


class Stub(Strict):
    """How a critic without a model answers, how fast, and how often it fails."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    seed: int = 0
    """Another seed has other opinions."""
    call: str | None = None
    """Its opinion, "file.py:name" (beside the rubric) or "package.module:name" instead of a hash's:
    f(response, criterion, labels) gives a label, or a label with a confidence in [0, 1], or None to refuse."""
    delay_s: Annotated[float, Field(ge=0)] = 0.0
    """For each try."""
    concurrency: Annotated[int, Field(ge=1)] = 32
    faults: Faults = Faults()
    fault_seed: int = 0
    """With another one, other calls fail."""

    _function: Callable[..., Any] | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _loaded(self, info: Any) -> "Stub":  # a pydantic.ValidationInfo, which beartype cannot check
        if self.call and info.context and "allow" in info.context:
            found: tuple[Path, Collection[str]] = (info.context["folder"], info.context["allow"])
            self._function = python_callable(self.call, *found)
        return self

    @property
    def function(self) -> Callable[..., Any] | None:
        """The function that ``call`` names, once it was loaded under a rubric's folder and ``allow``."""
        return self._function


class _Opinion(NamedTuple):
    """What it thinks of one response on one item: a label, and the probability with which it is right."""

    label: str
    confidence: float


class StubCritic:
    """Answers as its ``Stub`` says, in the form that it is asked for. It belongs to one event loop.

    It has one opinion of a response by a criterion, however it is asked. Asked to name its confidence, it names it;
    asked for labels' log-probs, they have it; and of several samples each says the label with that probability.
    """

    def __init__(self, stub: Stub) -> None:
        if stub.call and not stub.function:
            raise ValueError(f"the stub critic's call {stub.call!r} was not loaded: it needs the rubric's folder")
        self.stub, self.concurrency = stub, stub.concurrency
        self.deadline_s: float | None = None
        self.name = json.dumps({"stub": {"seed": stub.seed, "call": stub.call}})

    async def close(self) -> None:
        """It holds nothing."""

    async def reply(
        self,
        messages: Sequence[Mapping[str, str]],
        schema: Mapping[str, Any],
        labels: Sequence[str],
        seed: int,
        items: int = 1,
    ) -> Reply:
        """The answer, or the failure, that the hash of all this draws. The fence's mark is no part of it."""
        of = self.stub
        asked = _unmarked(messages)
        called = json.dumps([asked, schema, list(labels), seed])
        tries = 0
        turned_away = True
        while turned_away and tries < TRIES:
            tries += 1
            await asyncio.sleep(of.delay_s)
            turned_away = _draw(of.fault_seed, "429", called, tries) < of.faults.rate_limited
        if turned_away:
            return Reply(f"RateLimitError: 429 on each of {tries} tries", status="infrastructure", tries=tries)
        fault = of.faults.kind(_draw(of.fault_seed, "fault", called))
        if fault in ("timeout", "refused", "infrastructure"):
            return Reply(f"the stub critic's {fault}, as asked", status=fault, tries=tries)
        forms = {"": schema} if "verdict" in schema["properties"] else schema["properties"]
        try:
            opinions = {name: self._opinion(asked, name, form) for name, form in forms.items()}
        except Exception as error:
            return Reply(f"{of.call}: {type(error).__name__}: {error}", status="infrastructure", tries=tries)
        if None in opinions.values():
            return Reply(f"{of.call} gave no label", status="refused", tries=tries)
        said = {name: opinion for name, opinion in opinions.items() if opinion}
        if labels:
            return Reply(
                "" if fault else said[""].label, label_logp={} if fault else _logp(said[""], labels), tries=tries
            )
        answers = {name: self._answer(said[name], form, called) for name, form in forms.items()}
        if fault == "dropped":
            answers.get("", answers).pop("verdict" if "" in answers else [*answers][-1])
        text = json.dumps(answers.get("", answers), ensure_ascii=False)
        if fault in ("truncated", "unparseable"):
            text = text[: len(text) // 2]
        return Reply(text, "length" if fault == "truncated" else "stop", tries=tries)

    def _opinion(self, asked: Sequence[Mapping[str, str]], name: str, form: Mapping[str, Any]) -> _Opinion | None:
        of, names = self.stub, form["properties"]["verdict"]["enum"]
        shown, criterion = _matter(asked[-1]["content"], name)
        if of.function is None:
            question = json.dumps([shown, criterion, names])
            sure = 1 / len(names) + (1 - 1 / len(names)) * _draw(of.seed, "confidence", question)
            return _Opinion(names[int(len(names) * _draw(of.seed, "label", question))], sure)
        found = of.function(_response(shown), criterion, tuple(names))
        if found is None:
            return None
        label, sure = found if isinstance(found, tuple) else (found, 1.0)
        if label not in names:
            raise ValueError(f"said {label!r}, which is none of the labels {', '.join(names)}")
        if not 0 <= sure <= 1:
            raise ValueError(f"said the confidence {sure!r}, which is not in [0, 1]")
        return _Opinion(label, float(sure))

    def _answer(self, opinion: _Opinion, form: Mapping[str, Any], called: str) -> dict[str, Any]:
        """The fields of the form. Where it has no confidence, this is one of several samples."""
        names, label = form["properties"]["verdict"]["enum"], opinion.label
        told: dict[str, Any] = {"reasoning": "No model judged this: the stub critic did."}
        if "confidence" in form["properties"]:
            return told | {"verdict": label, "confidence": round(opinion.confidence * CERTAINTY)}
        others = [name for name in names if name != label]
        if _draw(self.stub.seed, "sample", called) >= opinion.confidence:
            label = others[int(len(others) * _draw(self.stub.seed, "other", called))]
        return told | {"verdict": label}


def _draw(*of: object) -> float:
    """A number in [0, 1) that hangs on all of these and on nothing else."""
    digest = hashlib.blake2b(json.dumps(of).encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def _logp(opinion: _Opinion, labels: Sequence[str]) -> dict[str, float]:
    """Log-probs under which the label is the likeliest: with less than a guess's confidence, it only just is."""
    sure = min(max(opinion.confidence, 1 / len(labels) + 1e-9), 1 - 1e-9)
    rest = math.log((1 - sure) / (len(labels) - 1))
    return {name: math.log(sure) if name == opinion.label else rest for name in labels}


_MARK = re.compile(r"\[[0-9a-f]{16}\]")
_ENDS = re.compile(r"^\[mark\] (?:prompt|reference|response) ends$", re.MULTILINE)


def _unmarked(messages: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """The messages with [mark] in the place of the batch's own mark, which the rules name."""
    found = _MARK.search(messages[0]["content"])
    mark = found[0] if found else "[mark]"
    return [{**each, "content": each["content"].replace(mark, "[mark]")} for each in messages]


def _matter(text: str, name: str) -> tuple[str, str]:
    """What the critic is shown, and the criterion (with what its labels stand for) that has this name in the call."""
    ends = [fence.end() for fence in _ENDS.finditer(text)]
    shown, rest = text[: ends[-1]] if ends else "", text[ends[-1] :] if ends else text
    if name:
        return shown, rest.partition(f"Criterion {name}: ")[2].partition("\nIts labels: ")[0]
    return shown, rest.partition("Criterion: ")[2].rpartition("\n\n")[0]


def _response(shown: str) -> str:
    return shown.partition("[mark] response begins\n")[2].rpartition("\n[mark] response ends")[0]
