"""Items that rows bring along: how they are read and refused, and what they do to rewards, beside other prompts'."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grape_rl.maths.gdpo import items_normalized
from grape_rl.maths.grape import confidence_weighted
from grape_rl.reward.grading import grade
from grape_rl.reward.rubric import check_rows, items_of, load_rubric
from grape_rl.reward.scores import item_table, rubric_scorer
from grape_rl.types import Response, Scores, Verdict, failed

# The response says the score and the confidence of each item; None raises.
CHECKS = """
from grape_rl.types import Verdict
def says(response, name):
    score, confidence = response.row["says"][response.text][name]
    if score is None:
        raise OSError("the disk is full")
    return Verdict(name, float(score), float(confidence))
"""
NAMES = ("a", "b", "c", "d", "e", "f", "g", "h")
CHECKS += "".join(f"def {n}(response): return says(response, '{n}')\n" for n in NAMES)
HEAD = "schema: grape-rubric/1\ncategories:\n  all:\n    row_items: {from: '${row.rubrics}', format: grape}\n"


def regex(id, pattern="x", **more):
    return {"id": id, "check": {"type": "regex", "pattern": pattern}, **more}


def load(tmp_path, text=HEAD, allow=(), name="rubric.yaml"):
    (tmp_path / "checks.py").write_text(CHECKS)
    (tmp_path / name).write_text(text)
    return load_rubric(tmp_path / name, allow)


def responses(texts, rubrics, **more):
    return [Response("p", text, {"rubrics": rubrics, **more}, 5, "stop") for text in texts]


def group(*ids):
    return torch.tensor(ids)


def test_a_rows_items_are_graded_beside_those_of_its_category(tmp_path):
    rubric = load(tmp_path, HEAD + "    items: [{id: x, weight: 2, check: {type: regex, pattern: x}}]\n")
    rows = responses(["x", "xy", "z"], [regex("x", "y", weight=3), regex("m", "z", role="monitor")])
    category, verdicts = grade(rubric, rows)
    assert category == ("all",) * 3
    assert [[(v.item, v.score) for v in line] for line in verdicts] == [
        [("x", 1), ("row/x", 0), ("row/m", 0)],
        [("x", 1), ("row/x", 1), ("row/m", 0)],
        [("x", 0), ("row/x", 0), ("row/m", 1)],
    ]
    reward = rubric_scorer(rubric, confidence_weighted)(rows, group(0, 0, 0)).reward
    assert reward.tolist() == pytest.approx([2 / 5, 1, 0], abs=1e-15)


def test_a_json_rubric_says_the_same(tmp_path):
    told = {
        "schema": "grape-rubric/1",
        "defaults": {"judge": {"critic": "small"}},
        "categories": {"all": {"row_items": {"from": "${row.rubrics}"}}},
    }
    rubric = load(tmp_path, json.dumps(told), name="rubric.json")
    found = items_of(rubric, "all", {"rubrics": [{"id": "kind", "judge": {"criterion": "It is kind."}}]})
    assert [(item.id, item.judge.critic) for item in found] == [("row/kind", "small")]


def test_a_row_may_name_a_file_that_is_allowed(tmp_path):
    (tmp_path / "reply.json").write_text('{"type": "object"}')
    rubric = load(tmp_path, allow=["reply.json"])
    items = items_of(
        rubric, "all", {"rubrics": [{"id": "s", "check": {"type": "json_schema", "schema": "reply.json"}}]}
    )
    assert [item.id for item in items] == ["row/s"]


@pytest.mark.parametrize(
    ("rubrics", "message"),
    [
        ([regex("a"), regex("b", "(")], "item 'row/b': check.pattern: bad pattern '('"),
        ([regex("a"), regex("a", "y")], "item 'row/a': the id is there twice in this row"),
        ([regex("a") | {"wieght": 2}], "item 'row/a': unknown key 'wieght'; did you mean 'weight'?"),
        ([{"check": {"type": "regex", "pattern": "x"}}], "${row.rubrics}[0]: id: is missing"),
        (["be kind"], "${row.rubrics}: should be a list of items"),
        ([], "no item to reward: neither the category nor ${row.rubrics} has one"),
        ([regex("a", role="monitor")], "no item to reward"),
        ([regex("a", "${row.nothing}")], "item 'row/a' of category 'all': ${row.nothing}: no 'nothing' in the row"),
        (
            [{"id": "evil", "check": {"type": "python", "call": "checks.py:a"}}],
            "item 'row/evil': check: 'checks.py:a' runs code that is not allowed",
        ),
        ([{"id": "l", "human": {"labels": "../labels.jsonl"}}], "should be the name of a file beside the rubric"),
        ([regex("a", weight=0)], "weight 0 has no effect"),
        (
            [{"id": "s", "check": {"type": "json_schema", "schema": "../../etc/passwd"}}],
            "'../../etc/passwd' is a file or model that a row names, and is not allowed",
        ),
        ([{"id": "m", "reward_model": {"model": "someone/model"}}], "'someone/model' is a file or model that a row"),
        (
            [{"id": "c", "judge": {"criterion": "x", "confidence": {"transform": "calibrated", "calibration": "/c"}}}],
            "'/c' is a file or model that a row names, and is not allowed",
        ),
        (
            [{"id": "k", "judge": {"criterion": "x", "confidence": {"mode": "agreement", "k": 101}}}],
            "judge.confidence.k: Input should be less than or equal to 100",
        ),
    ],
)
def test_what_is_wrong_in_a_row_is_told_with_row_and_item(rubrics, message, tmp_path):
    rubric = load(tmp_path)
    with pytest.raises(ValueError) as told:
        check_rows(rubric, [{"rubrics": [regex("a")]}, {"rubrics": rubrics}])
    assert message in str(told.value) and str(told.value).startswith("row 1: ") and "\n" not in str(told.value)
    assert "'all'" in str(told.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "{from: '${row.r}', format: grappe}",
            "row_items.format: unknown format 'grappe'; did you mean 'grape'?",
        ),
        ("{from: rubrics}", "'rubrics' should be a look-up and nothing else, such as ${row.rubrics}"),
        ("{from: 'see ${row.rubrics}'}", "should be a look-up and nothing else"),
        ("{from: '${row.a}${row.b}'}", "should be a look-up and nothing else"),
        ("{fron: '${row.rubrics}'}", "row_items: unknown key 'fron'; did you mean 'from'?"),
        ("{from: '${row.r}'}\n    items: [{id: row/x, check: {type: regex, pattern: x}}]", "'row/x' has a name that"),
        ("{from: '${row.r}'}\n    items: [{id: row, check: {type: regex, pattern: x}}]", "'row' has a name that"),
    ],
)
def test_bad_row_items_in_the_file(text, message, tmp_path):
    with pytest.raises(ValueError) as told:
        load(tmp_path, f"schema: grape-rubric/1\ncategories:\n  all:\n    row_items: {text}\n")
    assert message in str(told.value) and "\n" not in str(told.value)


def test_without_row_items_a_category_needs_items(tmp_path):
    with pytest.raises(ValueError, match="no item to reward"):
        load(tmp_path, "schema: grape-rubric/1\ncategories:\n  all: {about: all}\n")


def test_a_missing_column_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"row 0: category 'all': \$\{row.rubrics\}: no 'rubrics' in the row"):
        check_rows(load(tmp_path), [{"prompt": "p"}])


def test_allowed_code_runs_and_rows_are_read_once(tmp_path, monkeypatch):
    rubric = load(tmp_path, allow=["checks.py"])
    told = [{"id": "a", "check": {"type": "python", "call": "checks.py:a"}}]
    calls = []
    formats = {"grape": lambda value: calls.append(value) or value}
    monkeypatch.setattr("grape_rl.reward.row_items.FORMATS", formats)
    for _ in range(2):
        rows = responses(["x", "y"], json.loads(json.dumps(told)), says={"x": {"a": (0.25, 1)}, "y": {"a": (1, 1)}})
        check_rows(rubric, [each.row for each in rows])
        scores = rubric_scorer(rubric, confidence_weighted)(rows, group(3, 3))
    assert scores.reward.tolist() == [0.25, 1]
    assert len(calls) == 1
    items_of(rubric, "all", {"rubrics": [regex("b")]})
    assert len(calls) == 2


def test_responses_of_a_group_have_the_same_items(tmp_path):
    rubric = load(tmp_path)
    rows = responses(["x"], [regex("a")]) + responses(["x"], [regex("a", "y")])
    with pytest.raises(ValueError, match="group 4 has responses whose rows bring different items"):
        rubric_scorer(rubric, confidence_weighted)(rows, group(4, 4))
    assert rubric_scorer(rubric, confidence_weighted)(rows, group(4, 5)).reward.tolist() == [1, 0]


def test_a_rows_gate_and_pitfall_hold_for_its_group_alone(tmp_path):
    rubric = load(tmp_path, HEAD + "    items: [{id: x, weight: 1, check: {type: regex, pattern: x}}]\n")
    rows = responses(["x", "xy"], [regex("y", "y", weight=3, gate=True), regex("bad", "x", weight=-4)])
    rows += responses(["x", "z"], [regex("z", "z")])
    reward = rubric_scorer(rubric, confidence_weighted)(rows, group(0, 0, 1, 1)).reward
    assert reward.tolist() == pytest.approx([-4 / 8, (1 + 3 - 4) / 8, 1 / 2, 1 / 2], abs=1e-15)


def test_a_gate_of_a_row_that_could_not_be_graded_hides_the_reward_of_its_own_response_only(tmp_path):
    rubric = load(tmp_path, allow=["checks.py"])
    call = {"type": "python", "call": "checks.py:a"}
    says = {"x": {"a": (None, 1)}, "y": {"a": (1, 1)}}
    rows = responses(["x", "y"], [{"id": "g", "gate": True, "check": call}, regex("x")], says=says)
    rows += responses(["x", "y"], [regex("x")], says=says)
    reward = rubric_scorer(rubric, confidence_weighted)(rows, group(0, 0, 1, 1)).reward.tolist()
    assert math.isnan(reward[0]) and reward[1:] == [0.5, 1, 0]


def test_one_item_of_a_row_is_its_score_to_the_last_bit(tmp_path):
    rubric = load(tmp_path, allow=["checks.py"])
    raw = [0.1, 1 / 3, 0.7, 0.2]
    rows = []
    for n, name in enumerate("aabb"):
        told = [{"id": name, "weight": 0.3, "check": {"type": "python", "call": f"checks.py:{name}"}}]
        rows += responses(["r"], told, says={"r": {name: (raw[n], 0.7)}})
    reward = rubric_scorer(rubric, confidence_weighted)(rows, group(0, 1, 2, 3)).reward
    assert torch.equal(reward, torch.tensor(raw, dtype=torch.float64))


def test_rows_items_are_one_line_of_the_table():
    verdicts = (
        (Verdict("x", 1.0), Verdict("row/a", 0.5), Verdict("row/b", 1.0)),
        (Verdict("x", 0.0), failed("row/c", "timeout", "")),
    )
    table = item_table(Scores(torch.zeros(2), verdicts, ("s", "s")))
    assert [(line.item, line.graded, line.mean, dict(line.missing)) for line in table] == [
        ("x", 2, 0.5, {}),
        ("row", 2, 0.75, {"timeout": 1}),
    ]


part = st.floats(0, 1, width=64)
verdict = st.one_of(st.tuples(part, part), st.tuples(st.none(), st.just(1.0)))
weight = st.sampled_from([1.0, 0.1, 0.3, 7.0, -0.2, -3.0])


@st.composite
def batches(draw):
    """Groups with items of their own among those of the category; each response's verdict on each item."""
    shared = draw(st.lists(weight, max_size=3))
    found = []
    for number in range(draw(st.integers(1, 4))):
        own = draw(st.lists(weight, min_size=0 if shared else 1, max_size=8 - len(shared)))
        gate = draw(st.booleans())
        says = {
            f"{number}.{n}": {name: draw(verdict) for name in NAMES[: len(shared) + len(own)]}
            for n in range(draw(st.integers(1, 4)))
        }
        found.append((own, gate, says))
    return shared, found


