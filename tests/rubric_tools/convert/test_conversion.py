"""Rows of public datasets brought in and taken out again."""

import json
from pathlib import Path

import pytest

from grape_rl.reward.rubric import Rubric, check_rows
from grape_rl.rubric_tools.convert.conversion import export_rows, import_rows, read_row_items
from grape_rl.rubric_tools.lint.lint import lint

DATA = Path(__file__).parents[3] / "shared/data/biggen_rubrics.jsonl"

BIGGEN = [
    {
        "id": f"row_{n}",
        "capability": capability,
        "system_prompt": system,
        "input": f"Write letter {n}.",
        "reference_answer": reference,
        "score_rubric": {"criteria": "Is it kind?", "score1_description": "rude", "score2_description": "kind"},
    }
    for n, (capability, system, reference) in enumerate(
        [("tone", "Be brief.", "Dear friend"), ("tool use", "", "x ${y}"), ("tone", "Be long.", "")]
    )
]
HEALTHBENCH = [
    {
        "example_tags": ["theme:hedging", "physician_agreed_category:x"],
        "prompt_id": "p0",
        "prompt": [{"role": "user", "content": "It hurts."}, {"role": "assistant", "content": "Where?"},
                   {"role": "user", "content": "Here."}],
        "rubrics": [{"criterion": "Asks since when.", "points": 5, "tags": ["axis:accuracy"]}],
    },
    {
        "example_tags": ["theme:communication"],
        "prompt_id": "p1",
        "prompt": [{"role": "user", "content": "Help."}],
        "rubrics": [{"criterion": "Is rude.", "points": -3, "tags": []}],
    },
]  # fmt: skip
RAR = [
    {
        "question": "What dose?",
        "reference_answer": "5 mg",
        "question_source": "exam",
        "rubric": [{"title": "dose", "description": "Names the dose.", "weight": 5}],
        "rubric_count": 1,
    }
]
OPENRUBRICS = [{"instruction": "Write a poem.", "source": "s", "rubric": "1. Has five lines. [Hard Rule]"}]
OWN = [{"prompt": "p", "items": [{"id": "x", "judge": {"criterion": "Kind."}}]}]
SETS = {"biggen": BIGGEN, "healthbench": HEALTHBENCH, "rar": RAR, "openrubrics": OPENRUBRICS, "grape": OWN}


def with_items(rows, form, column):
    """A rubric with the items of one row in its file."""
    (row,) = rows
    told = [item.model_dump(exclude_defaults=True) for item in read_row_items(row, column, form)]
    return Rubric.model_validate({"schema": "grape-rubric/1", "categories": {"all": {"items": told}}})


def test_biggen_s_rows():
    found = import_rows(BIGGEN, "biggen")
    first, second, third = found.rows
    assert first["prompt"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Write letter 0."},
    ]
    assert second["prompt"] == [{"role": "user", "content": "Write letter 1."}]
    assert first["id"] == "row_0" and first["reference_answer"] == "Dear friend"
    assert not {"input", "system_prompt"} & first.keys()
    assert first["score_rubric"]["reference"] == "${row.reference_answer}"
    assert "reference" not in third["score_rubric"]
    brought = {"from": "${row.score_rubric}", "format": "biggen"}
    assert found.rubric == {
        "schema": "grape-rubric/1",
        "categories": {
            "tone": {"when": {"capability": "tone"}, "row_items": brought},
            "tool-use": {"when": {"capability": "tool use"}, "row_items": brought},
        },
    }
    (item,) = read_row_items(first, "score_rubric", "biggen")
    assert item.judge.for_row(first).reference == "Dear friend"
    (item,) = read_row_items(second, "score_rubric", "biggen")
    assert item.judge.for_row(second).reference == "x ${y}", "what is filled in is not looked at again"


def test_healthbench_s_rows():
    found = import_rows(HEALTHBENCH, "healthbench")
    assert found.rows[0]["prompt"] == HEALTHBENCH[0]["prompt"]
    assert [row["theme"] for row in found.rows] == ["hedging", "communication"]
    assert list(found.rubric["categories"]) == ["hedging", "communication"]
    assert found.rubric["categories"]["hedging"] == {
        "when": {"theme": "hedging"},
        "row_items": {"from": "${row.rubrics}", "format": "healthbench"},
    }
    for tags in ([], ["theme:a", "theme:b"], None):
        again = import_rows([HEALTHBENCH[0], {**HEALTHBENCH[1], "example_tags": tags}], "healthbench")
        assert list(again.rubric["categories"]) == ["all"] and "when" not in again.rubric["categories"]["all"]


