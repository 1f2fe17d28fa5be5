"""From a critic's answer to a verdict: every way in which an answer can fail is a typed, missing one."""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from grape_rl.maths.confidence import agreement, chance_corrected, label_probability
from grape_rl.reward.critic.item import Judge
from grape_rl.reward.critic.prompt import CERTAINTY
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
    """What one answer says: a label with the critic's confidence in it, or why it says nothing."""

    label: str = ""
    confidence: float = math.nan
    reasoning: str = ""
    status: Status = "ok"


_FENCE = re.compile(r"^\s*```(?:json)?\s*\n(.*?)\n\s*```\s*$", re.DOTALL)


def reading(reply: Reply, judge: Judge) -> Reading:
    """What an answer says of the item."""
    if reply.status != "ok":
        return Reading(status=reply.status, reasoning=reply.text)
    if reply.finish == "content_filter":
        return Reading(status="refused", reasoning="the critic's server refused the text")
    if judge.confidence.mode == "logprob":
        return _likeliest(reply, judge)
    if reply.finish == "length":
        return Reading(status="truncated", reasoning="the answer was cut off: raise the critic's max_tokens")
    found = _FENCE.match(reply.text)
    try:
        # Not strict: some servers' grammars let raw tabs into a string, and what is meant is plain.
        answer = json.loads(found[1] if found else reply.text, strict=False)
    except (ValueError, RecursionError):
        return Reading(status="unparseable", reasoning=f"no JSON: {reply.text[:200]!r}")
    if not isinstance(answer, dict) or answer.get("verdict") not in judge.labels:
        return Reading(status="unparseable", reasoning=f"no verdict of {', '.join(judge.labels)}: {reply.text[:200]!r}")
    confidence = 1.0
    if judge.confidence.mode == "verbalized":
        told = answer.get("confidence")
        if isinstance(told, bool) or not isinstance(told, int | float) or not 0 <= told <= CERTAINTY:
            return Reading(status="unparseable", reasoning=f"no confidence from 0 to {CERTAINTY}: {told!r:.80}")
        confidence = told / CERTAINTY
    return Reading(answer["verdict"], confidence, str(answer.get("reasoning", "")))


def judged(item: str, judge: Judge, readings: Sequence[Reading], provenance: str) -> Verdict:
    """The verdict of all readings of an item: of one, or with ``agreement`` of the label that most of them have.

    Of labels that are equally common the first in the rubric's order counts. Answers that failed are left out as long
    as half of them are there.
    """
    said = [each for each in readings if each.status == "ok"]
    if 2 * len(said) <= len(readings):
        first = next(each for each in readings if each.status != "ok")
        return failed(item, first.status, first.reasoning, provenance)
    count = Counter(each.label for each in said)
    label = max(judge.labels, key=lambda name: count[name])
    sure = next(each.confidence for each in said if each.label == label)
    if judge.confidence.mode == "agreement":
        sure = float(agreement(torch.tensor([[count[name] for name in judge.labels]]))[0])
    if judge.confidence.transform == "chance_corrected":
        sure = float(chance_corrected(torch.tensor(sure, dtype=torch.float64), len(judge.labels)))
    reasoning = next(each.reasoning for each in said if each.label == label)
    return Verdict(item, judge.labels[label], sure, "ok", reasoning, provenance)


def _likeliest(reply: Reply, judge: Judge) -> Reading:
    """The label with the highest probability among the labels, which is the confidence in it."""
    names = [name for name in judge.labels if name in reply.label_logp]
    if not names:
        return Reading(
            status="unparseable", reasoning=f"none of the labels is among the likely answers: {reply.text!r:.80}"
        )
    logp = torch.tensor([[reply.label_logp[name] for name in names]], dtype=torch.float64)
    chance = label_probability(logp)[0].tolist()
    best = max(range(len(names)), key=lambda i: chance[i])
    told = ", ".join(f"{name} {p:.3f}" for name, p in zip(names, chance, strict=True))
    return Reading(names[best], chance[best], told)
