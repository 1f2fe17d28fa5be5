"""Pairs of the policy's own responses: sampled, scored, and set against each other by their rewards."""

import time
from collections.abc import Callable

import torch
from jaxtyping import Int
from torch import Tensor, nn

from grape_rl.maths.divergence import k3
from grape_rl.model.reference_logprobs import LogprobFunction
from grape_rl.rollout.collect import CollectedRollout
from grape_rl.rollout.records import response_records
from grape_rl.rollout.scored_rollout import response_ids
from grape_rl.training.pairs import PairExperience, paired
from grape_rl.types import Rollout, Sequences

ROLES = ("none", "chosen", "rejected", "both")
"""What a response was in the pairs of its step."""


def sampled_preferences(
    draw: Callable[[int], CollectedRollout],
    pairing: Callable[..., Int[Tensor, "p 2"]],
    reference: LogprobFunction | None,
    reference_model: nn.Module | None = None,
) -> Callable[[int], PairExperience]:
    """A source of preferences between the policy's own responses: sample → score → pair.

    ``pairing`` is given the rewards, the groups, which responses are the same, and which revises which. A response
    whose reward is missing is in no pair. ``reference`` gives the log-probs that the loss compares with (None for a
    loss that does not), and ``reference_model`` is the policy that they are of. What ``draw`` knows of every response
    under the model at the start is for the KL alone (that of the pairs would be of the best and the worst). A step
    without a pair says so, and has none.

    Raises (the source): as ``collect_rollout``.
    """

    def source(step: int) -> PairExperience:
        found = draw(step)
        began = time.perf_counter()
        rollout, scores = found.scored.rollout, found.scored.scores
        reward = scores.reward.float()  # as the loss will see it: two that differ by less are equal
        pairs = pairing(reward, rollout.group, response_ids(rollout), found.scored.revision_of)
        made = paired(_stacked(rollout, pairs), reward[pairs], reference if len(pairs) else None)
        metrics = made.metrics | found.metrics
        metrics["pairs"] = float(len(pairs))
        metrics["unpaired_groups"] = float(len(rollout.prompts) - len(rollout.group[pairs[:, 0]].unique()))
        metrics["reward_gap"] = float((reward[pairs[:, 0]] - reward[pairs[:, 1]]).mean())
        if (start := found.scored.reference_logp) is not None:
            metrics["kl"] = float(k3(rollout.behavior_logp, start)[found.scored.sampled_mask].mean())
        metrics["reference_seconds"] += time.perf_counter() - began
        warnings = found.warnings
        if not len(pairs):
            warnings += (("no_pairs", "no two responses of the step make a pair: the step changes nothing"),)
        chosen, rejected = (torch.isin(torch.arange(len(reward)), side).tolist() for side in pairs.T)
        roles = (ROLES[c + 2 * r] for c, r in zip(chosen, rejected, strict=True))
        told = response_records(
            found.scored.responses, scores, torch.full_like(reward, torch.nan), found.scored.revisions
        )
        with_roles = tuple({**each, "role": role} for each, role in zip(told, roles, strict=True))
        return PairExperience(made.sequences, made.batch, metrics, warnings, with_roles, reference_model)

    return source


def _stacked(rollout: Rollout, pairs: Int[Tensor, "p 2"]) -> Sequences:
    """The pairs as one batch, the chosen responses in the first half of the rows, in order."""
    rows = pairs.T.flatten()
    prompts = tuple(rollout.prompts[g] for g in rollout.group[pairs[:, 0]].tolist())
    return Sequences(prompts, rollout.tokens[rows], rollout.mask[rows], torch.arange(len(pairs)).repeat(2))
