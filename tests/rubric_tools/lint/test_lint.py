"""What lint finds in rubrics, and what it leaves alone."""

import pytest

from grape_rl.reward.rubric import Rubric, load_rubric
from grape_rl.rubric_tools.lint.lint import Finding, bare_words, lint


def rubric(*items, **categories):
    told = {"a": {"items": list(items)}} if items else categories
    context = {"folder": None, "allow": frozenset(), "labels": {}}
    return Rubric.model_validate({"schema": "grape-rubric/1", "categories": told}, context=context)


def judged(name, criterion, weight=1, **more):
    judge = {key: more.pop(key) for key in ("labels", "anchors") if key in more}
    return {"id": name, "weight": weight, "judge": {"criterion": criterion, **judge}, **more}


def checked(name, weight=1, gold="a", **more):
    return {"id": name, "weight": weight, "check": {"type": "exact", "gold": gold}, **more}


def complaints(*items):
    found = lint(rubric(*items))
    assert all(each.place.startswith("category 'a'") and "\n" not in each.message for each in found)
    return [each.message for each in found]


KIND = judged("kind", "Is kind.", 2)


def test_nothing_to_complain_of():
    assert complaints(KIND) == []
    assert (
        complaints(KIND, checked("right", 6, gate=True), checked("wordy", -1, "b"), checked("seen", role="monitor"))
        == []
    )
    assert complaints(judged("rude", "Is rude.", -2), judged("unsafe", "Recommends an overdose.", -8)) == []


def test_a_criterion_of_two_things():
    two = judged("both", "Names the dose and explains the risk.")
    (found,) = lint(rubric(two, KIND))
    assert found.place == "category 'a', item 'both'"
    assert found.message.startswith("asks for two things ('and explains') but gets one verdict")
    assert found.message.endswith("split it into two items")
    labels = {"1": 0.0, "2": 0.5, "3": 1.0}
    described = {"1": "neither", "2": "one of them", "3": "both"}
    assert complaints({**two, "judge": {**two["judge"], "labels": labels, "anchors": described}}) == []
    assert len(complaints({**two, "judge": {**two["judge"], "labels": labels}})) == 1


@pytest.mark.parametrize(
    ("one", "other", "complaint"),
    [
        (("Is concise.", 2), ("Is not concise.", -2), "items 'x' (2) and 'y' (-2) mirror each other"),
        (("Is concise.", 2), ("Is verbose.", -1), "items 'x' (2) and 'y' (-1) mirror each other"),
        (
            ("Is concise.", 2),
            ("The answer is brief.", 1),
            "items 'x' (2) and 'y' (1) have the same meaning, which counts twice",
        ),
        (
            ("Is rude.", -2),
            ("Is impolite.", -1),
            "items 'x' (-2) and 'y' (-1) have the same meaning, which counts twice",
        ),
        (("Is concise.", 2), ("Is short.", -1), "items 'x' (2) and 'y' (-1) reward and penalize the same thing"),
        (("Is concise.", 2), ("Is verbose.", 1), "items 'x' (2) and 'y' (1) ask for a thing and its opposite"),
        (("Is concise.", 2), ("Is polite.", -1), ""),
        (("Names the dose.", 2), ("Names the unit.", 1), ""),
    ],
)
def test_pairs(one, other, complaint):
    found = complaints(judged("x", *one), judged("y", *other))
    assert len(found) == bool(complaint) and all(each.startswith(complaint) for each in found)
    monitored = complaints(judged("x", *one), judged("y", *other, role="monitor"))
    assert monitored == [], "a monitor may look at what is rewarded"


def test_pairs_of_checks():
    (found,) = complaints(checked("x"), checked("y", 2))
    assert found.startswith("items 'x' (1) and 'y' (2) are the same check, which counts twice")
    (found,) = complaints(checked("x"), checked("y", -2))
    assert "once rewarded and once penalized" in found
    assert complaints(checked("x"), checked("y", gold="b")) == []


