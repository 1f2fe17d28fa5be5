"""Sampled preferences: pairs of the policy's own responses, ranked by their rewards."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from grape_rl.config.config import Config
from grape_rl.maths.divergence import k3
from grape_rl.model.logprobs import select_rows
from grape_rl.model.reference_logprobs import LogprobFunction, reference_logprobs
from grape_rl.model.sampler import SamplingParams
from grape_rl.rollout.collect import CollectedRollout, collect_rollout
from grape_rl.rollout.dynamic_sampling import single_draw
from grape_rl.rollout.records import response_records
from grape_rl.rollout.scored_rollout import response_ids
from grape_rl.setup.revisions import with_revisions
from grape_rl.setup.sampling import policy_sampler
from grape_rl.setup.setup import Setup, StartWarnings
from grape_rl.sources.method_function import MethodFunction
from grape_rl.sources.preferences import experience_from_pair_sequences, pair_reference, reads_reference
from grape_rl.sources.sampled import (
    VERDICT_INPUTS,
    SampledSource,
    make_rollout_settings,
    make_rollout_worker,
    reads_start,
)
from grape_rl.sources.source import ForwardPasses
from grape_rl.training.experience import ExperienceSource
from grape_rl.training.objective import PAIR_FIELDS
from grape_rl.training.pairs import PairExperience, two_pass_pair_gradient
from grape_rl.types import Rollout, Sequences

PAIR_ROLES = ("none", "chosen", "rejected", "both")
"""Roles of a response in the pairs of its step."""

PAIRING_INPUTS = frozenset({"reward", "group", "response", "revision_of"})
"""Inputs of ``pairing``."""


@dataclass(frozen=True)
class SampledPreferences(SampledSource):
    """Pairs of the policy's own responses: ``aggregate`` makes rewards, ``pairing`` ranks them into pairs.

    The losses compare log-probs of the pair with each other and with the reference, never with the policy that sampled.
    So top-k and top-p may cut the sampler.
    """

    pairing: Callable[..., Tensor]
    aggregate: Callable[..., Tensor]
    smallest_group: int = 2

    @property
    def loss_fields(self) -> frozenset[str]:
        """Fields of a pair."""
        return frozenset(PAIR_FIELDS)

    @property
    def functions(self) -> tuple[MethodFunction, ...]:
        """The functions that make a batch, in the order in which they run."""
        return (MethodFunction(self.aggregate, VERDICT_INPUTS), MethodFunction(self.pairing, PAIRING_INPUTS))

    def check(self, config: Config, options: Mapping[str, Any]) -> None:
        """Check that responses can be graded and compared."""
        super().check(config, options)
        if config.sampling.temperature == 0:
            raise ValueError(f"sampling: at temperature 0 all responses are equal: {config.method} would learn nothing")

    def experiences(self, setup: Setup) -> tuple[ExperienceSource, StartWarnings]:
        """The pairs of each step, from graded responses."""
        sampling = SamplingParams(**setup.config.sampling.model_dump())
        start = None
        if reads_start(setup):
            start = reference_logprobs(setup.reference, setup.forward(sampling.temperature))
        sampler = policy_sampler(setup, sampling)
        strategy = with_revisions(setup, single_draw, sampler, sampling)
        collect = partial(
            collect_rollout, make_rollout_worker(setup, sampler, strategy, start), make_rollout_settings(setup.config)
        )
        pairing = MethodFunction(self.pairing, PAIRING_INPUTS).bind(setup.options)
        reference, model = pair_reference(setup, sampling.temperature)
        return pair_source(collect, pairing, reference, model), []

    def forward_passes(self, setup: Setup, sequences: Sequences) -> ForwardPasses:
        """A pass over all responses by the initial policy; passes over one pair per prompt by reference and policy."""
        first = torch.arange(len(sequences.prompts)) * setup.config.group_size
        pairs = select_rows(sequences, torch.stack([first, first + 1], dim=1).flatten())
        start, reference = int(reads_start(setup)), int(reads_reference(setup))
        passes = reference + (setup.update is two_pass_pair_gradient)
        return ForwardPasses(pairs, (sequences,) * start + (pairs,) * passes, start + reference)

    def training_temperature(self, config: Config) -> float:
        """The sampling temperature.

        A loss of pairs can climb the policy's reward with a KL penalty, as the square of rpo does, only if that policy
        sampled them.
        """
        return config.sampling.temperature


def pair_source(
    collect: Callable[[int], CollectedRollout],
    pairing: Callable[..., Int[Tensor, "p 2"]],
    reference: LogprobFunction | None,
    reference_model: nn.Module | None = None,
) -> Callable[[int], PairExperience]:
    """A source of preferences between the policy's own responses: sample → grade → pair.

    A response without a reward is in no pair. A step without a pair logs a warning, and its update changes nothing.
    The logged KL covers all responses, because the pairs contain only the best and the worst.

    Args:
        collect: a step's number → its graded responses.
        pairing: rewards, groups, equal responses and revisions → the chosen and the rejected row of each pair.
        reference: log-probs that the loss compares with; None for a loss that reads none.
        reference_model: the model that ``reference`` runs.

    Raises (the source): as ``collect_rollout``.
    """

    def source(step: int) -> PairExperience:
        collected = collect(step)
        scored = collected.scored
        began = time.perf_counter()
        # Pair the responses.
        rollout, scores = scored.rollout, scored.scores
        reward = scores.reward.float()  # as the loss will read it: two that differ by less are equal
        pairs = pairing(reward, rollout.group, response_ids(rollout), scored.revision_of)
        experience = experience_from_pair_sequences(
            _stack_pairs(rollout, pairs), reward[pairs], reference if len(pairs) else None, reference_model
        )
        # Metrics and warnings.
        metrics = experience.metrics | collected.metrics
        metrics["pairs"] = float(len(pairs))
        metrics["unpaired_groups"] = float(len(rollout.prompts) - len(rollout.group[pairs[:, 0]].unique()))
        metrics["reward_gap"] = float((reward[pairs[:, 0]] - reward[pairs[:, 1]]).mean())
        if (start := scored.reference_logp) is not None:
            metrics["kl"] = float(k3(rollout.behavior_logp, start)[scored.sampled_mask].mean())
        metrics["reference_seconds"] += time.perf_counter() - began
        warnings = collected.warnings
        if not len(pairs):
            warnings += (("no_pairs", "no two responses of the step make a pair: the step changes nothing"),)
        # Records of all responses, with their roles in the pairs.
        chosen, rejected = (torch.isin(torch.arange(len(reward)), side).tolist() for side in pairs.T)
        roles = [PAIR_ROLES[c + 2 * r] for c, r in zip(chosen, rejected, strict=True)]
        no_advantage = torch.full_like(reward, torch.nan)
        unpaired = response_records(scored.responses, scores, no_advantage, scored.revisions)
        paired = tuple({**record, "role": role} for record, role in zip(unpaired, roles, strict=True))
        return replace(experience, metrics=metrics, warnings=warnings, records=paired)

    return source


def _stack_pairs(rollout: Rollout, pairs: Int[Tensor, "p 2"]) -> Sequences:
    """The pairs as one batch, the chosen responses in the first half of the rows, in order."""
    rows = pairs.T.flatten()
    prompts = tuple(rollout.prompts[g] for g in rollout.group[pairs[:, 0]].tolist())
    return Sequences(prompts, rollout.tokens[rows], rollout.mask[rows], torch.arange(len(pairs)).repeat(2))
