"""What a step tells of its responses: metrics, warnings, and each response as plain data."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from grape_rl.reward.scores import item_table
from grape_rl.rollout.dynamic_sampling import UNREVISED, Revised, zero_variance_groups
from grape_rl.types import Response, Rollout, Scores, Verdict


def rollout_metrics(rollout: Rollout, scores: Scores) -> dict[str, float]:
    """The rollout in numbers: reward, length, the share cut off, and each item's mean score."""
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


def verdict_metrics(verdicts: Sequence[Verdict], kept: Scores, group: Int[Tensor, " b"]) -> dict[str, float]:
    """What became of the step's gradings, all told but what did not happen.

    ``missing``, and of which kind; of those that are kept, the ``imputed`` (read as the item's mean in the group), the
    ``items_left_out`` of a group (under half of their verdicts are there) and the responses ``masked_out`` (no reward);
    ``policy_fault``; and what critics took.
    """
    found = Counter({f"missing/{status}": n for status, n in Counter(v.status for v in verdicts if v.missing).items()})
    known: Counter[tuple[int, str]] = Counter()
    asked: Counter[tuple[int, str]] = Counter()
    rows = list(zip(group.tolist(), kept.verdicts, kept.reward.isnan().tolist(), strict=True))
    for g, row, _ in rows:
        asked.update((g, each.item) for each in row)
        known.update((g, each.item) for each in row if not each.missing)
    for g, row, masked in rows:
        filled = [each for each in row if each.missing and 2 * known[g, each.item] >= asked[g, each.item]]
        found["imputed"] += 0 if masked else len(filled)
    found["items_left_out"] = sum(2 * known[of] < asked[of] for of in asked)
    found["masked_out"] = sum(masked for _, _, masked in rows)
    found["policy_fault"] = sum(each.status == "policy_fault" for each in verdicts)
    found["critic_tokens"] = sum(each.tokens for each in verdicts)
    cost = math.fsum(each.cost for each in verdicts)
    told = {name: float(n) for name, n in found.items() if n} | ({"critic_cost": cost} if cost else {})
    return {"missing": float(sum(each.missing for each in verdicts)), **told}


def warnings_of(
    scores: Scores, rollout: Rollout, verdicts: Sequence[Verdict], told: Mapping[str, float]
) -> tuple[tuple[str, str], ...]:
    """What of a draw to warn of: keys and messages."""
    found: list[tuple[str, str]] = []
    known = scores.reward[~scores.reward.isnan()]
    if len(known) and bool((known == known[0]).all()):
        found.append(("equal_rewards", f"every reward of the step is {float(known[0]):g}: there is nothing to prefer"))
    if all(f == "length" for f in rollout.finish):
        limit = rollout.tokens.shape[1]
        found.append(("all_cut_off", f"every response was cut off at {limit} tokens: raise sampling.max_tokens"))
    if missing := [each for each in verdicts if each.missing]:
        kinds = ", ".join(f"{n} {status}" for status, n in Counter(each.status for each in missing).items())
        made = {
            "imputed": "imputed",
            "items_left_out": "items left out of a group",
            "masked_out": "responses masked out",
        }
        become = "".join(f"; {told[name]:g} {word}" for name, word in made.items() if told.get(name))
        first = f"item {missing[0].item!r}, {missing[0].status}: {missing[0].reasoning}"
        found.append(("missing", f"{len(missing)} verdicts are missing ({kinds}{become}), the first of {first}"))
    return tuple(found)


def records(
    answers: Sequence[Response], scores: Scores, advantage: Float[Tensor, " b"], revised: Revised = UNREVISED
) -> tuple[dict[str, Any], ...]:
    """Each response as plain data: what was asked and answered, its verdicts, reward and advantage.

    A revision says the number of the response that it revises, and by what critique.
    """
    notes = [{"revision_of": of, "critique": by} for of, by in zip(revised.of, revised.critiques, strict=True)]
    return tuple(
        {
            "prompt": answer.prompt,
            "response": answer.text,
            "finish": answer.finish,
            "tokens": answer.tokens,
            "category": category,
            "reward": json_number(reward),
            "advantage": json_number(a),
            "verdicts": [{k: json_number(v) for k, v in asdict(verdict).items()} for verdict in verdicts],
            **note,
        }
        for answer, category, reward, a, verdicts, note in zip(
            answers,
            scores.category,
            scores.reward.tolist(),
            advantage.tolist(),
            scores.verdicts,
            [{}] * (len(answers) - len(notes)) + notes,
            strict=True,
        )
    )


def json_number(value: Any) -> Any:
    """JSON has no NaN: a missing number is null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
