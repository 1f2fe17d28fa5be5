"""Rubrics of public datasets as items, and items as rubrics of theirs: there and back."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grape_rl.reward.critic.prompt import judge_messages
from grape_rl.reward.formats import FORMATS, anchored, openrubrics
from grape_rl.reward.formats.parsing import literal, slug
from grape_rl.reward.rubric import Item
from grape_rl.rubric_tools.convert.writers import WRITERS, fill_lookups
from grape_rl.types import Response

HEALTHBENCH = [
    {"criterion": " Names the dose. ", "points": 5, "tags": ["level:example", "axis:accuracy"]},
    {"criterion": "Recommends an overdose.", "points": -8, "tags": ["axis:accuracy", "axis:completeness"]},
    {"criterion": "Costs ${5}$.", "points": 2.5, "tags": []},
    {"criterion": "Asks for the age.", "points": 1},
]
RAR = [
    {"title": "The Dose", "description": "Essential Criteria: Names the dose.", "weight": 5},
    {"title": "the dose", "description": "important criterion:  Names the unit.", "weight": 3},
    {"title": "Überdosis", "description": "Pitfall Criteria: Does not mention the risk.", "weight": -1},
    {"title": "", "description": "Says Essential Criteria: matter.", "weight": 1.0},
]
OPENRUBRICS = """1. Has five lines. [Hard Rule]

  2) Is kind. [principle]
