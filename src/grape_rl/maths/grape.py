"""GRAPE reward: the scores of a response on the items of a rubric, weighted by the critic's confidence in each item."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from grape_rl.maths.bounds import NonNegative, UnitInterval
from grape_rl.maths.groups import group_count, group_mean

Weight = Float[Tensor, " k"] | Float[Tensor, "b k"]
"""Weights of the items: one row for all responses, or a row per response with 0 for items of other prompts."""


def confidence_weighted(
    score: Float[Tensor, "b k"],
    confidence: Float[Tensor, "b k"],
    weight: Weight,
    group: Int[Tensor, " b"],
    scope: Literal["group", "batch", "running"] = "group",
    power: NonNegative = 1.0,
    normalizer: Literal["confidence", "none"] = "confidence",
    running: Float[Tensor, " k"] | None = None,
) -> Float[Tensor, " b"]:
    """Confidence-weighted reward: ``Σ_k weight_k c_k score_k / Σ_k |weight_k| c_k``, c_k the mean confidence in item k.

    The responses are graded on K items (one category of prompt); a negative weight marks a pitfall. If prompts have
    their own items, ``weight`` is ``"b k"``: equal within a group, 0 for items of other prompts.

    The paper (arXiv 2509.04501) combines the item scores into one reward and weights each item by the critic's average
    confidence in it across all samples. Our choices:

    - ``scope`` selects the samples of that average: "group" is the prompt's group, "batch" the batch, and "running" the
      earlier batches. With "running", c_k is the argument ``running`` (from ``running_confidence``), and the group's
      mean for an item that has no running mean (NaN: in the first batch, or if only one prompt has the item). c_k is
      always equal for all responses of a group: if each response had its own confidence, the policy could gain by
      making the critic unsure.
    - ``power`` replaces c_k by c_k^power: 1 is the paper's; above 1 sharpens the weights, and below 1 flattens them; 0
      ignores the confidence, which gives the function unweighted.
    - ``normalizer`` "confidence" divides by Σ|w|c: the reward stays in the range of the scores (mirrored for a
      pitfall), and only the ratios of the confidences matter; "none" does not divide: the reward is smaller where the
      critic is less sure, an effect that ``group_relative`` with its scale "group" removes again. A group with
      Σ|w|c = 0 has the reward NaN.
    - A verdict with a NaN score or confidence is missing, never 0. The mean confidence is over valid verdicts. A
      missing score is replaced by the item's mean in the group. An item with under half of its verdicts in a group is
      left out for that group, in numerator and denominator. A response without verdicts on over half of the weight
      (Σ|w| over all items) has the reward NaN.

    Raises:
        ValueError: an infinite score, a negative or infinite confidence, a weight that is not finite, or an unknown
            ``scope`` or ``normalizer``.

    >>> score, confidence = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.9, 0.2], [0.9, 0.4]])
    >>> confidence_weighted(score, confidence, torch.tensor([1.0, 1.0]), torch.tensor([0, 0]))
    tensor([0.7500, 0.2500])
    """
    _refuse_bad(score, confidence, weight)
    valid = ~(score.isnan() | confidence.isnan())
    score, confidence = score.masked_fill(~valid, torch.nan), confidence.masked_fill(~valid, torch.nan)
    match scope:
        case "group":
            certainty = group_mean(confidence, group)
        case "batch":
            certainty = group_mean(confidence, torch.zeros_like(group))
        case "running":
            certainty = group_mean(confidence, group)
            certainty = certainty if running is None else torch.where(running.isnan(), certainty, running)
        case _:
            raise ValueError(f"scope is {scope!r}; it must be 'group', 'batch' or 'running'")
    used = 2 * group_count(score, group) >= group_count(torch.zeros_like(score), group)
    certainty = certainty.pow(power).masked_fill(~used, 0)

    total = item_sum(weight.abs() * certainty)[:, None]
    match normalizer:
        case "confidence":
            # Divided before the product with the scores: the share of a single item is x/x, exactly 1 (or −1), and
            # its reward is the score to the last bit. 0/0 is the NaN of a group without usable items.
            share = weight * certainty / total
        case "none":
            share = (weight * certainty).masked_fill(total == 0, torch.nan)
        case _:
            raise ValueError(f"normalizer is {normalizer!r}; it must be 'confidence' or 'none'")
    filled = torch.where(valid, score, group_mean(score, group)).masked_fill(~used, 0)
    reward = item_sum(share * filled)

    missing = (weight.abs() * ~valid).sum(1)
    # The margin absorbs rounding: of the weights 0.1, 0.2 and 0.3 the first two are exactly half.
    return reward.masked_fill(missing > (0.5 + 1e-6) * weight.abs().sum(-1), torch.nan)


def running_confidence(
    confidence: Float[Tensor, "b k"], running: Float[Tensor, " k"], decay: UnitInterval = 0.9
) -> Float[Tensor, " k"]:
    """Running mean of the confidence in each item: ``decay running + (1 − decay) mean(confidence)``.

    An item without a running mean (NaN) starts at the mean of the batch. Missing confidences (NaN) are left out, and an
    item without any in the batch keeps its running mean. ``decay`` 0 gives the mean of the last batch, 1 the mean
    of the first.

    Raises:
        ValueError: ``decay`` is not in [0, 1].

    >>> running_confidence(torch.tensor([[0.5, 0.25], [0.5, 0.75]]), torch.tensor([0.9, torch.nan]), decay=0.75)
    tensor([0.8000, 0.5000])
    """
    if not 0 <= decay <= 1:
        raise ValueError(f"decay is {decay}; it must be in [0, 1]")
    mean = group_mean(confidence, torch.zeros(len(confidence), dtype=torch.int64, device=confidence.device))[0]
    updated = torch.where(mean.isnan(), running, decay * running + (1 - decay) * mean)
    return torch.where(running.isnan(), mean, updated)


def mean_score(score: Float[Tensor, "b k"], weight: Weight, group: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
    """Weighted mean score of each response: ``Σ_k weight_k score_k / Σ_k |weight_k|``.

    Equal to ``confidence_weighted`` with every confidence 1, including missing verdicts and errors.
    """
    return confidence_weighted(score, torch.where(score.isnan(), score, 1), weight, group)


def unweighted(
    score: Float[Tensor, "b k"], confidence: Float[Tensor, "b k"], weight: Weight, group: Int[Tensor, " b"]
) -> Float[Tensor, " b"]:
    """Weighted mean score of each response, without confidence weighting. A verdict without confidence is missing."""
    return mean_score(torch.where(confidence.isnan(), confidence, score), weight, group)


def item_sum(value: Float[Tensor, "b k"]) -> Float[Tensor, " b"]:
    """Sum over items: ``Σ_k value_k``, added from the first item to the last on a CPU.

    The fixed order makes the result independent, to the bit, of items of weight 0 (those of other prompts in the
    batch). The order of ``Tensor.sum`` depends on the number of columns.
    """
    return value.cumsum(1)[:, -1]


def _refuse_bad(score: Tensor, confidence: Tensor, weight: Tensor) -> None:
    if score.isinf().any():
        raise ValueError("score has an infinite entry; a score must be finite, or NaN where missing")
    if ((confidence < 0) | confidence.isinf()).any():
        raise ValueError("confidence has an entry below 0 or infinite; it must be 0 or more, or NaN where missing")
    if not weight.isfinite().all():
        raise ValueError(f"weight is {weight}; every item's weight must be finite")
