import functools
import itertools
import math
import random

import pytest
import torch

from grape_rl.maths.advantage import group_relative
from grape_rl.maths.grape import confidence_weighted, mean_score
from grape_rl.reward.grading import assign_items, grade
from grape_rl.reward.reward_function import function_scorer
from grape_rl.reward.rubric import load_rubric
from grape_rl.reward.scores import check_missing, item_table, rubric_scorer
from grape_rl.types import Response, Scores, Verdict, failed

# Each item reads its verdict off the data row: a number, or None to raise.
CHECKS = """
from grape_rl.types import Verdict

def read(response, item):
    value = response.row["says"][response.text][item]
    if value is None:
        raise OSError("the disk is full")
    return Verdict(item, float(value[0]), float(value[1])) if isinstance(value, tuple) else value

def a(response): return read(response, "a")
def b(response): return read(response, "b")
def c(response): return read(response, "c")
"""


def rubric_of(tmp_path, **categories):
    """A rubric with these items in each category, for the rows whose ``kind`` is the category's name."""
    (tmp_path / "checks.py").write_text(CHECKS)
    lines = ["schema: grape-rubric/1", "categories:"]
    for name, items in categories.items():
        lines += [f"  {name}:", f"    when: {{kind: {name}}}", "    items:"]
        lines += [
            f"      - {{id: {i}, {more}, check: {{type: python, call: 'checks.py:{i}'}}}}" for i, more in items.items()
        ]
    (tmp_path / "rubric.yaml").write_text("\n".join(lines))
    return load_rubric(tmp_path / "rubric.yaml", ["checks.py"])


def responses_of(says, kind="sums"):
    return [Response("p", name, {"kind": kind, "says": says}, 5, "stop") for name in says]


def by_mean(score, confidence, weight, group):
    return mean_score(score, weight, group)


def groups(*ids):
    return torch.tensor(ids)


def test_what_is_compared_is_made_of_the_same_verdicts_beside_the_reward(tmp_path):
    """Category by category, behind the same gates, and missing where a gate's verdict is."""
    rubric = rubric_of(tmp_path, sums={"a": "weight: 3", "b": "weight: 1, gate: true"}, words={"c": "weight: 1"})
    rows = responses_of({"x": {"a": 1, "b": 1}, "y": {"a": 0.5, "b": 0}, "z": {"a": 0, "b": None}})
    rows += responses_of({"u": {"c": 0.25}, "v": {"c": 1}}, "words")
    group = groups(0, 0, 0, 1, 1)
    seen = []

    def first_item(score, confidence, weight, group):
        seen.append((weight.tolist(), group.tolist()))
        return score[:, 0] - 10

    alone = rubric_scorer(rubric, by_mean)(rows, group)
    both = rubric_scorer(rubric, by_mean, first_item)(rows, group)
    torch.testing.assert_close(both.reward, alone.reward, rtol=0, atol=0, equal_nan=True)
    assert alone.compared is None and both.compared.dtype == torch.float64
    assert both.compared.tolist() == pytest.approx([-9, -10, math.nan, -9.75, -9], nan_ok=True)
    assert seen == [([3, 1], [0, 0, 0]), ([1], [1, 1])]


def test_rewards_by_hand_with_a_pitfall_and_a_monitor(tmp_path):
    rubric = rubric_of(tmp_path, sums={"a": "weight: 3", "b": "weight: -1", "c": "weight: 9, role: monitor"})
    says = {"x": {"a": 1, "b": 0, "c": 1}, "y": {"a": 0.5, "b": 1, "c": 0}, "z": {"a": 0, "b": 0.5, "c": None}}
    scores = rubric_scorer(rubric, by_mean)(responses_of(says), groups(0, 0, 0))
    assert scores.reward.tolist() == pytest.approx([3 / 4, 0.5 / 4, -0.5 / 4], abs=1e-15)
    assert scores.category == ("sums",) * 3
    assert [[v.item for v in row] for row in scores.verdicts] == [["a", "b", "c"]] * 3
    assert scores.verdicts[0][2].score == 1 and scores.verdicts[2][2].missing


