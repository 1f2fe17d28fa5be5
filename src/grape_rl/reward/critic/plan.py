"""From jobs to questions: what is asked in one call, what is asked once for several jobs, and in which order."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple

from grape_rl.reward.critic.faults import fault
from grape_rl.reward.critic.item import Judge
from grape_rl.types import Response


class Job(NamedTuple):
    """A verdict to give: on which item, by what criterion (its look-ups filled in), and of which response.

    ``worst`` is the score that hurts the response most: 0, or 1 on a pitfall.
    """

    item: str
    judge: Judge
    response: Response
    worst: float = 0.0


Key = tuple[Any, ...]
"""All that a question's answer depends on."""


@dataclass(frozen=True, eq=False, slots=True)
class Question:
    """One call, or one for each of the ``samples``: on one item of a response, or on several."""

    key: Key
    judges: tuple[Judge, ...]
    response: Response

    @property
    def critic(self) -> str:
        """Who is asked."""
        return self.judges[0].critic

    @property
    def samples(self) -> int:
        """How often it is asked."""
        return self.judges[0].confidence.k

    def order(self, sample: int) -> list[int]:
        """In which order its judges are asked: another for each question and sample, always the same for these."""
        found = list(range(len(self.judges)))
        if len(found) == 1:
            return found
        random.Random(repr((self.key, sample))).shuffle(found)
        return found


class Place(NamedTuple):
    """Where a job's answer is: which question, and which of its judges."""

    key: Key
    judge: int


class Fault(NamedTuple):
    """Why a job is no question: the response is at fault by itself."""

    why: str


def planned(jobs: Sequence[Job]) -> tuple[list[Question], list[Place | Fault]]:
    """The questions that answer some jobs, and where each job finds its answer.

    Equal jobs share a question: to ask the same again would give the same, or chance. Questions on a response stand
    together, and responses to a prompt, so that a server which keeps the beginnings of prompts reads each once.
    """
    found: list[Fault | tuple[Key, bytes]] = []
    groups: dict[Key, tuple[Response, dict[bytes, Judge]]] = {}
    for _, judge, response, _ in jobs:
        if why := fault(judge, response):
            found.append(Fault(why))
            continue
        asked = _asked(judge)
        sure = judge.confidence
        alone = None if judge.calls == "batched" else asked
        shown = (judge.show, str(judge.reference))
        group = (judge.critic, response.prompt, response.text, shown, sure.mode, sure.k, alone)
        groups.setdefault(group, (response, {}))[1].setdefault(asked, judge)
        found.append((group, asked))
    questions: dict[Key, Question] = {}
    places: dict[Key, tuple[Key, list[bytes]]] = {}
    for group, (response, judges) in groups.items():
        order = sorted(judges)  # no matter in which order the jobs came
        key = (group, tuple(order))
        questions[group] = Question(key, tuple(judges[each] for each in order), response)
        places[group] = key, order
    rank: dict[Key, int] = {}

    def seen(*what: Any) -> int:
        return rank.setdefault(what, len(rank))

    def begins(group: Key) -> tuple[int, ...]:
        critic, prompt, text, shown = group[:4]
        return seen(prompt), seen(prompt, text), seen(prompt, text, shown), seen(critic)

    ordered = [questions[group] for group in sorted(groups, key=begins)]
    return ordered, [
        each if isinstance(each, Fault) else Place(places[each[0]][0], places[each[0]][1].index(each[1]))
        for each in found
    ]


def _asked(judge: Judge) -> bytes:
    """A digest of what a critic is asked by a judge; what becomes of the answer is no part of it."""
    said = (judge.criterion, list(judge.labels), judge.anchors, judge.show, judge.reference)
    return blake2b(repr((said, judge.confidence.mode, judge.confidence.k)).encode(), digest_size=16).digest()
