"""On-policy experience: responses of the current policy, with advantages.

The policy that samples is the behavior policy. The first minibatch of a step is on-policy. With ``epochs`` or
``minibatches`` above 1, later updates of the step are off-policy: the policy has changed since it sampled, and the
loss corrects for it with the importance ratio ``exp(logp − behavior_logp)``.
"""

from collections.abc import Callable

from torch import Tensor

from grape_rl.data.order import derive_seed
from grape_rl.maths.divergence import k3
from grape_rl.rollout.advantages import REWARD_ONLY, AdvantageInputs, estimate_advantages
from grape_rl.rollout.collect import RolloutSettings, RolloutWorker, collect_rollout
from grape_rl.rollout.experience import TokenExperience
from grape_rl.rollout.records import response_records


def on_policy_source(
    worker: RolloutWorker,
    settings: RolloutSettings,
    advantage: Callable[..., Tensor],
    inputs: AdvantageInputs = REWARD_ONLY,
) -> Callable[[int], TokenExperience]:
    """A function from the step (from 0) to its experience: sample → score → estimate advantages.

    ``estimate_advantages`` lists what ``advantage`` may read. A response without an advantage (NaN: its reward is
    missing, or the method leaves it out) is masked out of the loss. ``trained_responses`` counts the rest.

    Raises (the returned function):
        RuntimeError: more than ``failure_limit`` of the verdicts are missing.
    """

    def source(step: int) -> TokenExperience:
        collected = collect_rollout(worker, settings, step)
        scored = collected.scored
        seed = derive_seed(settings.seed, step, "advantage")
        estimate = estimate_advantages(advantage, inputs, scored, settings.max_tokens, seed)

        trained = ~estimate.advantage.isnan()
        metrics = collected.metrics | {"trained_responses": float(trained.sum())}
        if scored.reference_logp is not None:
            kl = k3(scored.rollout.behavior_logp, scored.reference_logp)
            metrics["kl"] = float(kl[scored.sampled_mask].mean())
        warnings = collected.warnings
        if not bool(trained.any()):
            warnings += (("no_advantages", "no response of this step has an advantage, so the policy is not updated"),)
        records = response_records(scored.responses, scored.scores, estimate.advantage, scored.revisions)
        memory = {**estimate.memory, **scored.scores.memory}
        return TokenExperience(scored.rollout, estimate.batch, metrics | estimate.metrics, warnings, records, memory)

    return source