def test_confidence_reaches_the_reward(tmp_path):
    rubric = rubric_of(tmp_path, sums={"a": "weight: 2", "b": "weight: 1"})
    says = {"x": {"a": (1, 0.25), "b": (0, 1)}, "y": {"a": (0, 0.75), "b": (1, 1)}}
    grape = rubric_scorer(rubric, confidence_weighted)(responses_of(says), groups(4, 4))
    # mean confidence 1/2 in a and 1 in b: both items weigh 1
    assert grape.reward.tolist() == [0.5, 0.5]
    plain = rubric_scorer(rubric, by_mean)(responses_of(says), groups(4, 4))
    assert plain.reward.tolist() == pytest.approx([2 / 3, 1 / 3], abs=1e-15)


def test_the_scope_of_the_mean_confidence_is_the_callers(tmp_path):
    rubric = rubric_of(tmp_path, sums={"a": "weight: 1", "b": "weight: 1"})
    says = {"x": {"a": (1, 0.2), "b": 0}, "y": {"a": (1, 0.6), "b": 0}}
    reward = rubric_scorer(rubric, functools.partial(confidence_weighted, scope="batch"))(
        responses_of(says), groups(0, 1)
    ).reward
    assert reward.tolist() == pytest.approx([0.4 / 1.4] * 2, abs=1e-15)


def gated_by_hand(scores, items):
    """The definition, response by response: a closed gate takes the others' positive items to 0."""
    out = []
    for row in scores:
        new = dict(row)
        for gate, (_, is_gate) in items.items():
            if is_gate and row[gate] == 0:
                for other, (weight, _) in items.items():
                    if other != gate and weight > 0:
                        new[other] = 0
        out.append(sum(items[k][0] * new[k] for k in items) / sum(abs(w) for w, _ in items.values()))
    return out


@pytest.mark.parametrize("gates", list(itertools.product([False, True], repeat=2)))
def test_gates_against_the_definition(tmp_path, gates):
    items = {"a": (2, gates[0]), "b": (3, gates[1]), "c": (-1, False)}
    rubric = rubric_of(tmp_path, sums={k: f"weight: {w}, gate: {str(g).lower()}" for k, (w, g) in items.items()})
    rows = [dict(zip("abc", row, strict=True)) for row in itertools.product([0, 0.25, 1], repeat=3)]
    says = {str(i): row for i, row in enumerate(rows)}
    scores = rubric_scorer(rubric, by_mean)(responses_of(says), torch.zeros(27, dtype=torch.long))
    assert scores.reward.tolist() == pytest.approx(gated_by_hand(rows, items), abs=1e-15)
    assert [[v.score for v in row] for row in scores.verdicts] == [list(row.values()) for row in rows]  # as graded


def test_a_closed_gate_settles_what_is_missing_and_behind_a_missing_gate_the_reward_is_missing(tmp_path):
    rubric = rubric_of(tmp_path, sums={"a": "weight: 1, gate: true", "b": "weight: 1"})
    reward = rubric_scorer(rubric, confidence_weighted)
    says = {"x": {"a": 0, "b": None}, "y": {"a": 1, "b": (1, 0.5)}, "z": {"a": 0.5, "b": (1, 0.5)}}
    # b's missing verdict would be read as its mean, which is not 0; and c̄ of b stays 1/2
    assert reward(responses_of(says), groups(0, 0, 0)).reward.tolist() == pytest.approx([0, 1, 2 / 3], abs=1e-15)
    says = {"x": {"a": None, "b": 1}, "y": {"a": 1, "b": 0}, "z": {"a": 0.5, "b": 0}}
    # whether x's gate is open is not known: were it read as open, a response could gain by breaking the gate's check
    found = reward(responses_of(says), groups(0, 0, 0)).reward.tolist()
    assert math.isnan(found[0]) and found[1:] == pytest.approx([0.5, 0.25], abs=1e-15)
    says = {"x": {"a": 0, "b": None}, "y": {"a": 0, "b": None}}
    assert reward(responses_of(says), groups(0, 0)).reward.tolist() == [0, 0]


def test_one_bad_row_is_missing_and_changes_nothing_for_the_other_prompts(tmp_path):
    rubric = rubric_of(tmp_path, sums={"a": "weight: 1"})
    says = {"w": {"a": 1}, "x": {"a": 0}, "y": {"a": None}, "z": {"a": 0.5}}
    scores = rubric_scorer(rubric, confidence_weighted)(responses_of(says), groups(0, 0, 1, 0))
    assert scores.reward.tolist()[:2] == [1, 0] and scores.reward[3] == 0.5
    assert math.isnan(scores.reward[2])
    assert scores.verdicts[2][0].status == "infrastructure"
    assert scores.verdicts[2][0].reasoning == "OSError: the disk is full"