def test_pairs_are_of_one_category():
    apart = rubric(
        a={"when": {"t": "a"}, "items": [judged("x", "Is concise.")]},
        b={"when": {"t": "b"}, "items": [judged("x", "Is verbose.", -1)]},
    )
    assert lint(apart) == []


def test_a_gate_alone():
    alone = "is a gate, but no other item has a positive weight: remove 'gate'"
    assert complaints(checked("x", gate=True)) == [alone]
    assert complaints(checked("x", gate=True), judged("rude", "Is rude.", -1)) == [alone]
    assert complaints(checked("x", gate=True), checked("y", gold="b", role="monitor")) == [alone]
    assert complaints(checked("x", gate=True), checked("y", gold="b")) == []
    assert complaints(checked("x", gate=True), checked("y", gold="b", gate=True)) == []


@pytest.mark.parametrize(
    ("item", "found"),
    [
        (judged("unsafe", "Recommends an overdose."), True),
        (judged("unsafe", "Recommends an overdose.", -1), False),
        (judged("unsafe", "Recommends no overdose."), False),
        (judged("not_unsafe", "Recommends a dose."), False),
        (judged("unsafe", "Recommends an overdose.", labels={"absent": 1, "present": 0}), False),
        (judged("unsafe", "Recommends an overdose.", labels={"absent": 0, "present": 1}), True),
        (checked("unsafe"), False),
    ],
)
def test_a_fault_that_is_rewarded(item, found):
    told = complaints(item)
    assert len(told) == found and all("is named for a fault, but its weight rewards it" in each for each in told)


def test_one_anchor_of_several():
    labels = {"1": 0, "2": 0.5, "3": 1}
    assert complaints(judged("x", "Kind.", labels=labels, anchors={"2": "cool"})) == [
        "only the label '2' has an anchor: add anchors for the other labels, or remove it"
    ]
    assert complaints(judged("x", "Kind.", labels=labels, anchors={"1": "rude", "3": "kind"})) == []


def test_weights_far_apart():
    assert complaints(checked("x", 1001), checked("y", -1, "b")) == [
        "item 'y' (-1) has no effect next to item 'x' (1001): adjust the weights"
    ]
    assert len(complaints(checked("x", -1001), checked("y", 1, "b"))) == 1
    assert complaints(checked("x", 1000), checked("y", -1, "b")) == []
    assert complaints(checked("x", 1e6), checked("y", 1, "b", role="monitor")) == []


def places(**categories):
    item = checked("x")
    told = {name: {"when": when, "items": [item]} for name, when in categories.items()}
    return [(each.place, each.message) for each in lint(rubric(**told))]


def test_categories_that_no_row_can_have():
    assert places(low={"t": "a", "level": 1}, high={"t": "a", "level": 2}) == []
    ((place, complaint),) = places(maths={"t": "a"}, hard={"t": "a", "level": 2})
    assert place == "category 'hard'"
    assert complaint.startswith(
        "every row that it matches also matches 'maths', but a row needs exactly one category: narrow"
    )
    assert [place for place, _ in places(rest={}, maths={"t": "a"})] == ["category 'maths'"]
    assert [place for place, _ in places(two={"t": ["a", "b"]}, one={"t": "b"})] == ["category 'one'"]
    assert places(two={"t": ["a", "b"]}, other={"t": ["b", "c"]}) == [], "some rows of each are its own"
    assert places(one={"t": 1}, true={"t": True}) == []
    ((place, complaint),) = places(one={"t": ["a", "b"]}, again={"t": ["b", "a"]})
    assert place == "category 'again'" and complaint.startswith("matches the same rows as 'one'")


