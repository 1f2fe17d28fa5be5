"""The records that flow through a run: sequences, rollouts, verdicts, and what an objective sees.

One mask, True where the policy chose the token. One alignment: column t of every ``"b t"`` field speaks of
``tokens[:, t]``. Missing numbers are NaN and never zero.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from jaxtyping import Bool, Float, Int
from torch import Tensor

Finish = Literal["stop", "length"]
"""Why a response ended: the policy wrote an end token, or it was cut off at the token limit."""

Status = Literal["ok", "policy_fault", "timeout", "unparseable", "truncated", "refused", "infrastructure", "unlabeled"]
"""What became of one grading. ``ok`` and ``policy_fault`` carry a score; every other status is a missing verdict.

``unlabeled``: the item is for people to grade, and none has graded this response yet."""


@dataclass(frozen=True)
class Sequences:
    """Token sequences as a model reads them: unique prompts, and the tokens that follow each.

    ``prompts[group[i]]`` precedes ``tokens[i]``. ``tokens`` holds everything after the prompt, so text that the policy
    did not write (a tool's answer, padding) fits with ``mask`` False. Rows are padded on the right.
    """

    prompts: tuple[Int[Tensor, " _"], ...]
    tokens: Int[Tensor, "b t"]
    mask: Bool[Tensor, "b t"]
    group: Int[Tensor, " b"]


@dataclass(frozen=True)
class Rollout(Sequences):
    """Sequences that a policy sampled, with how it sampled them.

    ``behavior_logp`` is the log-probability of each token under the distribution really drawn from, with temperature,
    top-k and top-p in it; 0 where ``mask`` is False. ``version`` counts the updates of the policy that sampled.
    """

    behavior_logp: Float[Tensor, "b t"]
    finish: tuple[Finish, ...]
    version: int


@dataclass(frozen=True)
class Outputs:
    """What a forward pass says of each token: its log-probability and the entropy (nats) of the choice it came from.

    ``value`` is what the value function expects of rewards from that token on, before it is chosen; None without one.
    """

    logp: Float[Tensor, "b t"]
    entropy: Float[Tensor, "b t"]
    value: Float[Tensor, "b t"] | None = None


@dataclass(frozen=True)
class Batch:
    """What an objective sees of a batch, beside the model's ``Outputs``."""

    mask: Bool[Tensor, "b t"]
    behavior_logp: Float[Tensor, "b t"]
    reference_logp: Float[Tensor, "b t"]
    advantage: Float[Tensor, "b t"]


@dataclass(frozen=True)
class ValuedBatch(Batch):
    """The same where a value function learns too: what it said as the batch was drawn, and what it should have said."""

    behavior_value: Float[Tensor, "b t"]
    value_target: Float[Tensor, "b t"]


@dataclass(frozen=True)
class Response:
    """One response as a grader sees it: text, the data row of its prompt, and how it ended.

    ``text`` has no special tokens; ``tokens`` counts what the policy wrote, its end token included.
    """

    prompt: str
    text: str
    row: Mapping[str, Any]
    tokens: int
    finish: Finish


@dataclass(frozen=True)
class Verdict:
    """One response graded on one item: a score with the grader's confidence in it, or a typed failure.

    A rubric item scores in [0, 1]; a reward function of one's own scores in any finite unit. A failed grading is
    *missing* (``score`` and ``confidence`` NaN), never 0. The policy's own fault (it wrote a program that never ends,
    say) is ``policy_fault``: the worst score (0, or 1 on a pitfall), confidence 1. ``cost`` and ``tokens`` are what the
    verdict took of a critic, failed tries included: in the unit of its prices, and read and written together.
    ``label`` is the answer itself where a critic chose one of several.

    Raises:
        ValueError: a score that is not finite, a confidence outside [0, 1], or a missing status that carries a score.
    """

    item: str
    score: float
    confidence: float = 1.0
    status: Status = "ok"
    reasoning: str = ""
    provenance: str = ""
    cost: float = 0.0
    tokens: int = 0
    label: str = ""

    def __post_init__(self) -> None:
        if self.missing:
            if not (math.isnan(self.score) and math.isnan(self.confidence)):
                raise ValueError(f"item {self.item!r}: a verdict with status {self.status!r} carries no score")
        elif not (math.isfinite(self.score) and 0 <= self.confidence <= 1):
            raise ValueError(
                f"item {self.item!r}: score {self.score} must be finite and confidence {self.confidence} in [0, 1]"
            )

    @property
    def missing(self) -> bool:
        """Whether the grading failed, so that there is no score."""
        return self.status not in ("ok", "policy_fault")


def failed(item: str, status: Status, reasoning: str, provenance: str = "") -> Verdict:
    """The missing verdict of a grading that failed."""
    return Verdict(item, math.nan, math.nan, status, reasoning, provenance)


@dataclass(frozen=True)
class Scores:
    """The graded batch: each response's verdicts, one per item of its category and its row, and the reward of them.

    A response whose prompt could not be classified has the missing verdict of that alone, and no reward.
    ``reward`` is NaN where too little is known of a response to use it. ``compared`` is what the advantage is made of
    where a method makes it of something else than the reward. ``memory`` is what scoring the batch leaves to the next,
    by name: training keeps it, and an evaluation does not. ``items`` holds the rubric items (``reward.item.Item``) that
    each response was graded on, in the order of its verdicts; it is empty without a rubric.
    """

    reward: Float[Tensor, " b"]
    verdicts: tuple[tuple[Verdict, ...], ...]
    category: tuple[str, ...]
    compared: Float[Tensor, " b"] | None = None
    memory: Mapping[str, float] = field(default_factory=dict[str, float])
    items: tuple[tuple[Any, ...], ...] = ()


@dataclass(frozen=True)
class Pairs:
    """What a preference objective sees of p pairs of responses, beside the model's ``Outputs``.

    Rows 0 … p−1 are the chosen responses of the pairs, rows p … 2p−1 the rejected ones, in the same order.
    ``reference_logp`` is 0 for a method without a reference; a reward that the data does not tell is NaN.
    """

    mask: Bool[Tensor, "b t"]
    reference_logp: Float[Tensor, "b t"]
    chosen_reward: Float[Tensor, " p"]
    rejected_reward: Float[Tensor, " p"]


@dataclass(frozen=True)
class Labeled:
    """What an objective sees of single responses that are each labeled desirable or not, beside the ``Outputs``."""

    mask: Bool[Tensor, "b t"]
    reference_logp: Float[Tensor, "b t"]
    desirable: Bool[Tensor, " b"]
