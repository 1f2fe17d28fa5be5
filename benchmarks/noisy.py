"""Critics whose noise is known: seven a category, each right about as often as its rate says, and sure of itself.

A run has this file beside its rubric (as noisy.py) with critics.json: the seed, how confidence is made (``KINDS``), and
the calibration. The rubric's items call the functions at the end. Every number here is a function of the seed, the
prompt, the response's text and the item: the same response is judged the same way in every arm, whenever it comes up.
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
"""Each task's category."""
CRITICS = ("judge_a", "judge_b", "judge_c", "judge_d", "judge_e")
"""Those that judge whether the answer is right."""
ITEMS = (*CRITICS, "judge_format", "judge_brevity")
TRUE = {"correct": 6.0, "format": 1.0, "brevity": 1.0}
"""The true items, and what each is worth."""
WEIGHTS = {**dict.fromkeys(CRITICS, TRUE["correct"] / len(CRITICS)), "judge_format": 1.0, "judge_brevity": 1.0}
FLIPPED = {
    "arithmetic": (0.05, 0.30, 0.40, 0.45, 0.45, 0.15, 0.40),
    "spelling": (0.45, 0.45, 0.05, 0.30, 0.40, 0.30, 0.15),
    "ordering": (0.30, 0.40, 0.45, 0.45, 0.05, 0.40, 0.30),
}
"""How often each of ``ITEMS`` is judged the wrong way round: a critic good at one kind of task is bad at another."""
LOWEST, SPREAD, BIAS, JITTER = 0.76, 0.22, 0.03, 0.04
"""What critics say: LOWEST + SPREAD (1 − 2 flipped), off by BIAS (a critic and category) and JITTER (a verdict)."""
KINDS = ("one", "raw", "chance", "calibrated", "calibrated_chance", "shuffled", "oracle")
ANSWER = "Answer: (.*)"


@dataclass(frozen=True)
class Critics:
    """The critics of one run. ``knots`` and ``heights`` are the steps of the calibration: above a knot, its height."""

    seed: int
    kind: str = "raw"
    noisy: bool = True
    knots: tuple[float, ...] = ()
    heights: tuple[float, ...] = ()

    def flipped(self, category: str, item: str, prompt: str, text: str) -> bool:
        """Whether this verdict is the wrong way round."""
        rate = FLIPPED[category][ITEMS.index(item)]
        return self.noisy and _uniform(self.seed, "flip", category, item, prompt, text) < rate

    def said(self, category: str, item: str, prompt: str, text: str) -> float:
        """The confidence that the critic states: overconfident, squeezed, and only roughly what it should be."""
        rate = FLIPPED[category][ITEMS.index(item)]
        bias = BIAS * _normal(self.seed, "bias", category, item)
        jitter = JITTER * _normal(self.seed, "jitter", category, item, prompt, text)
        return min(1.0, max(0.5, LOWEST + SPREAD * (1 - 2 * rate) + bias + jitter))

    def confidence(self, category: str, item: str, prompt: str, text: str) -> float:
        """The confidence that the verdict is given, by ``kind``."""
        match self.kind:
            case "one":
                return 1.0
            case "oracle":
                return 1 - 2 * FLIPPED[category][ITEMS.index(item)]
            case "raw":
                return self.said(category, item, prompt, text)
            case "chance":
                return 2 * self.said(category, item, prompt, text) - 1
            case "calibrated":
                return self.calibrated(self.said(category, item, prompt, text))
            case "calibrated_chance":
                return max(0.0, 2 * self.calibrated(self.said(category, item, prompt, text)) - 1)
            case "shuffled":
                other = shuffled(self.seed, category)[item]
                return max(0.0, 2 * self.calibrated(self.said(category, other, prompt, text)) - 1)
            case _:
                raise ValueError(f"kind is {self.kind!r}; it must be one of {', '.join(KINDS)}")

    def calibrated(self, said: float) -> float:
        """The share of verdicts of such a confidence that are right, by the labeled ones."""
        return self.heights[max(0, bisect_right(self.knots, said) - 1)]


def fitted(seed: int, labels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """An isotonic fit to ``labels`` labeled verdicts of each critic in each category, all taken together.

    One curve for all: what a critic of a category is worth is told by its confidence alone. The labeled responses are
    none of those that are trained on.
    """
    critics = Critics(seed)
    found: list[tuple[float, float]] = []
    for category in FLIPPED:
        for item in ITEMS:
            for number in range(labels):
                asked = (category, item, "labeled", str(number))
                found.append((critics.said(*asked), float(not critics.flipped(*asked))))
    found.sort(key=lambda each: (each[0], -each[1]))  # so that equal confidences fall into one pool
    return pooled([said for said, _ in found], [right for _, right in found])


def pooled(at: Sequence[float], values: Sequence[float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The rising steps nearest to the values (squares), by pooling adjacent violators; ``at`` is in rising order.

    >>> pooled([0.1, 0.2, 0.3, 0.4], [0.0, 1.0, 0.0, 1.0])
    ((0.1, 0.2, 0.4), (0.0, 0.5, 1.0))
    """
    blocks: list[tuple[float, float, int]] = []
    for knot, value in zip(at, values, strict=True):
        start, total, count = knot, value, 1
        while blocks and blocks[-1][1] * count >= total * blocks[-1][2]:
            before = blocks.pop()
            start, total, count = before[0], total + before[1], count + before[2]
        blocks.append((start, total, count))
    return tuple(start for start, _, _ in blocks), tuple(total / count for _, total, count in blocks)


@cache
def shuffled(seed: int, category: str) -> Mapping[str, str]:
    """Whose confidence each item is given where they are shuffled: drawn once for a seed and a category."""
    order = list(ITEMS)
    random.Random(f"{seed} shuffled {category}").shuffle(order)
    return dict(zip(ITEMS, order, strict=True))


def rubric() -> dict[str, Any]:
    """The rubric: the critics' items are rewarded, the true ones reported only."""
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
    for category in FLIPPED
}
"""The demo's checks: what the critics judge."""


def judged(item: str, response: Response) -> Verdict:
    """A critic's verdict: the truth, or the other way round, with a confidence."""
    category = CATEGORIES[response.row["task"]]
    true = "correct" if item in CRITICS else item.removeprefix("judge_")
    found = check_verdict(item, TRUTH[category][true], response)
    if found.missing:
        return found
    asked = (category, item, response.prompt, response.text)
    critics = _critics()
    score = 1 - found.score if critics.flipped(*asked) else found.score
    return Verdict(item, score, critics.confidence(*asked))


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