def test_what_the_data_shows():
    found = rubric(
        a={"when": {"t": "a"}, "items": [checked("x")]},
        norwegian={"when": {"t": "b", "language": False}, "items": [checked("x")]},
    )
    assert lint(found) == []
    assert lint(found, [{"t": "a"}, {"t": "b", "language": False}]) == []
    assert lint(found, [{"t": "b", "language": "no"}]) == [
        Finding("category 'a'", "never matches: 0 of 1 rows; check its 'when' condition, or remove it"),
        Finding("category 'norwegian'", "never matches: 0 of 1 rows; check its 'when' condition, or remove it"),
        Finding(
            "category 'norwegian', when language",
            "is a boolean, but the rows have text there, such as 'no': put it in quotes",
        ),
    ]


def test_words_that_yaml_reads_as_booleans(tmp_path):
    text = (
        "schema: grape-rubric/1\ncategories:\n"
        "  a: {when: {language: no, sure: true}, items: &items [{id: x, check: {type: exact, gold: a}}]}\n"
        "  b: {when: {language: [de, On, 'no']}, items: *items}\n"
        "  c: {items: *items}\n"
    )
    file = tmp_path / "r.yaml"
    file.write_text(text)
    assert bare_words(file) == [
        Finding("category 'a', when language", "YAML reads the unquoted no as False: put it in quotes if it is text"),
        Finding("category 'b', when language", "YAML reads the unquoted On as True: put it in quotes if it is text"),
    ]
    assert load_rubric(file).categories["a"].when["language"] == (False,)
    file.with_suffix(".json").write_text("{}")
    assert bare_words(file.with_suffix(".json")) == []


def test_each_finding_is_told_once_and_in_order():
    twice = [judged("x", "Is concise."), judged("y", "Is brief."), judged("z", "Is terse and explains the risk.")]
    found = lint(rubric(*twice))
    assert len(found) == len(set(found)) == 2
    assert [each.place for each in found] == ["category 'a', item 'z'", "category 'a'"]


def bringing(*own, items=(), **row):
    """A rubric whose rows bring items along, and such a row."""
    brought = {"from": "${row.own}", "format": "grape"}
    return rubric(all={"items": list(items), "row_items": brought}), {"own": list(own), **row}


def test_items_that_rows_bring_along():
    brief = judged("brief", "Is concise.")
    found, row = bringing(judged("wordy", "Is verbose.", -1), items=[brief, checked("right", gate=True)])
    assert lint(found) == []
    (only,) = lint(found, [{"own": [KIND]}, row, dict(row)])
    assert only.place == "row 1", "rows that say the same are told of once"
    assert only.message.startswith("items 'brief' (1) and 'row/wordy' (-1) mirror each other")

    found, row = bringing(judged("both", "Names the dose and explains the risk."), checked("heavy", 2000))
    assert [each.place for each in lint(found, [row])] == ["row 0, item 'row/both'", "row 0"]
    found, row = bringing({"id": "bad"})
    assert lint(found, [row]) == [], "what cannot be graded is for check_rows to say"


def test_a_gate_whose_others_the_rows_bring():
    found, row = bringing(KIND, items=[checked("right", gate=True)])
    assert lint(found, [row]) == []
    found, row = bringing(judged("rude", "Is rude.", -1), items=[checked("right", gate=True)])
    assert lint(found) == []
    (only,) = lint(found, [row])
    assert only.place == "row 0, item 'right'" and only.message.startswith("is a gate, but no other item")


def test_faults_of_a_category_are_not_told_again_of_its_rows():
    twice = [judged("x", "Is concise."), judged("y", "Is brief."), checked("heavy", 5000)]
    found, row = bringing(KIND, items=twice)
    assert len(lint(found)) == len(lint(found, [row])) == 2


def test_categories_that_a_critic_tells_apart():
    told = {name: {"about": name, "items": [checked("x")]} for name in ("a", "b")}
    found = Rubric.model_validate({"schema": "grape-rubric/1", "classify": {"critic": "default"}, "categories": told})
    assert lint(found) == [] and lint(found, [{"prompt": "p"}]) == []
