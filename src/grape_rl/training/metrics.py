"""Every metric that a run can log, with its unit and its meaning."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True)
class Metric:
    """A metric's unit ("" for a pure number) and its meaning."""

    unit: str
    meaning: str


_LOSS = {
    "loss": Metric("", "The objective, before the update."),
    "loss/*": Metric("", "A loss term's share of the objective, its coefficient included, if there are several terms."),
    "entropy": Metric("nats per token", "Mean entropy of the policy's distribution at each token."),
    "learning_rate": Metric("", "Learning rate of the step."),
    "grad_norm": Metric("", "Norm of the policy's gradient before clipping to max_grad_norm."),
    "value_grad_norm": Metric("", "Norm of the value function's gradient before clipping to max_grad_norm."),
}

_POLICY_GRADIENT = {
    "approx_kl": Metric("nats per token", "KL from the behavior policy to the current one: k3 (trpo: exact)."),
    "clip_ratio": Metric("share of tokens", "Tokens on which the clip of the importance ratio is active."),
    "value_clip_ratio": Metric("share of tokens", "Tokens on which the clip of the value loss is active."),
    "perplexity": Metric("", "exp of the mean −log π over the trained tokens of demonstrations."),
    "optimizer_steps": Metric("steps", "Optimizer steps made, if step_kl_limit is set."),
    "early_stop_kl": Metric("nats per token", "The approx_kl that exceeded step_kl_limit and ended the step early."),
    "loss_after": Metric("", "trpo: the objective after the update."),
    "step_accepted": Metric("0 or 1", "trpo: 1 if the line search accepted a step."),
    "backtracks": Metric("steps", "trpo: how often the line search shrank the step."),
    "cg_residual": Metric("", "trpo: norm of the conjugate gradients' residual, relative to the gradient's norm."),
}

_ROLLOUT = {
    "reward": Metric("reward", "Mean reward of the responses sampled in the first round."),
    "reward_std": Metric("reward", "Standard deviation of these rewards."),
    "item/*/*": Metric("score", "Mean score of a rubric item: item/CATEGORY/ITEM."),
    "zero_variance_groups": Metric("share of groups", "Groups whose rewards are all equal, so without advantages."),
    "length": Metric("tokens", "Mean length of a response (of demonstrations: of the trained tokens)."),
    "truncated": Metric("share of responses", "Responses that reached max_tokens without an end token."),
    "tokens": Metric("tokens", "Tokens sampled in the step; of data, tokens read, prompts included."),
    "extra_draws": Metric("rounds", "Further rounds of dynamic sampling."),
    "trained_responses": Metric("responses", "Responses with an advantage."),
    "kl": Metric("nats per token", "KL from the policy to the reference policy at sampling time: k3."),
    "revisions": Metric("responses", "Revisions sampled."),
    "revisions_too_long": Metric("responses", "Responses not revised because the revision prompt does not fit."),
    "revision_reward_gain": Metric("reward", "Mean reward of the revisions minus that of their originals."),
    "revision_kl": Metric(
        "nats per token", "KL of revisions from the policy with the critique to the policy under the prompt alone: k3."
    ),
}

_ADVANTAGE = {
    "explained_variance": Metric("", "1 − var(target − value) / var(target); 1 is a perfect value function."),
    "response_kl": Metric("nats per response", "Σ_t (log π_old − log π_ref) of a response, the mean over responses."),
    "kl_penalty": Metric("reward", "Mean KL penalty that is subtracted from a response's reward."),
    "kl_scale": Metric("", "Factor of the KL coefficients kl and kl_in_reward, adapted toward kl_target."),
    "moving_average": Metric("reward", "Moving average of the rewards, the baseline before this step."),
    "confidence/*/*": Metric("confidence", "Running mean confidence in an item: confidence/CATEGORY/ITEM."),
}

_GRADING = {
    "missing_verdicts": Metric("verdicts", "Verdicts that are missing because the grading failed."),
    "missing_verdicts/*": Metric("verdicts", "Missing verdicts with this status, such as timeout."),
    "imputed_verdicts": Metric("verdicts", "Missing verdicts replaced by the item's mean in the group."),
    "dropped_items": Metric("items", "Items dropped for a group, because over half of their verdicts are missing."),
    "masked_responses": Metric("responses", "Responses without a reward, masked out of the loss."),
    "policy_faults": Metric("verdicts", "Verdicts with the worst score because of a fault of the response."),
    "critic_tokens": Metric("tokens", "Tokens that critics read and generated."),
    "critic_cost": Metric("unit of the critics' prices", "Cost of the critics."),
}

_PREFERENCES = {
    "accuracy": Metric(
        "share", "Pairs, or labeled steps, that the model ranks or classifies correctly; for labels the ROC AUC."
    ),
    "margin": Metric("nats, or score", "Mean reward of chosen (desirable) minus rejected (undesirable) responses."),
    "chosen_reward": Metric("nats, or score", "Mean implied reward log(π/π_ref), or score, of chosen responses."),
    "rejected_reward": Metric("nats, or score", "Mean implied reward log(π/π_ref), or score, of rejected responses."),
    "chosen_length": Metric("tokens", "Mean length of chosen responses."),
    "rejected_length": Metric("tokens", "Mean length of rejected responses."),
    "pairs": Metric("pairs", "Pairs of sampled responses."),
    "unpaired_groups": Metric("groups", "Groups of sampled responses without a pair."),
    "reward_gap": Metric("reward", "Mean graded reward of chosen minus rejected sampled responses."),
    "desirable_share": Metric("share of responses", "Responses labeled desirable."),
    "desirable_reward": Metric("nats", "Mean implied reward log(π/π_ref) of desirable responses."),
    "undesirable_reward": Metric("nats", "Mean implied reward log(π/π_ref) of undesirable responses."),
    "mismatched_gain": Metric("nats", "Mean log(π/π_ref) of responses after other prompts: KTO's KL estimate."),
    "mean_gain": Metric("nats", "Mean log(π/π_ref) of all responses so far: BCO's reward shift."),
    "labeled_steps": Metric("steps", "Labeled steps of the solutions."),
    "probability": Metric("", "Mean probability that a step is right, by the process reward model."),
}

_TIME = {
    "sample_seconds": Metric("seconds", "Sampling of responses."),
    "score_seconds": Metric("seconds", "Grading, after the last response was sampled."),
    "reference_seconds": Metric("seconds", "Log-probs under the reference policy; overlaps with grading."),
    "revise_seconds": Metric("seconds", "Sampling and grading of revisions."),
    "update_seconds": Metric("seconds", "The update of the policy."),
}

METRICS: Mapping[str, Metric] = {
    **_LOSS, **_POLICY_GRADIENT, **_ROLLOUT, **_ADVANTAGE, **_GRADING, **_PREFERENCES, **_TIME
}  # fmt: skip
"""Name or pattern → unit and meaning. ``*`` stands for one or more characters.

The log warns of a metric that is not listed here, and the tests fail on it."""


@cache
def describe_metric(name: str) -> Metric | None:
    """The unit and the meaning of a metric; None if it is not documented.

    >>> describe_metric("loss/value_loss").meaning[:11], describe_metric("spam")
    ('A loss term', None)
    """
    if name in METRICS:
        return METRICS[name]
    patterns = (pattern for pattern in METRICS if "*" in pattern)
    return next((METRICS[p] for p in patterns if re.fullmatch(re.escape(p).replace(r"\*", ".+"), name)), None)
