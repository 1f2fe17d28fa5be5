"""Verdicts from a critic's replies. Every way in which a reply can fail is a typed, missing verdict."""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from grape_rl.maths.confidence import chance_corrected, label_probability, self_consistency
from grape_rl.reward.critic.judge import Judge
from grape_rl.reward.critic.prompt import TOP_CONFIDENCE, criterion_names
from grape_rl.types import Status, Verdict, failed


@dataclass(frozen=True)
class Reply:
    """One reply of a critic, or the status and reason (``text``) of its failure.

    ``label_logp`` is the log-probability (nats) of each label as the whole answer, if the call asked for it. Tokens and
    cost include all tries.
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
class ItemAnswer:
    """The part of a reply about one item: a label with the critic's confidence in it, or the reason for its absence.

    ``cost`` and ``tokens`` are the item's share of the reply's.
    """

    label: str = ""
    confidence: float = math.nan
    reasoning: str = ""
    status: Status = "ok"
    cost: float = 0.0
    tokens: int = 0


class _JsonObject(dict[str, Any]):
    """A JSON object with the set of its repeated keys."""

    def __init__(self, pairs: Sequence[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.repeated = {name for name, count in Counter(name for name, _ in pairs).items() if count > 1}


_FENCE = re.compile(r"^\s*```(?:json)?\s*\n(.*?)\n\s*```\s*$", re.DOTALL)


def parse_reply(reply: Reply, judges: Sequence[Judge]) -> list[ItemAnswer]:
    """The answer for each item of a call, in the order of ``judges``, with the item's share of the cost.

    In a reply about several items, a criterion name that is absent or repeated makes that item unparseable, and no
    other item.
    """
    tokens = reply.prompt_tokens + reply.completion_tokens
    n = len(judges)
    return [
        replace(answer, cost=reply.cost / n, tokens=tokens * (i + 1) // n - tokens * i // n)
        for i, answer in enumerate(_item_answers(reply, judges))
    ]


def _item_answers(reply: Reply, judges: Sequence[Judge]) -> list[ItemAnswer]:
    # Failures of the whole reply.
    if reply.status != "ok":
        return [ItemAnswer(status=reply.status, reasoning=reply.text)] * len(judges)
    if reply.finish == "content_filter":
        return [ItemAnswer(status="refused", reasoning="the critic's server refused the text")] * len(judges)
    if judges[0].confidence.mode == "logprob":
        return [_likeliest(reply, judge) for judge in judges]
    if reply.finish == "length":
        reason = "the answer was truncated twice at the token limit: raise the critic's max_tokens"
        return [ItemAnswer(status="truncated", reasoning=reason)] * len(judges)
    fenced = _FENCE.match(reply.text)
    try:
        # Not strict: the grammars of some servers allow raw tabs in a string, and the meaning is clear.
        answer = json.loads(fenced[1] if fenced else reply.text, strict=False, object_pairs_hook=_JsonObject)
    except (ValueError, RecursionError):
        return [_unparseable(f"the answer is not JSON: {reply.text[:200]!r}")] * len(judges)
    if len(judges) == 1:
        return [_item_answer(answer, judges[0])]
    # Several items: an object for each, by criterion name.
    if not isinstance(answer, _JsonObject):
        return [_unparseable(f"not a JSON object by criterion name: {reply.text[:200]!r}")] * len(judges)
    return [
        _unparseable(
            f"the answer has {name} {'twice' if name in answer else 'nowhere'}; its keys: {', '.join(answer)!r:.200}"
        )
        if name not in answer or name in answer.repeated
        else _item_answer(answer[name], judge)
        for name, judge in zip(criterion_names(judges), judges, strict=True)
    ]


def _item_answer(answer: Any, judge: Judge) -> ItemAnswer:
    """The answer in the JSON object of one item."""
    shown = f"{json.dumps(answer, ensure_ascii=False):.200}"
    if not isinstance(answer, _JsonObject) or not isinstance(answer.get("verdict"), str | None):
        return _unparseable(f"not an object with a verdict: {shown}")
    if answer.repeated:
        return _unparseable(f"the key {min(answer.repeated)!r} is repeated: {shown}")
    if answer.get("verdict") not in judge.labels:
        return _unparseable(f"the verdict is none of {', '.join(judge.labels)}: {shown}")
    confidence = 1.0
    if judge.confidence.mode == "verbalized":
        stated = answer.get("confidence")
        if isinstance(stated, bool) or not isinstance(stated, int | float) or not 0 <= stated <= TOP_CONFIDENCE:
            return _unparseable(f"the confidence is not a number from 0 to {TOP_CONFIDENCE}: {stated!r:.80}")
        confidence = stated / TOP_CONFIDENCE
    return ItemAnswer(answer["verdict"], confidence, str(answer.get("reasoning", "")))


def _unparseable(reason: str) -> ItemAnswer:
    return ItemAnswer(status="unparseable", reasoning=reason)


def combine_answers(item: str, judge: Judge, answers: Sequence[ItemAnswer], provenance: str) -> Verdict:
    """The verdict from the answers about an item: a single one, or in mode ``agreement`` the most frequent label.

    Ties go to the label that is first in the rubric. Failed answers are ignored if more than half of the answers are
    left; otherwise the verdict is missing, with the status of the first failure. Cost and tokens include failed
    answers.
    """
    cost, tokens = math.fsum(answer.cost for answer in answers), sum(answer.tokens for answer in answers)
    valid = [answer for answer in answers if answer.status == "ok"]
    if 2 * len(valid) <= len(answers):
        first = next(answer for answer in answers if answer.status != "ok")
        return replace(failed(item, first.status, first.reasoning, provenance), cost=cost, tokens=tokens)
    count = Counter(answer.label for answer in valid)
    label = max(judge.labels, key=lambda name: count[name])
    confidence = next(answer.confidence for answer in valid if answer.label == label)
    if judge.confidence.mode == "agreement":
        confidence = float(self_consistency(torch.tensor([[count[name] for name in judge.labels]]))[0])
    if judge.curve:
        confidence = float(judge.curve(torch.tensor(confidence, dtype=torch.float64)))
    if judge.confidence.transform.endswith("chance_corrected"):
        confidence = float(chance_corrected(torch.tensor(confidence, dtype=torch.float64), len(judge.labels)))
    reasoning = next(answer.reasoning for answer in valid if answer.label == label)
    return Verdict(item, judge.labels[label], confidence, "ok", reasoning, provenance, cost, tokens, label)


def _likeliest(reply: Reply, judge: Judge) -> ItemAnswer:
    """The most probable label; its probability among the labels is the confidence."""
    names = [name for name in judge.labels if name in reply.label_logp]
    if not names:
        return _unparseable(f"none of the labels is among the likely answers: {reply.text!r:.80}")
    logp = torch.tensor([[reply.label_logp[name] for name in names]], dtype=torch.float64)
    probability = label_probability(logp)[0].tolist()
    best = max(range(len(names)), key=lambda i: probability[i])
    listed = ", ".join(f"{name} {p:.3f}" for name, p in zip(names, probability, strict=True))
    return ItemAnswer(names[best], probability[best], listed)
