"""Item health: numbers by an independent loop, what has to be flagged, and what must not change anything."""

import math
import random
import statistics
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grape_rl.rubric_tools.item_health import ItemSettings, measure_health
from grape_rl.types import Scores, Verdict, failed

N = 24
GROUP = torch.arange(N) // 4
SCORE = [round(random.Random(i).random(), 2) for i in range(N)]
"""What a good item says of 24 responses to 6 prompts."""


def scores_of(columns, category=None, sure=None):
    """Scores of items by name; None is a verdict that failed, and a Verdict is itself."""
    count = len(next(iter(columns.values())))

    def verdict(item, value, i):
        if isinstance(value, Verdict):
            return replace(value, item=item)
        if value is None:
            return failed(item, "unparseable", "no JSON")
        return Verdict(item, float(value), (sure or {}).get(item, [1.0] * count)[i])

    rows = tuple(tuple(verdict(item, column[i], i) for item, column in columns.items()) for i in range(count))
    return Scores(torch.zeros(count), rows, tuple(category or ["all"] * count))


def health(columns, group=GROUP, weights=None, judged=(), **more):
    items = {("all", name): ItemSettings((weights or {}).get(name, 1.0), name in judged) for name in columns}
    return {each.item: each for each in measure_health(scores_of(columns, **more), group, items)}


def kinds(of):
    return [flag.kind for flag in of.flags]


values = st.sampled_from([0.0, 0.1, 0.5, 1.0, None])


@given(st.lists(st.tuples(values, values, st.integers(0, 3)), min_size=1, max_size=14))
@settings(max_examples=60, deadline=None)
def test_numbers_by_a_loop(found):
    columns = {"a": [a for a, _, _ in found], "b": [b for _, b, _ in found]}
    sure = {"a": [(i % 3) / 4 + 0.25 for i in range(len(found))]}
    got = health(columns, torch.tensor([g for *_, g in found]), {"a": -3.0, "b": 1.0}, sure=sure)
    signal = {}
    for name, weight in (("a", 3), ("b", 1)):
        graded = [s for s in columns[name] if s is not None]
        within = []
        for number in range(4):
            held = [s for s, (*_, g) in zip(columns[name], found, strict=True) if s is not None and g == number]
            if len(held) > 1:
                mean = sum(held) / len(held)
                within.append(math.sqrt(sum((s - mean) ** 2 for s in held) / (len(held) - 1)))
        of = got[name]
        assert of.graded == len(graded) and of.missing.get("unparseable", 0) == len(found) - len(graded)
        assert of.mean == pytest.approx(sum(graded) / len(graded) if graded else math.nan, nan_ok=True)
        assert of.spread == pytest.approx(sum(within) / len(within) if within else math.nan, nan_ok=True)
        flat = sum(s < 1e-9 for s in within) / len(within) if within else math.nan
        assert of.flat == pytest.approx(flat, nan_ok=True)
        certain = [c for c, s in zip(sure.get(name, [1.0] * len(found)), columns[name], strict=True) if s is not None]
        if certain:
            assert of.confidence == pytest.approx(sum(certain) / len(certain))
            assert of.confidence_spread == pytest.approx(statistics.pstdev(certain), abs=1e-9)
        signal[name] = weight * of.confidence * of.spread
    total = sum(signal.values())
    for name in columns:
        expected = signal[name] / total if total else math.nan
        assert got[name].share == pytest.approx(expected, nan_ok=True)
    both = [(-a, b) for a, b, _ in found if a is not None and b is not None]
    for name in columns:
        if len({a for a, _ in both}) > 1 and len({b for _, b in both}) > 1:
            assert got[name].rest == pytest.approx(statistics.correlation(*zip(*both, strict=True)), abs=1e-9)
        else:
            assert math.isnan(got[name].rest)


@given(st.permutations(range(N)))
@settings(max_examples=20, deadline=None)
def test_the_order_of_responses_is_no_matter(order):
    columns = {"a": SCORE, "b": [None if i % 5 == 0 else s * s for i, s in enumerate(SCORE)], "c": [1] * N}
    first = health(columns)
    again = health({k: [column[i] for i in order] for k, column in columns.items()}, GROUP[list(order)])
    for name, of in first.items():
        for field in ("graded", "missing", "flat", "mean", "spread", "share", "rest"):
            a, b = getattr(of, field), getattr(again[name], field)
            assert a == b if isinstance(a, dict) else a == pytest.approx(b, nan_ok=True)
        assert kinds(of) == kinds(again[name])


