"""GRAPE's reward: a response's scores on the items of a rubric, each item weighted by how sure its critic is of it."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from grape_rl.maths.advantage import group_count, group_mean
from grape_rl.maths.bounds import NonNegative, Share

Weight = Float[Tensor, " k"] | Float[Tensor, "b k"]
"""The items' weights: the same for all responses, or each row its own, 0 for an item that is none of the response's."""


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
    """Reward of each response: ``Σ_k weight_k c_k score_k / Σ_k |weight_k| c_k``, c_k the mean confidence in item k.

    The responses are graded on K items (one category of prompt); a negative weight marks a pitfall. Where prompts have
    items of their own, ``weight`` is ``"b k"``: the same within a group, 0 for the items of other prompts.

    The paper's (arXiv 2509.04501): item scores become one reward, each item weighted by the critic's average confidence
    in it across all samples. Ours:

    - "All samples" (``scope``) are those of the prompt's group, of the batch, or of earlier batches: "running" takes
      the means that they left (``running``, of ``running_confidence``), and the group's for an item that has none (NaN:
      in the first batch, or where the item is one prompt's alone). Each way ``c_k`` is the same for all responses of a
      group: with each response's own confidence, the policy could gain by making its critic unsure.
    - ``power`` sharpens or softens: in the place of c_k stands ``c_k^power``. 1 is the paper's; with 0 confidence
      counts for nothing, and this is ``unweighted``.
    - The result is divided by Σ|w|c, so it stays in the range of the scores (mirrored for a pitfall), and only the
      confidences' proportions matter. With ``normalizer`` "none" nothing is divided: a reward that the critic is less
      sure of is smaller, which ``group_relative`` with its scale "group" takes out again. A group with Σ|w|c = 0 has
      nothing to go by: NaN.
    - A verdict with a NaN score or confidence is missing, never 0. The mean confidence is over valid verdicts. A
      missing score is read as the item's mean in the group; an item with under half of its verdicts in a group is left
      out for that group, above and below the bar; a response without verdicts on over half of the weight (Σ|w| over
      all items) has the reward NaN.

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
            # Divided before it meets the scores: a single item's share is then x/x, exactly 1 (or −1), and its reward
            # the score to the last bit. 0/0 is the NaN of a group with nothing to go by.
            share = weight * certainty / total
        case "none":
            share = (weight * certainty).masked_fill(total == 0, torch.nan)
        case _:
            raise ValueError(f"normalizer is {normalizer!r}; it must be 'confidence' or 'none'")
    filled = torch.where(valid, score, group_mean(score, group)).masked_fill(~used, 0)
    reward = item_sum(share * filled)

    missing = (weight.abs() * ~valid).sum(1)
    # The margin keeps rounding from deciding: of weights 0.1, 0.2 and 0.3 the first two are exactly half.
    return reward.masked_fill(missing > (0.5 + 1e-6) * weight.abs().sum(-1), torch.nan)


def running_confidence(
    confidence: Float[Tensor, "b k"], running: Float[Tensor, " k"], decay: Share = 0.9
) -> Float[Tensor, " k"]:
    """The running mean confidence in each item, a batch further: ``decay running + (1 − decay) mean(confidence)``.

    Where nothing is ``running`` yet (NaN) it is the batch's mean alone. Missing confidences (NaN) are left out, and an
    item without any in the batch keeps its mean. With ``decay`` 0 it is the last batch's mean, with 1 the first's.

    Raises:
        ValueError: ``decay`` is not in [0, 1].

    >>> running_confidence(torch.tensor([[0.5, 0.25], [0.5, 0.75]]), torch.tensor([0.9, torch.nan]), decay=0.75)
    tensor([0.8000, 0.5000])
    """
    if not 0 <= decay <= 1:
        raise ValueError(f"decay is {decay}; it must be in [0, 1]")
    mean = group_mean(confidence, torch.zeros(len(confidence), dtype=torch.int64, device=confidence.device))[0]
    moved = torch.where(mean.isnan(), running, decay * running + (1 - decay) * mean)
    return torch.where(running.isnan(), mean, moved)


def mean_score(score: Float[Tensor, "b k"], weight: Weight, group: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
    """Reward of each response without confidence: ``Σ_k weight_k score_k / Σ_k |weight_k|``.

    ``confidence_weighted`` with every confidence 1: the same rules for missing verdicts, and the same errors.
    """
    return confidence_weighted(score, torch.where(score.isnan(), score, 1), weight, group)


def unweighted(
    score: Float[Tensor, "b k"], confidence: Float[Tensor, "b k"], weight: Weight, group: Int[Tensor, " b"]
) -> Float[Tensor, " b"]:
    """``mean_score``: the rubric's weighted mean, whatever the confidence. A missing verdict stays missing."""
    return mean_score(torch.where(confidence.isnan(), confidence, score), weight, group)


def item_sum(value: Float[Tensor, "b k"]) -> Float[Tensor, " b"]:
    """``Σ_k value_k``, added up from the first item to the last on a CPU.

    So items of weight 0 (those of other prompts, in a batch) change no bit of it; ``sum`` takes another order for
    another number of columns.
    """
    return value.cumsum(1)[:, -1]


def _refuse_bad(score: Tensor, confidence: Tensor, weight: Tensor) -> None:
    if score.isinf().any():
        raise ValueError("score has an infinite entry; a score must be finite, or NaN where missing")
    if ((confidence < 0) | confidence.isinf()).any():
        raise ValueError("confidence has an entry below 0 or infinite; it must be 0 or more, or NaN where missing")
    if not weight.isfinite().all():
        raise ValueError(f"weight is {weight}; every item's weight must be finite")
