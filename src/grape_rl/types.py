"""Records that flow through a run: sequences, rollouts, verdicts, scores, and the batches that losses read.

There is one mask, True for tokens that the policy generated (or, in data, that are trained on), and one alignment:
column t of every ``"b t"`` field belongs to ``tokens[:, t]``. A missing number is NaN, never 0.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from jaxtyping import Bool, Float, Int
from torch import Tensor

Finish = Literal["stop", "length"]
"""Reason for the end of generation: the policy generated an end token, or the token limit was reached."""

Status = Literal["ok", "policy_fault", "timeout", "unparseable", "truncated", "refused", "infrastructure", "unlabeled"]
"""Outcome of one grading. ``ok`` and ``policy_fault`` come with a score; any other status is a missing verdict.

``unlabeled``: the item is graded by people, and nobody has graded this response yet."""


@dataclass(frozen=True)
class Sequences:
    """Token sequences: unique prompts, and the tokens that follow them.

    Row i is ``prompts[group[i]]`` followed by ``tokens[i]``. ``mask`` is False for tokens after the prompt that the
    policy did not generate, such as a tool's output or padding. Rows are padded on the right.
    """

    prompts: tuple[Int[Tensor, " _"], ...]
    tokens: Int[Tensor, "b t"]
    mask: Bool[Tensor, "b t"]
    group: Int[Tensor, " b"]


@dataclass(frozen=True)
class Rollout(Sequences):
    """Sequences sampled from a policy, with their log-probs under the behavior policy.

    ``behavior_logp`` is the log-probability (nats) of each token under the sampling distribution, after temperature,
    top-k and top-p; 0 where ``mask`` is False. ``version`` is the number of updates of the policy that sampled.
    """

    behavior_logp: Float[Tensor, "b t"]
    finish: tuple[Finish, ...]
    version: int


@dataclass(frozen=True)
class Outputs:
    """Per-token outputs of a forward pass, in nats: the token's log-probability, and the entropy of its distribution.

    ``value`` is the value function's estimate before the token is generated, in the units of the reward; None for a
    policy without a value function.
    """

    logp: Float[Tensor, "b t"]
    entropy: Float[Tensor, "b t"]
    value: Float[Tensor, "b t"] | None = None


@dataclass(frozen=True)
class TokenBatch:
    """Per-token fields that a loss reads in addition to the model's ``Outputs``."""

    mask: Bool[Tensor, "b t"]
    behavior_logp: Float[Tensor, "b t"]
    reference_logp: Float[Tensor, "b t"]
    advantage: Float[Tensor, "b t"]


@dataclass(frozen=True)
class ValueBatch(TokenBatch):
    """Per-token fields for a policy with a value function: also the values at sampling time, and their targets."""

    behavior_value: Float[Tensor, "b t"]
    value_target: Float[Tensor, "b t"]


@dataclass(frozen=True)
class Response:
    """One response for grading: its text, the data row of its prompt, and why it ended.

    ``text`` has no special tokens. ``tokens`` is the length of the response, including its end token.
    """

    prompt: str
    text: str
    row: Mapping[str, Any]
    tokens: int
    finish: Finish


@dataclass(frozen=True)
class Verdict:
    """Result of grading one response on one item: a score with the grader's confidence, or a typed failure.

    A rubric item scores in [0, 1]; a custom reward function in any finite unit. A failed grading is *missing*:
    ``score`` and ``confidence`` are NaN, never 0. ``policy_fault`` means that the response itself is at fault, for
    example a program that does not terminate: the worst score (0, or 1 on a pitfall) with confidence 1.

    ``cost`` (in the unit of the critic's prices) and ``tokens`` (prompt plus completion) are the critic's usage,
    including failed attempts. ``label`` is the critic's answer if the item has a list of labels.

    Raises:
        ValueError: a score that is not finite, a confidence outside [0, 1], or a missing status with a score.
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
        """True if the grading failed, so that there is no score."""
        return self.status not in ("ok", "policy_fault")


def failed(item: str, status: Status, reasoning: str, provenance: str = "") -> Verdict:
    """A missing verdict, for a grading that failed."""
    return Verdict(item, math.nan, math.nan, status, reasoning, provenance)


@dataclass(frozen=True)
class Scores:
    """Grades of a batch of responses: verdicts, one for each item of the response's category and row, and rewards.

    ``reward`` is NaN for a response with too few verdicts. A response whose prompt could not be classified has one
    missing verdict and no reward. ``compared`` replaces the reward in the advantage, for methods that compute the
    advantage from other numbers than the logged reward. ``memory`` holds named numbers for the scoring of the next
    batch: training stores them, evaluation does not. ``items`` are the rubric items (``reward.item.Item``) of each
    response, in the order of its verdicts; empty without a rubric.
    """

    reward: Float[Tensor, " b"]
    verdicts: tuple[tuple[Verdict, ...], ...]
    category: tuple[str, ...]
    compared: Float[Tensor, " b"] | None = None
    memory: Mapping[str, float] = field(default_factory=dict[str, float])
    items: tuple[tuple[Any, ...], ...] = ()


@dataclass(frozen=True)
class PairBatch:
    """Fields of p preference pairs that a loss reads in addition to the model's ``Outputs``.

    Rows 0 … p−1 are the chosen responses, rows p … 2p−1 the rejected responses of the pairs in the same order.
    ``reference_logp`` is 0 for a method without a reference model. A reward that is not in the data is NaN.
    """

    mask: Bool[Tensor, "b t"]
    reference_logp: Float[Tensor, "b t"]
    chosen_reward: Float[Tensor, " p"]
    rejected_reward: Float[Tensor, " p"]


@dataclass(frozen=True)
class LabelBatch:
    """Fields of responses labeled desirable or undesirable that a loss reads in addition to the ``Outputs``."""

    mask: Bool[Tensor, "b t"]
    reference_logp: Float[Tensor, "b t"]
    desirable: Bool[Tensor, " b"]
