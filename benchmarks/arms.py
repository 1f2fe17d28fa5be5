"""The arms of the confidence experiment, and the measures that its runs and its page share."""

import torch

import noisy

ARMS = {
    "off": "one",
    "raw": "raw",
    "chance": "chance",
    "calibrated": "calibrated",
    "calibrated_chance": "calibrated_chance",
    "shuffled": "shuffled",
    "oracle": "oracle",
    "clean": "one",
}
"""Kind of confidence (``noisy.KINDS``) of each arm."""
LABELS = 20
"""Labeled verdicts per critic and category for the calibration."""


def true_reward(scores: dict[str, float]) -> float:
    """Reward without noise, from the true scores of a response.

    >>> true_reward({"correct": 1, "format": 1, "brevity": 0})
    0.875
    """
    return sum(weight * scores[name] for name, weight in noisy.TRUE.items()) / sum(noisy.TRUE.values())


def advantage_correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    """Correlation of two advantages, −1 to 1. Both have the mean 0 in every group, so they are not centered again."""
    return float((a * b).sum() / (a.norm() * b.norm()))
