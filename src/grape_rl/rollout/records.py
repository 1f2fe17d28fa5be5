"""Log records of a rollout: metrics, warnings, and each response as plain data."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from grape_rl.reward.scores import item_table
from grape_rl.rollout.dynamic_sampling import zero_variance_groups
from grape_rl.rollout.scored_rollout import NO_REVISIONS, Revisions
from grape_rl.types import Response, Rollout, Scores, Verdict


def rollout_metrics(rollout: Rollout, scores: Scores) -> dict[str, float]:
    """Metrics of a rollout: reward, length, the share of truncated responses, and the mean score of each item."""
    known = scores.reward[~scores.reward.isnan()]
    metrics = {
        "reward": float(known.mean()) if len(known) else math.nan,
        "reward_std": float(known.std(correction=0)) if len(known) else math.nan,
        "zero_variance_groups": float(zero_variance_groups(scores.reward, rollout.group).float().mean()),
        "length": float(rollout.mask.sum(dim=1).float().mean()),
        "truncated": sum(f == "length" for f in rollout.finish) / len(rollout.finish),
        "tokens": float(rollout.mask.sum()),
    }
    for item in item_table(scores):
        metrics[f"item/{item.category}/{item.item}"] = item.mean
    return metrics


def verdict_metrics(verdicts: Sequence[Verdict], scores: Scores, group: Int[Tensor, " b"]) -> dict[str, float]:
    """Counts of missing verdicts and of their consequences, and the critics' usage.

    Numbers that are 0 are left out, except ``missing_verdicts``. ``verdicts`` are all verdicts of the step; ``scores``
    and ``group`` belong to the responses that dynamic sampling kept. In these, an item with verdicts for fewer than
    half of a group's responses is dropped for that group, and other missing verdicts are imputed by the item's mean.
    """
    statuses = Counter(verdict.status for verdict in verdicts if verdict.missing)
    counts = Counter({f"missing_verdicts/{status}": n for status, n in statuses.items()})

    # Verdicts of each item in each group: all of them, and those that are not missing.
    total: Counter[tuple[int, str]] = Counter()
    known: Counter[tuple[int, str]] = Counter()
    rows = list(zip(group.tolist(), scores.verdicts, scores.reward.isnan().tolist(), strict=True))
    for g, row, _ in rows:
        total.update((g, verdict.item) for verdict in row)
        known.update((g, verdict.item) for verdict in row if not verdict.missing)
    for g, row, masked in rows:
        imputed = [v for v in row if v.missing and 2 * known[g, v.item] >= total[g, v.item]]
        counts["imputed_verdicts"] += 0 if masked else len(imputed)
    counts["dropped_items"] = sum(2 * known[key] < total[key] for key in total)
    counts["masked_responses"] = sum(masked for _, _, masked in rows)

    counts["policy_faults"] = sum(verdict.status == "policy_fault" for verdict in verdicts)
    counts["critic_tokens"] = sum(verdict.tokens for verdict in verdicts)
    cost = math.fsum(verdict.cost for verdict in verdicts)
    metrics = {name: float(n) for name, n in counts.items() if n} | ({"critic_cost": cost} if cost else {})
    return {"missing_verdicts": float(sum(verdict.missing for verdict in verdicts)), **metrics}


def rollout_warnings(
    scores: Scores, rollout: Rollout, verdicts: Sequence[Verdict], metrics: Mapping[str, float]
) -> tuple[tuple[str, str], ...]:
    """Keys and messages of warnings about a rollout. ``metrics`` are its ``verdict_metrics``."""
    warnings: list[tuple[str, str]] = []
    known = scores.reward[~scores.reward.isnan()]
    if len(known) and bool((known == known[0]).all()):
        warnings.append(("equal_rewards", f"every reward of the step is {float(known[0]):g}: no response is preferred"))
    if all(f == "length" for f in rollout.finish):
        limit = rollout.tokens.shape[1]
        warnings.append(("all_truncated", f"every response was truncated at {limit} tokens: raise sampling.max_tokens"))
    if missing := [verdict for verdict in verdicts if verdict.missing]:
        statuses = ", ".join(f"{n} {status}" for status, n in Counter(v.status for v in missing).items())
        consequences = {
            "imputed_verdicts": "imputed",
            "dropped_items": "items dropped from a group",
            "masked_responses": "responses masked out",
        }
        counts = "".join(f"; {metrics[name]:g} {text}" for name, text in consequences.items() if metrics.get(name))
        first = f"item {missing[0].item!r}, {missing[0].status}: {missing[0].reasoning}"
        warnings.append(
            ("missing_verdicts", f"{len(missing)} verdicts are missing ({statuses}{counts}), the first: {first}")
        )
    return tuple(warnings)


def response_records(
    responses: Sequence[Response],
    scores: Scores,
    advantage: Float[Tensor, " b"],
    revisions: Revisions = NO_REVISIONS,
) -> tuple[dict[str, Any], ...]:
    """Each response as plain data: prompt, text, verdicts, reward and advantage.

    A revision also has ``revision_of``, the index of the response that it revises, and its ``critique``.
    """
    notes = [
        {"revision_of": original, "critique": critique}
        for original, critique in zip(revisions.originals, revisions.critiques, strict=True)
    ]
    return tuple(
        {
            "prompt": response.prompt,
            "response": response.text,
            "finish": response.finish,
            "tokens": response.tokens,
            "category": category,
            "reward": json_number(reward),
            "advantage": json_number(a),
            "verdicts": [{k: json_number(v) for k, v in asdict(verdict).items()} for verdict in verdicts],
            **note,
        }
        for response, category, reward, a, verdicts, note in zip(
            responses,
            scores.category,
            scores.reward.tolist(),
            advantage.tolist(),
            scores.verdicts,
            [{}] * (len(responses) - len(notes)) + notes,
            strict=True,
        )
    )


def json_number(value: Any) -> Any:
    """The value, or None for a float that is not finite: JSON has no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