def test_items_that_tell_nothing():
    got = health({"good": SCORE, "all": [1] * N, "none": [0] * N, "half": [0.5] * N}, judged=("good", "half"))
    assert kinds(got["all"]) == ["saturated"] and kinds(got["none"]) == ["unreachable"]
    assert kinds(got["half"]) == kinds(got["good"]) == ["constant confidence"]
    assert got["all"].flat == 1 and got["all"].share == 0 and got["good"].share == 1
    assert math.isnan(got["all"].rest)
    lively = {"good": [0.5 + (i % 5) / 10 for i in range(N)]}
    assert not kinds(health({"good": SCORE}, judged=("good",), sure=lively)["good"])
    few = health({"all": [1] * 9, "none": [0] * 9}, GROUP[:9], judged=("all", "none"))
    assert not kinds(few["all"]) and not kinds(few["none"])
    assert kinds(health({"all": [1] * 10}, GROUP[:10])["all"]) == ["saturated"]


def test_an_item_twice_is_redundant_and_by_rank_too():
    other = [round(random.Random(100 + i).random(), 2) for i in range(N)]
    got = health({"a": SCORE, "b": SCORE, "c": [s**30 for s in SCORE], "d": other, "e": [1 - s for s in SCORE]})
    assert [flag.detail for flag in got["a"].flags if flag.kind == "redundant"] == [
        "with b, correlation 1.00", "with c, correlation 1.00", "with e, correlation -1.00",
    ]  # fmt: skip
    assert not kinds(got["d"])
    assert statistics.correlation(SCORE, [s**30 for s in SCORE]) < 0.9, "only its ranks say so"


def test_a_weight_of_the_wrong_sign():
    noise = [random.Random(200 + i).random() / 2 for i in range(N)]
    bad = [1 - s + n for s, n in zip(SCORE, noise, strict=True)]
    other = [(s + n) / 2 for s, n in zip(SCORE, reversed(noise), strict=True)]
    columns = {"a": SCORE, "b": other, "bad": [min(1.0, s) for s in bad]}
    wrong = health(columns)
    assert "negative correlation" in kinds(wrong["bad"]) and wrong["bad"].rest < -0.4
    right = health(columns, weights={"bad": -1.0})
    assert right["bad"].rest > 0.4 and not any("negative correlation" in kinds(of) for of in right.values())
    # Turning every sign turns everything, and so nothing.
    turned = health(columns, weights={"a": -1.0, "b": -1.0, "bad": 1.0})
    assert [of.rest for of in turned.values()] == pytest.approx([of.rest for of in right.values()])
    monitor = health(columns, weights={"bad": 0.0})
    assert "negative correlation" not in kinds(monitor["bad"]) and math.isnan(monitor["bad"].share)
    assert monitor["a"].rest == pytest.approx(statistics.correlation(SCORE, other)), "a monitor is no part of the rest"


def test_grading_that_fails_where_the_rest_is_low():
    low = [None if s < 0.3 else 0.5 for s in SCORE]
    assert kinds(health({"a": SCORE, "b": low})["b"]) == ["missing on low scores"]
    high = [None if s > 0.7 else 0.5 for s in SCORE]
    assert not kinds(health({"a": SCORE, "b": high})["b"])
    waits = failed("b", "unlabeled", "nobody yet")
    assert not kinds(health({"a": SCORE, "b": [waits if s is None else s for s in low]})["b"])


def test_what_grading_took_and_the_policy_s_own_faults():
    fault = Verdict("a", 0.0, 1.0, "policy_fault", cost=0.5, tokens=3)
    gone = replace(failed("a", "timeout", "late"), cost=0.25, tokens=4)
    of = health({"a": [fault, gone, Verdict("a", 1.0, cost=0.125, tokens=5)]}, torch.tensor([0, 0, 0]))["a"]
    assert (of.policy_fault, dict(of.missing), of.cost, of.tokens) == (1, {"timeout": 1}, 0.875, 12)
    assert of.graded == 2 and of.mean == 0.5


def test_items_of_the_rows_own_are_one_line():
    """Each prompt has its own: the spread is each item's own, not that between them."""
    rows = []
    for i in range(8):
        own = ("x", "y") if i < 4 else ("z",)
        rows.append(tuple(Verdict(f"row/{name}", {"x": 0.0, "y": 1.0, "z": float(i % 2)}[name]) for name in own))
    found = measure_health(Scores(torch.zeros(8), tuple(rows), ("all",) * 8), torch.arange(8) // 4, {})
    (of,) = found
    assert (of.item, of.graded, of.mean) == ("row", 12, 0.5)
    assert of.spread == pytest.approx((0 + 0 + statistics.stdev([0, 1, 0, 1])) / 3) and of.flat == pytest.approx(2 / 3)


def test_categories_are_apart():
    both = ["x"] * 12 + ["y"] * 12
    scores = scores_of({"a": SCORE, "b": [1] * 12 + SCORE[12:]}, category=both)
    found = measure_health(scores, GROUP, {("x", "a"): ItemSettings(1.0, False), ("x", "b"): ItemSettings(1.0, False)})
    assert [(of.category, of.item) for of in found] == [("x", "a"), ("x", "b"), ("y", "a"), ("y", "b")]
    assert kinds(found[1]) == ["saturated"] and "redundant" in kinds(found[3]) and "redundant" not in kinds(found[0])
    assert found[2].mean == pytest.approx(statistics.fmean(SCORE[12:]))