- Ends with [a mark]. **[Hard Rule]**
Costs ${3}. [Principle].
"""
BIGGEN = {
    "criteria": "Is it kind?",
    "score1_description": "rude",
    "score2_description": "cool",
    "score3_description": "kind",
}


def judged(name, weight, criterion):
    return {"id": name, "weight": weight, "judge": {"criterion": criterion, "labels": {"no": 0, "yes": 1}}}


def items(form, told):
    found = [Item.model_validate(each) for each in FORMATS[form](told)]
    assert len({item.id for item in found}) == len(found)
    return found


def test_healthbench():
    assert FORMATS["healthbench"](HEALTHBENCH) == [
        judged("accuracy-1", 5, "Names the dose."),
        judged("accuracy-2", -8, "Recommends an overdose."),
        judged("criterion-3", 2.5, "Costs $ {5}$."),
        judged("criterion-4", 1, "Asks for the age."),
    ]


def test_rar():
    assert FORMATS["rar"](RAR) == [
        judged("the-dose", 5, "Names the dose."),
        judged("the-dose-2", 3, "Names the unit."),
        judged("überdosis", -1, "Does not mention the risk."),
        judged("criterion-4", 1.0, "Says Essential Criteria: matter."),
    ]


def test_openrubrics():
    wanted = [
        judged("hard-rule-1", 3, "Has five lines."),
        judged("principle-2", 1, "Is kind."),
        judged("hard-rule-3", 3, "Ends with [a mark]."),
        judged("principle-4", 1, "Costs $ {3}."),
    ]
    assert FORMATS["openrubrics"](OPENRUBRICS) == wanted
    assert FORMATS["openrubrics"](OPENRUBRICS.splitlines()) == wanted


def test_anchored_rubrics_of_any_length():
    (item,) = items("biggen", BIGGEN)
    assert item.judge.labels == {"1": 0, "2": 0.5, "3": 1}
    assert item.judge.anchors == {"1": "rude", "2": "cool", "3": "kind"}
    assert item.judge.show == ("prompt", "response") and item.judge.reference is None
    five = {"criteria": "c", **{f"score{n}_description": f"level {n}" for n in (5, 3, 1, 2, 4)}}
    (item,) = items("biggen", five)
    assert list(item.judge.labels.items()) == [("1", 0), ("2", 0.25), ("3", 0.5), ("4", 0.75), ("5", 1)]


def test_a_reference_is_looked_up_and_shown():
    (item,) = items("biggen", {**BIGGEN, "reference": "${row.reference_answer}"})
    assert item.judge.show == ("prompt", "response", "reference") and item.lookups == ("${row.reference_answer}",)
    told = fill_lookups(item, {"reference_answer": "Dear friend"})
    asked = judge_messages([told.judge], Response("p", "r", {}, 1, "stop"), "[m]")[1]["content"]
    assert "Dear friend" in asked and "1: rude\n2: cool\n3: kind" in asked


def test_own_items_are_as_they_are():
    told = [{"id": "x", "check": {"type": "exact", "gold": "${row.a}"}}]
    assert FORMATS["grape"](told) == told


HARD = {"criterion": "x", "points": 1}
SOFT = {"title": "x", "description": "y", "weight": 1}


@pytest.mark.parametrize(
    ("form", "told", "complaint"),
    [
        ("healthbench", "x", "should be a list of {criterion, points, tags} but is 'x'"),
        ("healthbench", [], "should be a list of {criterion, points, tags} but is []"),
        ("healthbench", [HARD, 3], "[1]: should be a mapping but is 3"),
        ("healthbench", [HARD, {"points": 1}], "[1]: criterion should be text but is missing"),
        ("healthbench", [{**HARD, "criterion": " "}], "[0]: criterion should be text but is ' '"),
        ("healthbench", [{"criterion": "x"}], "[0]: points should be a number but is missing"),
        ("healthbench", [{**HARD, "points": True}], "[0]: points should be a number but is True"),
        ("healthbench", [{**HARD, "points": "5"}], "[0]: points should be a number but is '5'"),
        ("healthbench", [{**HARD, "points": float("nan")}], "[0]: points should be a number but is nan"),
        ("healthbench", [HARD, {**HARD, "points": 0}], "[1]: points is 0, which has no effect: remove the entry"),
        ("healthbench", [{**HARD, "tags": "axis:x"}], "[0]: tags should be a list of strings but is 'axis:x'"),
        ("healthbench", [{**HARD, "tags": [1]}], "[0]: tags should be a list of strings but is [1]"),
        ("rar", [{**SOFT, "weight": 0}], "[0]: weight is 0, which has no effect"),
        ("rar", [{**SOFT, "title": 3}], "[0]: title should be text but is 3"),
        ("rar", [{**SOFT, "description": None}], "[0]: description should be text but is None"),
        (
            "rar",
            [{**SOFT, "description": "Pitfall Criteria: "}],
            "[0]: description has only its prefix, without a",
        ),
        ("rar", {"x": 1}, "should be a list of {title, description, weight}"),
        ("openrubrics", 3, "should be text with one item per line but is 3"),
        ("openrubrics", ["x [Principle]", 3], "should be text with one item per line"),
        ("openrubrics", "", "has no items"),
        (
            "openrubrics",
            "1. Kind. [Principle]\nRubric:",
            "line 2 does not end in [Hard Rule] or [Principle]: 'Rubric:'",
        ),
        ("openrubrics", "1. [Principle]", "line 1 has no criterion"),
        ("biggen", "x", "should be {criteria, score1_description, …} but is 'x'"),
        ("biggen", {"criteria": "x"}, "needs at least score1_description and score2_description"),
        ("biggen", {"criteria": "x", "score1_description": "y"}, "needs at least score1_description and score2_desc"),
        ("biggen", {**BIGGEN, "criteria": None}, "criteria should be text but is None"),
        ("biggen", {**BIGGEN, "score5_description": "x"}, "score4_description should be text but is missing"),
        (
            "biggen",
            {**BIGGEN, "score99999999999_description": "x"},
            "score4_description should be text but is missing",
        ),
        ("biggen", {**BIGGEN, "score2_description": ""}, "score2_description should be text but is ''"),
        ("biggen", {**BIGGEN, "criterion": "x"}, "unknown key 'criterion'"),
        ("grape", {"id": "x"}, "should be a list of items"),
        ("grape", ["x"], "should be a list of items"),
    ],
)
def test_a_fault_is_one_line_with_its_place(form, told, complaint):
    with pytest.raises(ValueError) as caught:
        FORMATS[form](told)
    assert str(caught.value).startswith(complaint) and "\n" not in str(caught.value)


text = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30).filter(str.strip)
weights = st.integers(-50, 50).filter(bool)
healthbench = st.lists(
    st.fixed_dictionaries(
        {
            "criterion": text,
            "points": weights | st.floats(0.25, 9, width=16),
            "tags": st.lists(st.sampled_from(["axis:accuracy", "axis:context_awareness", "level:example"]), max_size=2),
        }
    ),
    min_size=1,
    max_size=5,
)
prefix = st.sampled_from(["", "Essential Criteria: ", "Optional Criteria: ", "pitfall criteria:"])
rar = st.lists(
    st.builds(
        lambda title, before, said, weight: {"title": title, "description": before + said, "weight": weight},
        text,
        prefix,
        text,
        weights,
    ),
    min_size=1,
    max_size=5,
)
ruled = st.lists(st.tuples(text, st.sampled_from(["Hard Rule", "Principle"])), min_size=1, max_size=5)
anchors = st.lists(text, min_size=2, max_size=7)


def written(form, found):
    assert not any(map(WRITERS[form].obstacle, found))
    return WRITERS[form].write([fill_lookups(item, {}) for item in found])


def plain(criterion):
    """What is left of a text: no space around it, and none of its ``${`` a look-up."""
    return criterion.strip().replace("${", "$ {")


@given(healthbench)
@settings(max_examples=60, deadline=None)
def test_healthbench_there_and_back(told):
    """All but the tags that are no axis, and the second axis."""
    axes = [[tag for tag in each["tags"] if tag.startswith("axis:")][:1] for each in told]
    wanted = [
        {"criterion": plain(each["criterion"]), "points": each["points"], "tags": axis}
        for each, axis in zip(told, axes, strict=True)
    ]
    found = items("healthbench", told)
    assert written("healthbench", found) == wanted
    assert items("healthbench", wanted) == found


@given(rar)
@settings(max_examples=60, deadline=None)
def test_rar_there_and_back(told):
    """All but the spelling of titles, and the words that repeat the weight."""
    try:
        found = items("rar", told)
    except ValueError as error:  # "Essential Criteria: " and no more, say
        assert "without a criterion" in str(error)
        return
    again = written("rar", found)
    assert [each["weight"] for each in again] == [each["weight"] for each in told]
    for each, before in zip(again, told, strict=True):
        assert plain(before["description"]).endswith(each["description"])
        assert each["title"].startswith(slug(before["title"]) or "criterion-")
    assert items("rar", again) == found or any("riteri" in each["description"] for each in again)


@given(ruled)
@settings(max_examples=60, deadline=None)
def test_openrubrics_there_and_back(told):
    """All but how many spaces there are in a row."""
    lines = [f"{n}. {' '.join(said.split())} [{kind}]" for n, (said, kind) in enumerate(told, 1)]
    found = items("openrubrics", "\n".join(lines))
    assert [item.judge.criterion for item in found] == [plain(" ".join(said.split())) for said, _ in told]
    assert written("openrubrics", found) == "\n".join(map(literal, lines))
    assert items("openrubrics", written("openrubrics", found)) == found


@given(text, anchors, st.none() | text.map(plain))
@settings(max_examples=60, deadline=None)
def test_anchored_there_and_back(criterion, levels, reference):
    told = {"criteria": criterion, **{f"score{n}_description": each for n, each in enumerate(levels, 1)}}
    told |= {"reference": reference} if reference else {}
    found = items("biggen", told)
    assert written("biggen", found) == {key: plain(each) if key != "reference" else each for key, each in told.items()}
    assert items("biggen", written("biggen", found)) == found


@given(healthbench)
@settings(max_examples=30, deadline=None)
def test_items_of_any_form_are_items_of_our_own(told):
    found = items("healthbench", told)
    assert items("grape", written("grape", found)) == found


JUDGE = {"criterion": "Kind.", "labels": {"no": 0, "yes": 1}}
CHECK = {"type": "exact", "gold": "a"}
SCALE = {"1": 0.0, "2": 1.0}


@pytest.mark.parametrize(
    ("form", "item", "fault"),
    [
        ("healthbench", {"check": CHECK}, "is graded by exact, not by a critic"),
        ("healthbench", {"reward_model": {"model": "m"}}, "is graded by reward_model, not by a critic"),
        ("healthbench", {"judge": JUDGE, "role": "monitor"}, "is a monitor"),
        ("healthbench", {"judge": JUDGE, "gate": True}, "is a gate"),
        ("healthbench", {"judge": {**JUDGE, "anchors": {"yes": "warm"}}}, "has anchors"),
        ("healthbench", {"judge": {**JUDGE, "labels": {"a": 0, "b": 0.5, "c": 1}}}, "has labels other than one"),
        ("healthbench", {"judge": {**JUDGE, "labels": {"a": 0, "b": 0.5}}}, "has labels other than one"),
        (
            "healthbench",
            {"judge": {**JUDGE, "show": ["prompt", "response", "reference"], "reference": "r"}},
            "is judged with a reference",
        ),
        ("healthbench", {"judge": {**JUDGE, "labels": {"present": 1, "absent": 0}}, "weight": -2.5}, ""),
        ("rar", {"judge": JUDGE, "weight": 2.5}, "has a weight that is not an integer"),
        ("rar", {"judge": JUDGE, "weight": -2}, ""),
        ("rar", {"check": CHECK}, "is graded by exact"),
        ("openrubrics", {"judge": JUDGE, "weight": 2}, "has a weight other than 3 (hard rule) or 1"),
        ("openrubrics", {"judge": JUDGE, "weight": -1}, "has a weight other than 3"),
        ("openrubrics", {"judge": JUDGE, "gate": True}, "is a gate"),
        ("openrubrics", {"judge": JUDGE, "weight": 3}, ""),
        ("biggen", {"judge": JUDGE}, "does not have labels 1 to N with equally spaced"),
        ("biggen", {"judge": {**JUDGE, "labels": SCALE, "anchors": {"1": "x"}}}, "does not have an anchor for each"),
        ("biggen", {"judge": {**JUDGE, "labels": {"1": 0, "2": 0.4, "3": 1}}}, "does not have labels 1 to N"),
        ("biggen", {"judge": {**JUDGE, "labels": SCALE}, "weight": -1}, "is a pitfall"),
        ("biggen", {"judge": JUDGE, "role": "monitor"}, "is a monitor"),
        ("biggen", {"check": CHECK}, "is graded by exact"),
        ("biggen", {"judge": {**JUDGE, "labels": SCALE, "anchors": {"1": "x", "2": "y"}}, "weight": 3}, ""),
        ("grape", {"check": CHECK, "gate": True}, ""),
    ],
)
def test_what_a_form_cannot_hold(form, item, fault):
    found = WRITERS[form].obstacle(Item.model_validate({"id": "x", **item}))
    assert found.startswith(fault) and bool(found) == bool(fault)


def test_biggen_has_one_criterion_a_row():
    (item,) = items("biggen", BIGGEN)
    with pytest.raises(ValueError, match="biggen has one criterion per row, but there are 2: 'quality', 'quality'"):
        WRITERS["biggen"].write([item, item])


def test_look_ups_are_fill_lookups_before_items_are_written():
    item = Item.model_validate({"id": "x", "judge": {"criterion": "${row.n}"}})
    assert fill_lookups(item, {"n": 3}).judge.criterion == "3"
    check = Item.model_validate({"id": "x", "check": {"type": "exact", "gold": "${row.n}"}})
    assert fill_lookups(check, {}) == check


def test_ids_of_all_formats():
    assert list(FORMATS) == list(WRITERS)
    assert anchored.ANCHORED_ID == "quality" and openrubrics.WEIGHTS == {"hard rule": 3, "principle": 1}
