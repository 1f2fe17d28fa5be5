"""Responses written anew by the policy itself, with a critique of the old ones before it.

A revision y′ ~ π(·|x, y, critique) becomes one more response to x. What is credited to its tokens, and what they are
trained under, is the prompt x alone, as if they had been drawn from π(·|x): docs/revise.md says what that leaves out.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from grape_rl.data.chat import decode_text
from grape_rl.data.messages import Messages
from grape_rl.maths.divergence import k3
from grape_rl.maths.groups import group_rank
from grape_rl.reward.item import Item
from grape_rl.reward.scores import Scorer, check_missing
from grape_rl.rollout.dynamic_sampling import Revised, ScoredRollout, appended
from grape_rl.rollout.source import Sampler, step_seed
from grape_rl.types import Response, Rollout, Sequences, Verdict

Critique = Callable[[Response, Sequence[Item], Sequence[Verdict]], str]
"""A response, its rubric items and their verdicts → what is held against it; "" where nothing is."""


def revision_prompt(prompt: str | Messages, response: str, critique: str, request: str) -> str | Messages:
    """What the policy goes on from as it revises: the prompt, the response, and the request with the critique in it.

    Of messages, the response is the assistant's and the request the user's. Plain text is continued, so there the
    prompt stands once more at the end: a revision goes on from it as a response does.

    >>> revision_prompt("1+1=", "3", "It is even.", "{critique} Again:")
    '1+1=3\\n\\nIt is even. Again:\\n\\n1+1='
    """
    asked = request.replace("{critique}", critique)
    if isinstance(prompt, str):
        return f"{prompt}{response}\n\n{asked}\n\n{prompt}"
    return [*prompt, {"role": "assistant", "content": response}, {"role": "user", "content": asked}]


def worst(reward: Float[Tensor, " b"], group: Int[Tensor, " b"], per_group: int) -> list[int]:
    """The ``per_group`` responses of each group with the lowest rewards; of equal ones the earliest. None is missing.

    >>> import torch
    >>> worst(torch.tensor([1.0, 0.0, torch.nan, 2.0]), torch.tensor([0, 0, 0, 1]), 1)
    [1, 3]
    """
    return ((group_rank(-reward, group) < per_group) & ~reward.isnan()).nonzero().flatten().tolist()


def revised(
    drawn: ScoredRollout,
    critique: Critique,
    tokens: Callable[[Response, str], Int[Tensor, " p"] | None],
    sampler: Sampler,
    logp: Callable[[Sequences], Float[Tensor, "b t"]],
    scorer: Scorer,
    tokenizer: Any,
    per_group: int,
    seed: int,
    failure_limit: float,
) -> ScoredRollout:
    """The draw with revisions of the worst ``per_group`` of each group behind its responses, in the same groups.

    Not revised are responses whose reward is missing, that no ``critique`` is to be had of, and those for which
    ``tokens`` (the prompt to revise by; None where it is too long) has no room, which the log is told of. ``logp`` is
    what the policy says under the prompts of the draw: the behavior policy of a revision, as the loss will see it.
    The verdicts of the draw stay as they are, and the rewards are made anew of all: a weight that the scorer takes from
    a group's verdicts, such as the mean confidence, is then the same for a revision and for what it revises.

    Raises:
        RuntimeError: more than ``failure_limit`` of the verdicts, old and new, are missing.
    """
    began = time.perf_counter()
    rollout, step = drawn.rollout, drawn.rollout.version
    chosen = worst(drawn.scores.reward, rollout.group, per_group)
    said = {i: critique(drawn.answers[i], drawn.scores.items[i], drawn.scores.verdicts[i]) for i in chosen}
    asked = {i: tokens(drawn.answers[i], by) for i, by in said.items() if by}
    prompts = {i: prompt for i, prompt in asked.items() if prompt is not None}
    metrics = {"revised": float(len(prompts)), "revision_too_long": float(len(asked) - len(prompts))}
    if prompts:
        written = sampler(list(prompts.values()), 1, step_seed(seed, step, "revise"), step, None)
        drawn, more = _joined(drawn, written, tuple(prompts), logp, scorer, tokenizer)
        check_missing(drawn.scores, failure_limit)
        metrics |= more
    metrics["revise_seconds"] = time.perf_counter() - began
    return replace(drawn, revised=Revised(tuple(prompts), tuple(said[i] for i in prompts), metrics, _warnings(metrics)))


def _joined(
    drawn: ScoredRollout,
    written: Rollout,
    of: tuple[int, ...],
    logp: Callable[[Sequences], Float[Tensor, "b t"]],
    scorer: Scorer,
    tokenizer: Any,
) -> tuple[ScoredRollout, dict[str, float]]:
    """The draw with what was written as further responses to its own prompts, and what there is to tell of them."""
    revisions = replace(written, prompts=drawn.rollout.prompts, group=drawn.rollout.group[list(of)])
    revisions = replace(revisions, behavior_logp=logp(revisions))
    answers = tuple(
        replace(drawn.answers[i], text=decode_text(tokenizer, tokens[mask]), tokens=int(mask.sum()), finish=finish)
        for i, tokens, mask, finish in zip(of, written.tokens, written.mask, written.finish, strict=True)
    )
    rollout = appended(drawn.rollout, revisions)
    answers = drawn.answers + answers
    scores = scorer(answers, rollout.group, drawn.scores)
    gain = (scores.reward[-len(of) :] - scores.reward[list(of)]).nanmean()
    away = k3(written.behavior_logp, revisions.behavior_logp)[written.mask].mean()
    told = {"revision_gain": float(gain), "revision_kl": float(away)}
    return replace(drawn, rollout=rollout, answers=answers, scores=scores), told


def _warnings(metrics: dict[str, float]) -> tuple[tuple[str, str], ...]:
    if not (count := int(metrics["revision_too_long"])):
        return ()
    why = "with the response and its critique the prompt leaves no room in the context for a new one"
    return (("revision_too_long", f"{count} responses were not revised: {why}"),)
