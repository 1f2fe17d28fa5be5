"""The confidence experiment: its simulated critics, their calibration, and the tables of its results."""

import json
import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import arms
import confidence
import confidence_page
import noisy
from grape_rl.maths.grape import unweighted
from grape_rl.reward.grading import assign_items, grade
from grape_rl.reward.rubric import load_rubric
from grape_rl.reward.scores import rubric_scorer
from grape_rl.types import Response

PLACES = [(category, item) for category in noisy.FLIP_RATES for item in noisy.ITEMS]


def answers(texts, prompt="Sort: 3, 1", gold="['1', '3']"):
    return [Response(prompt, text, {"task": "number_sorting", "answer": gold}, 9, "stop") for text in texts]


def test_a_critic_errs_at_its_flip_rate_and_is_deterministic():
    critics, other = noisy.Critics(3), noisy.Critics(3, "oracle")
    for category, item in PLACES:
        flips = [critics.flipped(category, item, "p", str(i)) for i in range(2000)]
        rate = noisy.FLIP_RATES[category][noisy.ITEMS.index(item)]
        assert statistics.fmean(flips) == pytest.approx(rate, abs=4 * math.sqrt(rate * (1 - rate) / 2000))
        assert flips == [other.flipped(category, item, "p", str(i)) for i in range(2000)]
        assert not any(noisy.Critics(3, noisy=False).flipped(category, item, "p", str(i)) for i in range(50))
    one, two = ([noisy.Critics(s).flipped(*PLACES[4], "p", str(i)) for i in range(2000)] for s in (3, 4))
    assert one != two


def test_stated_confidence_is_overconfident_and_rises_with_accuracy():
    critics = [noisy.Critics(seed) for seed in range(40)]
    said = {}
    for category, item in PLACES:
        rate = noisy.FLIP_RATES[category][noisy.ITEMS.index(item)]
        values = [each.stated(category, item, "p", str(i)) for each in critics for i in range(20)]
        assert all(0.5 <= value <= 1 for value in values)
        assert statistics.fmean(values) > 1 - rate
        assert statistics.fmean(values) == pytest.approx(noisy.LOWEST + noisy.SPREAD * (1 - 2 * rate), abs=0.02)
        said.setdefault(rate, []).append(statistics.fmean(values))
    means = [statistics.fmean(said[rate]) for rate in sorted(said)]
    assert means == sorted(means, reverse=True)


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 1)), min_size=1, max_size=12))
def test_pooling_is_isotonic_regression(points):
    """By its min–max formula: the largest over starts of the smallest mean over ends. Equal places, one height."""
    points = sorted(points, key=lambda each: (each[0], -each[1]))
    knots, heights = noisy.pooled([float(x) for x, _ in points], [float(y) for _, y in points])
    fit = noisy.Critics(0, knots=knots, heights=heights)
    places = sorted({x for x, _ in points})

    def mean(low, high):
        return statistics.fmean(y for x, y in points if low <= x <= high)

    for x in places:
        expected = max(min(mean(low, high) for high in places if high >= x) for low in places if low <= x)
        assert fit.calibrated(float(x)) == pytest.approx(expected)
    assert list(heights) == sorted(set(heights))


def test_calibrated_confidence_is_the_accuracy_on_average():
    found = []
    for seed in range(8):
        fit = noisy.Critics(seed, "calibrated", True, *noisy.fitted(seed, 100))
        values = [
            (fit.confidence(*place, "p", str(i)), not fit.flipped(*place, "p", str(i)))
            for place in PLACES
            for i in range(100)
        ]
        found.append(statistics.fmean(c for c, _ in values) - statistics.fmean(right for _, right in values))
    assert abs(statistics.fmean(found)) < 0.015


def test_kinds_of_confidence():
    knots, heights = noisy.fitted(5, 20)
    given_ = {kind: noisy.Critics(5, kind, True, knots, heights) for kind in noisy.KINDS}
    for category in noisy.FLIP_RATES:
        place = {item: (category, item, "p", "t") for item in noisy.ITEMS}
        found = {kind: [each.confidence(*place[item]) for item in noisy.ITEMS] for kind, each in given_.items()}
        assert found["one"] == [1.0] * 7
        assert found["oracle"] == [1 - 2 * rate for rate in noisy.FLIP_RATES[category]]
        assert found["chance"] == [2 * c - 1 for c in found["raw"]]
        assert found["calibrated_chance"] == [max(0.0, 2 * c - 1) for c in found["calibrated"]]
        assert sorted(found["shuffled"]) == sorted(found["calibrated_chance"])
    assert noisy.shuffled(5, "ordering") != noisy.shuffled(6, "ordering")
    with pytest.raises(ValueError, match="kind is 'sure'; it must be one of one, raw"):
        noisy.Critics(5, "sure").confidence(*PLACES[0], "p", "t")