@pytest.mark.parametrize("weight", [1, 0.3, 7])
@pytest.mark.parametrize("aggregate", [confidence_weighted, by_mean])
def test_one_item_is_grpo_to_the_last_bit(tmp_path, weight, aggregate):
    draw = random.Random(0)
    raw = [draw.random() for _ in range(64)]
    rubric = rubric_of(tmp_path, sums={"a": f"weight: {weight}"})
    group = torch.tensor([draw.randrange(8) for _ in raw])
    says = {str(i): {"a": (score, 0.7)} for i, score in enumerate(raw)}
    reward = rubric_scorer(rubric, aggregate)(responses_of(says), group).reward
    wanted = torch.tensor(raw, dtype=torch.float64)
    assert torch.equal(reward, wanted)
    assert torch.equal(group_relative(reward, group), group_relative(wanted, group))


def test_categories_are_graded_apart_and_the_order_of_responses_is_of_no_account(tmp_path):
    rubric = rubric_of(
        tmp_path,
        sums={"a": "weight: 1", "b": "weight: 2"},
        words={"b": "weight: 1", "c": "weight: -3", "a": "weight: 2"},
    )
    draw = random.Random(1)
    says = {str(i): {k: (draw.random(), draw.random()) for k in "abc"} for i in range(24)}
    says["3"]["b"] = says["20"]["c"] = None
    numbers = [int(name) // 4 for name in says]
    batch = [
        Response("p", name, {"kind": "sums" if n % 2 else "words", "says": says}, 5, "stop")
        for name, n in zip(says, numbers, strict=True)
    ]
    score = rubric_scorer(rubric, confidence_weighted)
    together = score(batch, torch.tensor(numbers))
    assert together.category[:5] == ("words",) * 4 + ("sums",)
    for n in range(6):  # each prompt's group alone
        rows = [i for i, number in enumerate(numbers) if number == n]
        alone = score([batch[i] for i in rows], torch.tensor([numbers[i] for i in rows]))
        assert torch.allclose(alone.reward, together.reward[rows], rtol=0, atol=1e-15, equal_nan=True)
        assert str(alone.verdicts) == str(tuple(together.verdicts[i] for i in rows))
    order = draw.sample(range(24), 24)
    mixed = score([batch[i] for i in order], torch.tensor([numbers[i] for i in order]))
    assert torch.allclose(mixed.reward, together.reward[order], rtol=0, atol=1e-15, equal_nan=True)
    assert mixed.category == tuple(together.category[i] for i in order)


def test_a_group_in_two_categories_or_a_row_in_none_is_an_error(tmp_path):
    rubric = rubric_of(tmp_path, sums={"a": "weight: 1"}, words={"a": "weight: 1"})
    says = {"x": {"a": 1}}
    batch = responses_of(says) + responses_of(says, "words")
    with pytest.raises(ValueError, match="group 3 has responses of the categories 'sums' and 'words'"):
        rubric_scorer(rubric, confidence_weighted)(batch, groups(3, 3))
    with pytest.raises(ValueError, match="belongs to no category"):
        grade(assign_items(rubric, responses_of(says, "other")))


def test_the_policy_s_own_fault_scores_the_worst_on_a_pitfall_too(tmp_path):
    rubric = rubric_of(tmp_path, sums={"a": "weight: 2", "b": "weight: -3"})
    fault = '\ndef b(response): return Verdict("b", 0.0, 0.5, status="policy_fault")\na = b\n'
    (tmp_path / "checks.py").write_text(CHECKS + fault)
    rubric = load_rubric(tmp_path / "rubric.yaml", ["checks.py"])
    scores = rubric_scorer(rubric, confidence_weighted)(responses_of({"x": {}}), groups(0))
    ((good, bad),) = scores.verdicts
    assert (good.score, good.confidence, good.status) == (0, 1, "policy_fault")
    assert (bad.score, bad.confidence, bad.status) == (1, 1, "policy_fault")
    assert scores.reward.tolist() == [-3 / 5]


def test_behind_a_closed_gate_what_is_missing_takes_the_confidence_of_its_own_group(tmp_path):
    rubric = rubric_of(tmp_path, sums={"a": "weight: 1, gate: true", "b": "weight: 1", "c": "weight: -1"})
    says = {
        "x": {"a": 0, "b": None, "c": 1},
        "y": {"a": 1, "b": (1, 0.2), "c": 0},
        "z": {"a": 1, "b": (0, 0.2), "c": 1},
    }
    others = {"u": {"a": 1, "b": (0.5, 1), "c": 1}, "v": {"a": 1, "b": (0.3, 1), "c": 1}}
    score = rubric_scorer(rubric, confidence_weighted)
    alone = score(responses_of(says), groups(0, 0, 0)).reward
    together = score(responses_of(says | others), groups(0, 0, 0, 1, 1)).reward
    assert torch.equal(together[:3], alone)
    # b weighs 0.2 in the group
    assert alone.tolist() == pytest.approx([-1 / 2.2, 1.2 / 2.2, 0], abs=1e-15)


def test_item_table():
    verdicts = (
        (Verdict("a", 1.0), Verdict("b", 0.0)),
        (Verdict("a", 0.5), failed("b", "timeout", "")),
        (failed("a", "timeout", ""), failed("b", "refused", "")),
        (Verdict("a", 0.0, status="policy_fault"),),
        (failed("a", "refused", ""),),
    )
    table = item_table(Scores(torch.zeros(5), verdicts, ("s", "s", "s", "s", "t")))
    assert [(x.category, x.item, x.graded, x.missing) for x in table] == [
        ("s", "a", 3, {"timeout": 1}),
        ("s", "b", 1, {"timeout": 1, "refused": 1}),
        ("t", "a", 0, {"refused": 1}),
    ]
    assert table[0].mean == 0.5 and table[1].mean == 0 and math.isnan(table[2].mean)


def test_too_many_missing_verdicts_stop_the_run():
    good, bad = (Verdict("a", 1.0),), (failed("a", "timeout", "no\nanswer"),)
    other = (failed("b", "refused", "would not"),)

    def scores(*rows):
        return Scores(torch.zeros(len(rows)), tuple(rows), ("s",) * len(rows))

    assert check_missing(scores(*[good] * 9, bad)) == 1  # at the limit, not over it
    assert check_missing(scores(good, bad), limit=0.5) == 1
    assert check_missing(scores()) == 0
    assert check_missing(scores(*[good] * 3), limit=0.0) == 0
    with pytest.raises(RuntimeError) as caught:
        check_missing(scores(*[good] * 5, bad, bad, other))
    assert str(caught.value) == (
        "3 of 8 verdicts (38%) are missing, above the limit of 10%; 2 of them of item 'a', mostly timeout: no answer"
    )
    rows = [(failed("a", "timeout", reason),) for reason in "rrst"] + [(failed("b", "refused", "q"),)] * 3
    with pytest.raises(RuntimeError, match=r"4 of them of item 'a', mostly timeout: r$"):  # a's own reason
        check_missing(scores(*rows))


def test_verdicts_that_are_known_stay_and_rewards_are_made_anew_of_all(tmp_path):
    """As if all had been graded at once: the mean confidence of a group is over old and new."""
    says = {
        "x": {"a": (0.5, 0.9), "b": (1, 0.2)}, "y": {"a": (1, 0.1), "b": (0, 0.6)},
        "z": {"a": (0, 0.4), "b": (0.5, 1)}, "w": {"a": (1, 1), "b": (0.25, 0)},
    }  # fmt: skip
    rubric = rubric_of(tmp_path, sums={"a": "weight: 2", "b": "weight: 1"})
    score = rubric_scorer(rubric, confidence_weighted, functools.partial(confidence_weighted, scope="batch"))
    rows, group = responses_of(says), groups(0, 1, 0, 1)
    known = score(rows[:2], group[:2])
    whole, later = score(rows, group), score(rows, group, known)
    assert torch.equal(later.reward, whole.reward) and torch.equal(later.compared, whole.compared)
    assert (later.verdicts, later.category) == (whole.verdicts, whole.category)
    assert not torch.equal(later.reward[:2], known.reward), "or the test says nothing"


def test_a_function_is_asked_of_what_is_new_alone():
    asked = []
    score = function_scorer(lambda completions: asked.append(completions) or [float(len(c)) for c in completions], "f")
    rows = [Response("p", text, {}, 5, "stop") for text in ("a", "bb", "ccc")]
    known = score(rows[:2], groups(0, 0))
    found = score(rows, groups(0, 0, 0), known)
    assert asked == [["a", "bb"], ["ccc"]]
    assert found.reward.tolist() == [1, 2, 3] and len(found.verdicts) == len(found.category) == 3
