"""The questions for a batch of jobs: items asked in one call, jobs that share a question, and the order of calls."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple

from grape_rl.reward.critic.judge import Judge
from grape_rl.reward.critic.policy_faults import policy_fault_reason
from grape_rl.types import Response


class CriticJob(NamedTuple):
    """One response for a critic to judge on one item; the look-ups of ``judge`` are filled in.

    ``worst`` is the score that lowers the reward most: 0, or 1 on a pitfall.
    """

    item: str
    judge: Judge
    response: Response
    worst: float = 0.0


QuestionKey = tuple[Any, ...]
"""Everything that a question's answer depends on."""


@dataclass(frozen=True, eq=False, slots=True)
class Question:
    """A call about one or several items of a response, repeated for each of the ``samples``."""

    key: QuestionKey
    judges: tuple[Judge, ...]
    response: Response

    @property
    def critic(self) -> str:
        """The name of the critic."""
        return self.judges[0].critic

    @property
    def samples(self) -> int:
        """The number of calls: 1, or k in the confidence mode ``agreement``."""
        return self.judges[0].confidence.k

    def order(self, sample: int) -> list[int]:
        """The order of the judges in a call: a random permutation, fixed for this question and sample."""
        permutation = list(range(len(self.judges)))
        if len(permutation) == 1:
            return permutation
        random.Random(repr((self.key, sample))).shuffle(permutation)
        return permutation


class AnswerPlace(NamedTuple):
    """The place of a job's answer: a question, and the position of the judge in it."""

    key: QuestionKey
    position: int


class PolicyFault(NamedTuple):
    """The reason why a job needs no question: the response is at fault by itself."""

    reason: str


def plan_questions(jobs: Sequence[CriticJob]) -> tuple[list[Question], list[AnswerPlace | PolicyFault]]:
    """The questions that answer the jobs, and the place of each job's answer.

    Equal jobs share a question: a second call would return the same answer, or differ by chance. Questions are ordered
    by prompt and then by response, so that a server with a prefix cache computes each prefix once.
    """
    # Group the judges that go into one call.
    members: list[PolicyFault | tuple[QuestionKey, bytes]] = []
    groups: dict[QuestionKey, tuple[Response, dict[bytes, Judge]]] = {}
    for _, judge, response, _ in jobs:
        if reason := policy_fault_reason(judge, response):
            members.append(PolicyFault(reason))
            continue
        digest = _digest(judge)
        confidence = judge.confidence
        alone = None if judge.calls == "batched" else digest
        shown = (judge.show, str(judge.reference))
        group = (judge.critic, response.prompt, response.text, shown, confidence.mode, confidence.k, alone)
        groups.setdefault(group, (response, {}))[1].setdefault(digest, judge)
        members.append((group, digest))
    # One question for each group.
    questions: dict[QuestionKey, Question] = {}
    digests: dict[QuestionKey, list[bytes]] = {}
    for group, (response, judges) in groups.items():
        digests[group] = sorted(judges)  # independent of the order of the jobs
        key = (group, tuple(digests[group]))
        questions[group] = Question(key, tuple(judges[digest] for digest in digests[group]), response)
    # Order by shared prefix, in order of first appearance.
    ranks: dict[QuestionKey, int] = {}

    def rank(*prefix: Any) -> int:
        return ranks.setdefault(prefix, len(ranks))

    def prefix_ranks(group: QuestionKey) -> tuple[int, ...]:
        critic, prompt, text, shown = group[:4]
        return rank(prompt), rank(prompt, text), rank(prompt, text, shown), rank(critic)

    ordered = [questions[group] for group in sorted(groups, key=prefix_ranks)]
    places = [
        member
        if isinstance(member, PolicyFault)
        else AnswerPlace(questions[member[0]].key, digests[member[0]].index(member[1]))
        for member in members
    ]
    return ordered, places


def _digest(judge: Judge) -> bytes:
    """A digest of the parts of a judge that the critic sees; the use of the answer is not among them."""
    shown = (judge.criterion, list(judge.labels), judge.anchors, judge.show, judge.reference)
    return blake2b(repr((shown, judge.confidence.mode, judge.confidence.k)).encode(), digest_size=16).digest()