def item(name, weight, gate=False):
    check = {"type": "length", "max_tokens": 1}
    return {"id": name, "weight": weight, "check": check, **({"gate": True} if gate and weight > 0 else {})}


@pytest.mark.parametrize("aggregate", [confidence_weighted, items_normalized])
def test_a_group_has_the_reward_that_it_would_have_alone_to_the_last_bit(aggregate, tmp_path, monkeypatch):
    def read(job):  # in this process, so that hundreds of batches take no time
        score, confidence = job.response.row["says"][job.response.text][job.item.removeprefix("row/")]
        return failed(job.item, "timeout", "") if score is None else Verdict(job.item, score, confidence)

    monkeypatch.setattr("grape_rl.reward.grading.run_checks", lambda jobs: [read(job) for job in jobs])

    @settings(max_examples=30, deadline=None)
    @given(batches())
    def holds(batch):
        shared, found = batch
        told = {
            "schema": "grape-rubric/1",
            "categories": {
                "all": {
                    "row_items": {"from": "${row.rubrics}"},
                    "items": [item(NAMES[n], w, gate=n == 1) for n, w in enumerate(shared)],
                }
            },
        }
        rubric = load(tmp_path, json.dumps(told), name="rubric.json")
        parts = []
        for own, gate, says in found:
            rubrics = [item(NAMES[len(shared) + n], w, gate and n == 0) for n, w in enumerate(own)]
            parts.append(responses(list(says), rubrics, says=says))
        scorer = rubric_scorer(rubric, aggregate)
        order = [(g, each) for g, part in enumerate(parts) for each in part]
        order = order[::2] + order[1::2]  # groups lie mixed
        together = scorer([each for _, each in order], torch.tensor([g for g, _ in order]))
        for g, own in enumerate(parts):
            rows = [i for i, (number, _) in enumerate(order) if number == g]
            alone = scorer([order[i][1] for i in rows], torch.full((len(own),), 9)).reward
            assert torch.equal(together.reward[rows].isnan(), alone.isnan())
            assert torch.equal(together.reward[rows].nan_to_num(), alone.nan_to_num())

    holds()