def test_the_other_sets_rows():
    (row,) = import_rows(RAR, "rar").rows
    assert row == {"prompt": "What dose?"} | {
        key: RAR[0][key] for key in ("reference_answer", "question_source", "rubric")
    }
    (row,) = import_rows(OPENRUBRICS, "openrubrics").rows
    assert row == {"prompt": "Write a poem.", "source": "s", "rubric": OPENRUBRICS[0]["rubric"]}
    assert import_rows(OWN, "grape").rows == tuple(OWN)
    assert import_rows([{"prompt": "q", "rubric": RAR[0]["rubric"]}], "rar").rows[0]["prompt"] == "q"


@pytest.mark.parametrize("form", SETS)
def test_there_and_back(form):
    """Row by row, since here a file's own items are what is taken out."""
    column = {"biggen": "score_rubric", "healthbench": "rubrics", "grape": "items"}.get(form, "rubric")
    for row in SETS[form]:
        found = import_rows([row], form).rows
        (again,) = export_rows(with_items(found, form, column), found, form).rows
        assert again == row


@pytest.mark.parametrize(
    ("form", "change", "complaint"),
    [
        ("biggen", {"input": None}, "row 1: should have the texts input and system_prompt; it has 'id'"),
        ("biggen", {"input": " "}, "row 1: input is empty"),
        ("biggen", {"score_rubric": {"criteria": "x"}}, "row 1: score_rubric: needs at least score1_description"),
        (
            "healthbench",
            {"rubrics": [{"criterion": "x", "points": 0}]},
            "row 1: rubrics: [0]: points is 0, which has no",
        ),
        ("healthbench", {"prompt": []}, "row 1: prompt has no messages"),
        ("rar", {"question": 3}, "row 1: question must be text or a list of messages"),
        ("openrubrics", {"rubric": None}, "row 1: rubric: should be text with one item per line"),
        ("grape", {"items": []}, "row 1: items: no rewarded item"),
        ("grape", {"items": [{"id": "x"}]}, "row 1: items: [0]: needs exactly one of check, judge"),
        ("grape", {"items": OWN[0]["items"] * 2}, "row 1: items: duplicate item 'x'"),
        (
            "grape",
            {"items": [{"id": "x", "judge": {"criterion": "${row.no}"}}]},
            "row 1: ${row.no}: no 'no' in the row",
        ),
    ],
)
def test_a_row_with_a_fault(form, change, complaint):
    good = SETS[form][0]
    rows = [good, {**good, **change}, good]
    with pytest.raises(ValueError) as caught:
        import_rows(rows, form)
    assert str(caught.value).startswith(complaint) and "\n" not in str(caught.value)
    found = import_rows(rows, form, drop=True)
    assert len(found.rows) == 2 and found.dropped == {"invalid rows": 1}
    with pytest.raises(ValueError, match="no row is left"):
        import_rows(rows[1:2], form, drop=True)


def test_columns_that_are_not_there():
    with pytest.raises(ValueError, match="row 0: has no column 'question'; it has 'rubric'"):
        import_rows([{"rubric": []}], "rar")
    with pytest.raises(ValueError, match="row 0: has no column 'rubric' with its rubric; it has 'prompt'"):
        import_rows([{"question": "q"}], "rar")
    with pytest.raises(ValueError, match="unknown format 'helthbench'; did you mean 'healthbench'"):
        import_rows(RAR, "helthbench")


@pytest.mark.parametrize("form", SETS)
def test_the_file_that_is_written_grades_the_rows_that_are_written(form):
    """All rows at once, each with the items that it brings along."""
    found = import_rows(SETS[form], form)
    context = {"folder": Path(), "allow": frozenset(), "labels": {}}
    rubric = Rubric.model_validate(json.loads(json.dumps(found.rubric)), context=context)
    rows = json.loads(json.dumps(found.rows))
    check_rows(rubric, rows)
    assert lint(rubric, rows) == []
    assert list(export_rows(rubric, rows, form).rows) == SETS[form]


def test_items_of_the_file_and_of_the_row_are_written_together():
    brought = {"from": "${row.own}", "format": "grape"}
    told = {"all": {"items": [{"id": "x", "judge": {"criterion": "Kind."}}], "row_items": brought}}
    context = {"folder": Path(), "allow": frozenset(), "labels": {}}
    rubric = Rubric.model_validate({"schema": "grape-rubric/1", "categories": told}, context=context)
    own = [{"id": name, "judge": {"criterion": f"{name}."}} for name in ("x", "y")]
    (row,) = export_rows(rubric, [{"prompt": "p", "own": own}], "rar").rows
    assert [(each["title"], each["description"]) for each in row["rubric"]] == [
        ("x", "Kind."),
        ("x-2", "x."),
        ("y", "y."),
    ]
    with pytest.raises(ValueError, match=r"row 0: .*should be a list of items"):
        export_rows(rubric, [{"prompt": "p", "own": 3}], "rar")


