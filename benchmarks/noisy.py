"""Simulated critics with known error rates: seven per category, overconfident.

A run has a copy of this file (as noisy.py) in the folder of its rubric, with critics.json: the seed, the kind of
confidence (``KINDS``) and the calibration. The rubric's items call the functions at the end. Every number is a
deterministic function of the seed, the prompt, the text of the response and the item: the same response gets the same
verdict in every arm and at every step.
"""

import hashlib
import json
import random
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from statistics import NormalDist
from typing import Any

from grape_rl.reward.check.checks import Check, Exact, Length, ReasoningGym, Regex, check_verdict
from grape_rl.types import Response, Verdict

CATEGORIES = {"chain_sum": "arithmetic", "spell_backward": "spelling", "number_sorting": "ordering"}
"""Category of each task."""
CRITICS = ("judge_a", "judge_b", "judge_c", "judge_d", "judge_e")
"""The critics of correctness."""
ITEMS = (*CRITICS, "judge_format", "judge_brevity")
TRUE = {"correct": 6.0, "format": 1.0, "brevity": 1.0}
"""The true items and their weights in the true reward."""
WEIGHTS = {**dict.fromkeys(CRITICS, TRUE["correct"] / len(CRITICS)), "judge_format": 1.0, "judge_brevity": 1.0}
FLIP_RATES = {
    "arithmetic": (0.05, 0.30, 0.40, 0.45, 0.45, 0.15, 0.40),
    "spelling": (0.45, 0.45, 0.05, 0.30, 0.40, 0.30, 0.15),
    "ordering": (0.30, 0.40, 0.45, 0.45, 0.05, 0.40, 0.30),
}
"""Flip rate of each of ``ITEMS``: a critic that is accurate in one category is inaccurate in another."""
LOWEST, SPREAD, BIAS, JITTER = 0.76, 0.22, 0.03, 0.04
"""Stated confidence: LOWEST + SPREAD (1 − 2 rate), plus noise of scales BIAS and JITTER.

The bias is drawn per critic and category, the jitter per verdict.
"""
KINDS = ("one", "raw", "chance", "calibrated", "calibrated_chance", "shuffled", "oracle")
ANSWER = "Answer: (.*)"


@dataclass(frozen=True)
class Critics:
    """The critics of one run. ``knots`` and ``heights`` are the calibration, a step function."""

    seed: int
    kind: str = "raw"
    noisy: bool = True
    knots: tuple[float, ...] = ()
    heights: tuple[float, ...] = ()

    def flipped(self, category: str, item: str, prompt: str, text: str) -> bool:
        """True if this verdict is flipped."""
        rate = FLIP_RATES[category][ITEMS.index(item)]
        return self.noisy and _uniform(self.seed, "flip", category, item, prompt, text) < rate

    def stated(self, category: str, item: str, prompt: str, text: str) -> float:
        """Stated confidence of the critic: overconfident, compressed into a narrow range, and noisy."""
        rate = FLIP_RATES[category][ITEMS.index(item)]
        bias = BIAS * _normal(self.seed, "bias", category, item)
        jitter = JITTER * _normal(self.seed, "jitter", category, item, prompt, text)
        return min(1.0, max(0.5, LOWEST + SPREAD * (1 - 2 * rate) + bias + jitter))

    def confidence(self, category: str, item: str, prompt: str, text: str) -> float:
        """Confidence of the verdict, by ``kind``."""
        match self.kind:
            case "one":
                return 1.0
            case "oracle":
                return 1 - 2 * FLIP_RATES[category][ITEMS.index(item)]
            case "raw":
                return self.stated(category, item, prompt, text)
            case "chance":
                return 2 * self.stated(category, item, prompt, text) - 1
            case "calibrated":
                return self.calibrated(self.stated(category, item, prompt, text))
            case "calibrated_chance":
                return max(0.0, 2 * self.calibrated(self.stated(category, item, prompt, text)) - 1)
            case "shuffled":
                other = shuffled(self.seed, category)[item]
                return max(0.0, 2 * self.calibrated(self.stated(category, other, prompt, text)) - 1)
            case _:
                raise ValueError(f"kind is {self.kind!r}; it must be one of {', '.join(KINDS)}")

    def calibrated(self, stated: float) -> float:
        """Calibrated confidence: the estimated share of correct verdicts at a stated confidence."""
        return self.heights[max(0, bisect_right(self.knots, stated) - 1)]


