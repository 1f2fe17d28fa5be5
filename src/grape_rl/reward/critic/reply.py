"""From a critic's answer to a verdict: every way in which an answer can fail is a typed, missing one."""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from grape_rl.maths.confidence import chance_corrected, label_probability, self_consistency
from grape_rl.reward.critic.item import Judge
from grape_rl.reward.critic.prompt import CERTAINTY, names
from grape_rl.types import Status, Verdict, failed


@dataclass(frozen=True)
class Reply:
    """One answer of a critic, or why there is none.

    ``label_logp`` is the log-probability (nats) of each label as the whole answer, where the critic was asked for that.
    Tokens and cost are of all tries.
    """

    text: str = ""
    finish: str = "stop"
    status: Status = "ok"
    label_logp: Mapping[str, float] = field(default_factory=dict[str, float])
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    tries: int = 1


@dataclass(frozen=True)
class Reading:
    """What one answer says of an item: a label with the critic's confidence in it, or why it says nothing.

    Of the answer's cost and tokens it has the item's share.
    """

    label: str = ""
    confidence: float = math.nan
    reasoning: str = ""
    status: Status = "ok"
    cost: float = 0.0
    tokens: int = 0


class _Answer(dict[str, Any]):
    """An object of JSON that knows which of its keys were there more than once."""

    def __init__(self, pairs: Sequence[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.repeated = {name for name, count in Counter(name for name, _ in pairs).items() if count > 1}


_FENCE = re.compile(r"^\s*```(?:json)?\s*\n(.*?)\n\s*```\s*$", re.DOTALL)


def readings(reply: Reply, judges: Sequence[Judge]) -> list[Reading]:
    """What an answer says of each item that it was asked about, in their order, and each item's share of its cost.

    In an answer on several items a name that is not there, or is there twice, makes that item unparseable and no other.
    """
    tokens = reply.prompt_tokens + reply.completion_tokens
    n = len(judges)
    return [
        replace(each, cost=reply.cost / n, tokens=tokens * (i + 1) // n - tokens * i // n)
        for i, each in enumerate(_readings(reply, judges))
    ]


def _readings(reply: Reply, judges: Sequence[Judge]) -> list[Reading]:
    if reply.status != "ok":
        return [Reading(status=reply.status, reasoning=reply.text)] * len(judges)
    if reply.finish == "content_filter":
        return [Reading(status="refused", reasoning="the critic's server refused the text")] * len(judges)
    if judges[0].confidence.mode == "logprob":
        return [_likeliest(reply, judge) for judge in judges]
    if reply.finish == "length":
        cut = Reading(status="truncated", reasoning="the answer was cut off twice: raise the critic's max_tokens")
        return [cut] * len(judges)
    found = _FENCE.match(reply.text)
    try:
        # Not strict: some servers' grammars let raw tabs into a string, and what is meant is plain.
        answer = json.loads(found[1] if found else reply.text, strict=False, object_pairs_hook=_Answer)
    except (ValueError, RecursionError):
        return [_unparseable(f"no JSON: {reply.text[:200]!r}")] * len(judges)
    if len(judges) == 1:
        return [_reading(answer, judges[0])]
    if not isinstance(answer, _Answer):
        return [_unparseable(f"no JSON by the criteria's names: {reply.text[:200]!r}")] * len(judges)
    return [
        _unparseable(f"the answer has {name} {'twice' if name in answer else 'nowhere'}: {', '.join(answer)!r:.200}")
        if name not in answer or name in answer.repeated
        else _reading(answer[name], judge)
        for name, judge in zip(names(judges), judges, strict=True)
    ]


def _reading(answer: Any, judge: Judge) -> Reading:
    """What the object of one item says."""
    said = f"{json.dumps(answer, ensure_ascii=False):.200}"
    if not isinstance(answer, _Answer) or not isinstance(answer.get("verdict"), str | None):
        return _unparseable(f"no object with a verdict: {said}")
    if answer.repeated:
        return _unparseable(f"{min(answer.repeated)!r} is there twice: {said}")
    if answer.get("verdict") not in judge.labels:
        return _unparseable(f"no verdict of {', '.join(judge.labels)}: {said}")
    confidence = 1.0
    if judge.confidence.mode == "verbalized":
        told = answer.get("confidence")
        if isinstance(told, bool) or not isinstance(told, int | float) or not 0 <= told <= CERTAINTY:
            return _unparseable(f"no confidence from 0 to {CERTAINTY}: {told!r:.80}")
        confidence = told / CERTAINTY
    return Reading(answer["verdict"], confidence, str(answer.get("reasoning", "")))


def _unparseable(why: str) -> Reading:
    return Reading(status="unparseable", reasoning=why)


def judged(item: str, judge: Judge, readings: Sequence[Reading], provenance: str) -> Verdict:
    """The verdict of all readings of an item: of one, or with ``agreement`` of the label that most of them have.

    Of labels that are equally common the first in the rubric's order counts. Answers that failed are left out as long
    as half of them are there; what they cost is not.
    """
    cost, tokens = math.fsum(each.cost for each in readings), sum(each.tokens for each in readings)
    said = [each for each in readings if each.status == "ok"]
    if 2 * len(said) <= len(readings):
        first = next(each for each in readings if each.status != "ok")
        return replace(failed(item, first.status, first.reasoning, provenance), cost=cost, tokens=tokens)
    count = Counter(each.label for each in said)
    label = max(judge.labels, key=lambda name: count[name])
    sure = next(each.confidence for each in said if each.label == label)
    if judge.confidence.mode == "agreement":
        sure = float(self_consistency(torch.tensor([[count[name] for name in judge.labels]]))[0])
    if judge.curve:
        sure = float(judge.curve(torch.tensor(sure, dtype=torch.float64)))
    if judge.confidence.transform.endswith("chance_corrected"):
        sure = float(chance_corrected(torch.tensor(sure, dtype=torch.float64), len(judge.labels)))
    reasoning = next(each.reasoning for each in said if each.label == label)
    return Verdict(item, judge.labels[label], sure, "ok", reasoning, provenance, cost, tokens, label)


def _likeliest(reply: Reply, judge: Judge) -> Reading:
    """The label with the highest probability among the labels, which is the confidence in it."""
    told = [name for name in judge.labels if name in reply.label_logp]
    if not told:
        return Reading(
            status="unparseable", reasoning=f"none of the labels is among the likely answers: {reply.text!r:.80}"
        )
    logp = torch.tensor([[reply.label_logp[name] for name in told]], dtype=torch.float64)
    chance = label_probability(logp)[0].tolist()
    best = max(range(len(told)), key=lambda i: chance[i])
    said = ", ".join(f"{name} {p:.3f}" for name, p in zip(told, chance, strict=True))
    return Reading(told[best], chance[best], said)