def test_the_rubric_of_an_arm_rewards_its_critics_and_monitors_the_truth(tmp_path):
    texts = [f"Answer: ['{i}', '3']" for i in range(10)] + ["Let me see. Answer: ['1', '3']", "no"]
    group = torch.zeros(len(texts), dtype=torch.int64)
    found = {}
    for arm in ("off", "raw", "clean"):
        confidence.write_rubric(tmp_path / arm, arm, seed=2)
        rubric = load_rubric(tmp_path / arm / "rubric.json", ["noisy.py"])
        verdicts = [each.verdicts for each in grade(assign_items(rubric, answers(texts)))]
        found[arm] = [{each.item: each for each in line} for line in verdicts]
        if arm == "clean":
            rewards = rubric_scorer(rubric, unweighted)(answers(texts), group).reward.tolist()
    true = [{name: line[name].score for name in noisy.TRUE} for line in found["off"]]
    assert [each["correct"] for each in true] == [0, 1, *[0] * 8, 1, 0]
    assert [each["format"] for each in true] == [1] * 10 + [0, 0]
    assert [each["brevity"] for each in true] == [1] * 10 + [0, 1]
    assert rewards == pytest.approx([arms.true_reward(each) for each in true])
    critics = noisy.Critics(2)
    for text, off, raw, clean, facts in zip(texts, *found.values(), true, strict=True):
        for item in noisy.ITEMS:
            fact = facts["correct" if item in noisy.CRITICS else item.removeprefix("judge_")]
            place = ("ordering", item, "Sort: 3, 1", text)
            assert clean[item].score == fact and off[item].score == raw[item].score
            assert off[item].score == (1 - fact if critics.flipped(*place) else fact)
            assert (off[item].confidence, raw[item].confidence) == (1.0, critics.stated(*place))


def result(arm, seed, reward):
    told = {"correct": reward / 2, "format": 1.0, "brevity": 1.0, "reward": reward}
    curve = {"reward": [0.25, reward], "correct": [0.1, 0.2], "agreement": [0.5, 0.25]}
    where = {"date": "1 May", "machine": "M", "cores": 2, "threads": 1, "torch": "2", "python": "3"}
    more = {"held_out": {"before": told, "after": told}, "curve": curve, "seconds": 9.0, "where": where}
    return confidence.run_identity(arm, seed) | more


def test_differences_are_paired_by_seed_and_incomplete_seeds_are_left_out():
    found = [
        result(arm, seed, 0.5 + seed / 10 + 0.01 * (arm == "raw") * (seed + 1))
        for seed in range(3)
        for arm in arms.ARMS
    ]
    found.append(result("off", 3, 0.9))
    table = confidence_page.results_table(confidence_page.paired(found))
    lines = {line.split(" | ")[0]: line for line in table.split("\n")}
    # 0.01, 0.02, 0.03: mean 0.02, deviation 0.01, t 4.303 for two degrees of freedom
    assert f"+0.020 ± {4.3027 * 0.01 / math.sqrt(3):.3f}" in lines["| `raw`"]
    assert lines["| `oracle`"].count("+0.000 ± 0.000") == 3
    assert "3 seeds (0, 1, 2)" in table and lines["| `off`"].count("±") == 0


@pytest.mark.parametrize(("freedom", "expected"), [(2, 4.3027), (9, 2.2622), (15, 2.1314)])
def test_students_t(freedom, expected):
    assert confidence_page.t_quantile(freedom) == pytest.approx(expected, abs=1e-4)


def test_correlation_with_the_true_advantages(monkeypatch):
    monkeypatch.setattr(confidence_page, "PROMPTS", 40)
    found = confidence_page.agreements(1)
    assert found["`shuffled`"] < found["`off`"] < found["`oracle`"] < 1
    assert found["`off`"] < found["`raw`"] < found["`raw`, power 4"]
    one = torch.tensor([1.0, -1.0, 0.5, -0.5])
    assert arms.advantage_correlation(one, one) == pytest.approx(1)
    assert arms.advantage_correlation(one, -one) == pytest.approx(-1)


def test_unknown_arms_and_commands_and_missing_seeds_raise(tmp_path):
    with pytest.raises(ValueError, match="unknown arm 'sure'"):
        confidence.main(["run", "--arms", "off,sure"])
    with pytest.raises(ValueError, match="name one of run and report"):
        confidence.main(["look"])
    (tmp_path / "runs.jsonl").write_text(json.dumps(result("off", 0, 0.5)) + "\n")
    with pytest.raises(ValueError, match="0 seeds have all arms"):
        confidence_page.report(tmp_path / "runs.jsonl", tmp_path / "page.md")