def fitted(seed: int, labels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Isotonic fit to ``labels`` labeled verdicts per critic and category, as knots and heights.

    There is one curve for all critics and categories: only the stated confidence distinguishes them. No labeled
    response is a training response.
    """
    critics = Critics(seed)
    points: list[tuple[float, float]] = []
    for category in FLIP_RATES:
        for item in ITEMS:
            for number in range(labels):
                verdict_id = (category, item, "labeled", str(number))
                points.append((critics.stated(*verdict_id), float(not critics.flipped(*verdict_id))))
    points.sort(key=lambda point: (point[0], -point[1]))  # so that equal confidences share a pool
    return pooled([stated for stated, _ in points], [right for _, right in points])


def pooled(x: Sequence[float], values: Sequence[float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Least-squares non-decreasing step function, by pool adjacent violators; ``x`` is in ascending order.

    >>> pooled([0.1, 0.2, 0.3, 0.4], [0.0, 1.0, 0.0, 1.0])
    ((0.1, 0.2, 0.4), (0.0, 0.5, 1.0))
    """
    blocks: list[tuple[float, float, int]] = []
    for knot, value in zip(x, values, strict=True):
        start, total, count = knot, value, 1
        while blocks and blocks[-1][1] * count >= total * blocks[-1][2]:
            before = blocks.pop()
            start, total, count = before[0], total + before[1], count + before[2]
        blocks.append((start, total, count))
    return tuple(start for start, _, _ in blocks), tuple(total / count for _, total, count in blocks)


@cache
def shuffled(seed: int, category: str) -> Mapping[str, str]:
    """Permutation of the items whose confidences are exchanged: drawn once per seed and category."""
    order = list(ITEMS)
    random.Random(f"{seed} shuffled {category}").shuffle(order)
    return dict(zip(ITEMS, order, strict=True))


def rubric() -> dict[str, Any]:
    """The rubric: the critics' items give the reward, and the true items are monitored only."""
    categories: dict[str, Any] = {}
    for task, category in CATEGORIES.items():
        judged = [{"id": item, "weight": WEIGHTS[item], "check": _call(item)} for item in ITEMS]
        true = [
            {"id": item, "weight": TRUE[item], "role": "monitor", "check": check.model_dump(exclude_none=True)}
            for item, check in TRUTH[category].items()
        ]
        categories[category] = {"when": {"task": task}, "items": judged + true}
    return {"schema": "grape-rubric/1", "categories": categories}


def _call(item: str) -> dict[str, str]:
    return {"type": "python", "call": f"noisy.py:{item}"}


TRUTH: Mapping[str, Mapping[str, Check]] = {
    category: {
        "correct": Exact(type="exact", extract=ANSWER, gold="${row.answer}")
        if category == "ordering"  # reasoning-gym lets every number be off by one
        else ReasoningGym(type="reasoning_gym", extract=ANSWER),
        "format": Regex(type="regex", pattern=r"\AAnswer: \[" if category == "ordering" else r"\AAnswer: \S"),
        "brevity": Length(type="length", max_characters=29 if category == "ordering" else 12),
    }
    for category in FLIP_RATES
}
"""The demo's checks, the ground truth of the critics."""


def judged(item: str, response: Response) -> Verdict:
    """Verdict of a critic: the true score, or the flipped one, with a confidence."""
    category = CATEGORIES[response.row["task"]]
    true = "correct" if item in CRITICS else item.removeprefix("judge_")
    truth = check_verdict(item, TRUTH[category][true], response)
    if truth.missing:
        return truth
    verdict_id = (category, item, response.prompt, response.text)
    critics = _critics()
    score = 1 - truth.score if critics.flipped(*verdict_id) else truth.score
    return Verdict(item, score, critics.confidence(*verdict_id))


@cache
def _critics() -> Critics:
    given: dict[str, Any] = json.loads(Path(__file__).with_name("critics.json").read_text(encoding="utf-8"))
    given |= {name: tuple(given[name]) for name in ("knots", "heights")}
    return Critics(**given)


def _uniform(*key: object) -> float:
    digest = hashlib.blake2b("\x1f".join(map(str, key)).encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") + 0.5) / 2**64


def _normal(*key: object) -> float:
    return NormalDist().inv_cdf(min(_uniform(*key), 1 - 2**-53))


Judge = Callable[[Response], Verdict]
judge_a: Judge = partial(judged, "judge_a")
judge_b: Judge = partial(judged, "judge_b")
judge_c: Judge = partial(judged, "judge_c")
judge_d: Judge = partial(judged, "judge_d")
judge_e: Judge = partial(judged, "judge_e")
judge_format: Judge = partial(judged, "judge_format")
judge_brevity: Judge = partial(judged, "judge_brevity")