def mixed():
    items = [
        {"id": "right", "check": {"type": "exact", "gold": "a"}},
        {"id": "kind", "weight": 3, "judge": {"criterion": "Kind to ${row.reader}."}},
    ]
    only = [{"id": "right", "check": {"type": "exact", "gold": "a"}}]
    told = {"a": {"when": {"t": "a"}, "items": items}, "b": {"when": {"t": "b"}, "items": only}}
    return Rubric.model_validate({"schema": "grape-rubric/1", "categories": told})


def test_what_a_form_cannot_hold_is_refused_or_counted():
    rows = [
        {"prompt": "p", "t": "a", "reader": "Ann"},
        {"prompt": "q", "t": "b"},
        {"prompt": "r", "t": "a", "reader": "Bo"},
    ]
    for form in ("healthbench", "rar", "openrubrics", "biggen"):
        with pytest.raises(
            ValueError, match=f"row 0: item 'right' is graded by exact, not by a critic, which {form} cann"
        ):
            export_rows(mixed(), rows, form)
    found = export_rows(mixed(), rows, "healthbench", drop=True)
    assert found.dropped == {"items: 'right' is graded by exact, not by a critic": 3, "rows without other items": 1}
    assert [row["rubrics"] for row in found.rows] == [
        [{"criterion": f"Kind to {reader}.", "points": 3, "tags": []}] for reader in ("Ann", "Bo")
    ]
    assert found.rows[0]["prompt"] == [{"role": "user", "content": "p"}]
    (first, _) = export_rows(mixed(), rows, "openrubrics", drop=True).rows
    assert first == {"instruction": "p", "t": "a", "reader": "Ann", "rubric": "1. Kind to Ann. [Hard Rule]"}
    with pytest.raises(ValueError, match="no row is left"):
        export_rows(mixed(), rows, "biggen", drop=True)
    whole = export_rows(mixed(), rows, "grape").rows
    assert [item["id"] for item in whole[0]["items"]] == ["right", "kind"] and not export_rows(
        mixed(), rows, "grape"
    ).dropped
    assert whole[2]["items"][1]["judge"] == {"criterion": "Kind to Bo."}
    assert json.loads(json.dumps(whole)) == list(whole)


def test_prompts_that_a_form_cannot_hold():
    rubric = with_items(OWN, "grape", "items")
    system, user = {"role": "system", "content": "s"}, {"role": "user", "content": "u"}
    answered = [user, {"role": "assistant", "content": "a"}, user]
    with pytest.raises(
        ValueError, match=r"row 0: its prompt is a conversation \(user, assistant, user\), which the format"
    ):
        export_rows(rubric, [{"prompt": answered}], "rar")
    with pytest.raises(ValueError, match="row 0: its prompt has a system message, which the format cannot"):
        export_rows(rubric, [{"prompt": [system, user]}], "rar")
    assert export_rows(rubric, [{"prompt": [user]}], "rar").rows[0]["question"] == "u"
    with pytest.raises(ValueError, match="row 0: has no column 'prompt'; it has 'x'"):
        export_rows(rubric, [{"x": 1}], "rar")
    with pytest.raises(ValueError, match=r"row 0: the row .* belongs to no category"):
        export_rows(mixed(), [{"prompt": "p"}], "rar")


def test_all_of_biggen_s_rubrics():
    if not DATA.exists():
        pytest.skip(f"{DATA} is not there: it is of prometheus-eval/prometheus-eval, and no part of the repository")
    rows = [json.loads(line) for line in DATA.read_text(encoding="utf-8").splitlines()]
    found = import_rows(rows, "biggen")
    assert len(found.rows) == 200 and not found.dropped
    assert [len([r for r in rows if r["capability"] == name]) for name in found.rubric["categories"]] == [25] * 8
    for row, before in zip(found.rows, rows, strict=True):
        rubric = with_items([row], "biggen", "score_rubric")
        assert lint(rubric, [row]) == []
        (again,) = export_rows(rubric, [row], "biggen").rows
        told = {key: text.strip() for key, text in before["score_rubric"].items()}
        assert again == {**before, "score_rubric": told}
