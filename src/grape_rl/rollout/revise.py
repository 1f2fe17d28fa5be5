"""Revisions: the policy rewrites the lowest-reward responses of each group, conditioned on a critique of them.

A revision y′ ~ π(·|x, y, critique) becomes one more response to x. Its tokens are credited and trained under the prompt
x alone, as if they had been sampled from π(·|x). docs/revise.md describes what this approximation leaves out.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from grape_rl.data.chat import decode_text
from grape_rl.data.messages import Messages
from grape_rl.data.order import derive_seed
from grape_rl.maths.divergence import k3
from grape_rl.maths.groups import group_rank
from grape_rl.model.reference_logprobs import LogprobFunction
from grape_rl.reward.item import Item
from grape_rl.reward.scores import Scorer, check_missing
from grape_rl.rollout.collect import Sampler
from grape_rl.rollout.scored_rollout import Revisions, ScoredRollout, append_rows
from grape_rl.types import Response, Rollout, Verdict

CritiqueFunction = Callable[[Response, Sequence[Item], Sequence[Verdict]], str]
"""(response, its rubric items, their verdicts) → the text of its critique; "" if there is nothing to criticize."""


@dataclass(frozen=True)
class Reviser:
    """Functions and settings with which responses are revised.

    Attributes:
        critique: writes the critique of a response.
        prompt: (response, critique) → tokens of the revision prompt; None if it does not fit into the context.
        sampler: samples from the policy.
        logp: log-probs under the current policy, at the temperature of the loss.
        scorer: grades responses.
        tokenizer: decodes revisions.
        per_group: number of responses of each group to revise.
        seed: the run's seed.
        failure_limit: the largest share of missing verdicts, in [0, 1].
    """

    critique: CritiqueFunction
    prompt: Callable[[Response, str], Int[Tensor, " p"] | None]
    sampler: Sampler
    logp: LogprobFunction
    scorer: Scorer
    tokenizer: Any
    per_group: int
    seed: int
    failure_limit: float


def revision_prompt(prompt: str | Messages, response: str, critique: str, request: str) -> str | Messages:
    """The prompt of a revision: the original prompt, the response, and the request that contains the critique.

    With messages, the response is an assistant message and the request a user message. With plain text, the prompt is
    repeated at the end, since the policy continues from there as it does for a response.

    >>> revision_prompt("1+1=", "3", "It is even.", "{critique} Again:")
    '1+1=3\\n\\nIt is even. Again:\\n\\n1+1='
    """
    request = request.replace("{critique}", critique)
    if isinstance(prompt, str):
        return f"{prompt}{response}\n\n{request}\n\n{prompt}"
    return [*prompt, {"role": "assistant", "content": response}, {"role": "user", "content": request}]


def lowest_rewards(reward: Float[Tensor, " b"], group: Int[Tensor, " b"], per_group: int) -> list[int]:
    """Rows of the ``per_group`` lowest rewards of each group. Of equal rewards, the first. NaN is never among them.

    >>> import torch
    >>> lowest_rewards(torch.tensor([1.0, 0.0, torch.nan, 2.0]), torch.tensor([0, 0, 0, 1]), 1)
    [1, 3]
    """
    return ((group_rank(-reward, group) < per_group) & ~reward.isnan()).nonzero().flatten().tolist()


def add_revisions(scored: ScoredRollout, reviser: Reviser) -> ScoredRollout:
    """The rollout, followed by revisions of the lowest-reward responses of each group, in the same groups.

    Responses with a missing reward or without a critique are not revised. Responses whose revision prompt does not fit
    into the context are not revised either, and are logged. The behavior policy of a revision is ``reviser.logp`` under
    the original prompt, which is how the loss sees the revision.

    The verdicts of the rollout stay as they are. All rewards are recomputed, so that a weight that depends on the
    verdicts of the whole group, such as the mean confidence, is equal for a revision and its original.

    Raises:
        RuntimeError: more than ``failure_limit`` of the verdicts, old and new, are missing.
    """
    began = time.perf_counter()
    step = scored.rollout.version

    # Criticize the responses with the lowest rewards, and build the prompts that fit.
    rows = lowest_rewards(scored.scores.reward, scored.rollout.group, reviser.per_group)
    critiques = {
        i: reviser.critique(scored.responses[i], scored.scores.items[i], scored.scores.verdicts[i]) for i in rows
    }
    candidates = {i: reviser.prompt(scored.responses[i], critique) for i, critique in critiques.items() if critique}
    prompts = {i: prompt for i, prompt in candidates.items() if prompt is not None}
    too_long = len(candidates) - len(prompts)
    metrics = {"revisions": float(len(prompts)), "revisions_too_long": float(too_long)}

    # Sample the revisions, and grade them.
    originals = tuple(prompts)
    if prompts:
        seed = derive_seed(reviser.seed, step, "revise")
        revisions = reviser.sampler(list(prompts.values()), 1, seed, step, None)
        scored, revision_metrics = _append_revisions(scored, revisions, originals, reviser)
        check_missing(scored.scores, reviser.failure_limit)
        metrics |= revision_metrics
    metrics["revise_seconds"] = time.perf_counter() - began
    warnings = ()
    if too_long:
        reason = "the prompt with the response and its critique leaves no room in the context for a new response"
        warnings = (("revisions_too_long", f"{too_long} responses were not revised: {reason}"),)
    return replace(scored, revisions=Revisions(originals, tuple(critiques[i] for i in originals), metrics, warnings))


def _append_revisions(
    scored: ScoredRollout, sampled: Rollout, originals: tuple[int, ...], reviser: Reviser
) -> tuple[ScoredRollout, dict[str, float]]:
    """The rollout with sampled revisions as further responses to the original prompts, and metrics about them."""
    revisions = replace(sampled, prompts=scored.rollout.prompts, group=scored.rollout.group[list(originals)])
    revisions = replace(revisions, behavior_logp=reviser.logp(revisions))
    responses = scored.responses + tuple(
        replace(
            scored.responses[i],
            text=decode_text(reviser.tokenizer, tokens[mask]),
            tokens=int(mask.sum()),
            finish=finish,
        )
        for i, tokens, mask, finish in zip(originals, sampled.tokens, sampled.mask, sampled.finish, strict=True)
    )
    rollout = append_rows(scored.rollout, revisions)
    scores = reviser.scorer(responses, rollout.group, scored.scores)
    gain = (scores.reward[-len(originals) :] - scores.reward[list(originals)]).nanmean()
    kl = k3(sampled.behavior_logp, revisions.behavior_logp)[sampled.mask].mean()
    metrics = {"revision_reward_gain": float(gain), "revision_kl": float(kl)}
    return replace(scored, rollout=rollout, responses=responses, scores=scores), metrics
