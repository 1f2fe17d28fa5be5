"""Rubrics whose categories a function or a critic tells apart: what is asked, how often, what becomes of failures."""

import math

import pytest
import torch
from server import Server, verdict

from grape_rl.cli import main
from grape_rl.maths.grape import confidence_weighted
from grape_rl.reward.critic.settings import Endpoint
from grape_rl.reward.grading import assign_items, grade, rubric_critics
from grape_rl.reward.rubric import category_name, check_rows, load_rubric
from grape_rl.reward.scores import item_table, rubric_scorer
from grape_rl.types import Response
from small_runs import written

RUBRIC = """
schema: grape-rubric/1
classify: {critic: sorter}
categories:
  sums:
    about: Sums of numbers.
    items: [{id: digit, check: {type: regex, pattern: '\\d'}}]
  words:
    about: Everything in words.
    items: [{id: word, check: {type: regex, pattern: '${row.word}'}}]
"""
CALLED = RUBRIC.replace("critic: sorter", "call: 'sorting.py:sort'")
SORTING = """
calls = []
def sort(row):
    calls.append(row)
    return {1: "sums", 2: "words", 3: "wrods", 5: ["sums"]}[row["kind"]]
"""


def load(tmp_path, text=RUBRIC, allow=("sorting.py",)):
    (tmp_path / "sorting.py").write_text(SORTING)
    (tmp_path / "rubric.yaml").write_text(text)
    return load_rubric(tmp_path / "rubric.yaml", allow)


def response(prompt, text, **row):
    return Response(prompt, text, {"word": "it", **row}, 5, "stop")


def sorting(request, number):
    asked = request["messages"][1]["content"]
    if "odd" in asked:
        return {"content": "I cannot say."}
    return verdict("sums" if "+" in asked else "words", 20, "It looks so.")


def test_a_critic_is_shown_the_prompt_once_and_the_categories(tmp_path):
    rubric = load(tmp_path)
    batch = [response("1+1", "2"), response("1+1", "two"), response("Say it.", "it"), response("odd", "it 3")]
    with Server(sorting) as server:
        critics = rubric_critics(rubric, {"sorter": Endpoint(base_url=server.base_url, model="stub")})
        scorer = rubric_scorer(rubric, confidence_weighted, confidence_weighted, critics=critics)
        scores = scorer(batch, torch.tensor([0, 0, 1, 2]))
        assert len(server.requests) == 3
        for request in server.requests:
            asked = request["messages"][1]["content"]
            assert "sums: Sums of numbers." in asked and "words: Everything in words." in asked
            assert "response begins" not in asked and "two" not in asked
            form = request["response_format"]["json_schema"]["schema"]["properties"]["verdict"]
            assert form["enum"] == ["sums", "words"]
        again = scorer([response("1+1", "3"), response("odd", "it")], torch.tensor([0, 1]))
        assert len(server.requests) == 4, "what is known is not asked again, what failed is"
    assert scores.category == ("sums", "sums", "words", "unclassified")
    assert scores.reward[:3].tolist() == [1, 0, 1]
    assert math.isnan(scores.reward[3]) and math.isnan(scores.compared[3])
    ((failure,),) = scores.verdicts[3:]
    assert (failure.item, failure.status) == ("category", "unparseable") and failure.missing
    assert again.category == ("sums", "unclassified") and again.reward[0] == 1
    assert [(line.category, line.item, line.graded) for line in item_table(scores)] == [
        ("sums", "digit", 2), ("words", "word", 1), ("unclassified", "category", 0)
    ]  # fmt: skip


def test_any_number_of_categories(tmp_path):
    more = "".join(
        f"  c{n}: {{about: 'Of {n}.', items: [{{id: x, check: {{type: length, max_tokens: 9}}}}]}}\n" for n in range(5)
    )
    rubric = load(tmp_path, RUBRIC + more)
    with Server(lambda request, number: verdict("c3", 20)) as server:
        critics = rubric_critics(rubric, {"sorter": Endpoint(base_url=server.base_url, model="stub")})
        (graded,) = grade(assign_items(rubric, [response("p", "x")], critics), critics=critics)
    assert graded.category == "c3"


def test_a_function_classifies_each_row_once(tmp_path):
    rubric = load(tmp_path, CALLED)
    rows = [response("p", "1", kind=1), response("p", "it", kind=2)]
    check_rows(rubric, [each.row for each in rows])
    graded = grade(assign_items(rubric, rows * 3))
    assert [each.category for each in graded] == ["sums", "words"] * 3
    assert all(each.verdicts[0].score == 1 for each in graded)
    assert len(rubric.classify._function.__globals__["calls"]) == 2
    assert category_name(rubric, rows[1].row) == "words"


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (3, "row 1: the row {word='it', kind=3}: classify 'sorting.py:sort' returned 'wrods'; did you mean 'words'?"),
        (4, "row 1: the row {word='it', kind=4}: classify 'sorting.py:sort' failed: KeyError: 4"),
        (5, "classify 'sorting.py:sort' returned ['sums']; "),
    ],
)
def test_what_a_function_says_wrongly_is_told_with_the_row(kind, message, tmp_path):
    rubric = load(tmp_path, CALLED)
    with pytest.raises(ValueError) as told:
        check_rows(rubric, [{"word": "it", "kind": 1}, {"word": "it", "kind": kind}])
    assert message in str(told.value) and "\n" not in str(told.value)


def test_where_a_critic_classifies_a_row_needs_what_any_category_looks_up(tmp_path):
    with pytest.raises(ValueError, match=r"row 1: item 'word' of category 'words': .*no 'word' in the row"):
        check_rows(load(tmp_path), [{"word": "it"}, {"prompt": "1+1"}])
    check_rows(load(tmp_path, CALLED), [{"kind": 1}])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("about: Sums of numbers.", "when: {task: sums}", "category 'sums' has a 'when', but 'classify' assigns"),
        ("    about: Sums of numbers.\n", "", "category 'sums' needs an 'about'"),
        ("critic: sorter", "critic: sorter, call: 'sorting.py:sort'", "classify: needs exactly one of call and critic"),
        ("{critic: sorter}", "{}", "classify: needs exactly one of call and critic"),
        ("critic: sorter", "critik: sorter", "classify: unknown key 'critik'; did you mean 'critic'?"),
        ("critic: sorter", "call: 'other.py:sort'", "classify: 'other.py:sort' runs code that is not allowed"),
        ("  words:", "  unclassified:", "a category cannot be named 'unclassified'"),
    ],
)
def test_a_bad_classifier_is_refused_as_the_rubric_loads(old, new, message, tmp_path):
    with pytest.raises(ValueError) as told:
        load(tmp_path, RUBRIC.replace(old, new))
    assert message in str(told.value) and "\n" not in str(told.value)


def test_one_category_is_no_choice(tmp_path):
    with pytest.raises(ValueError, match="two categories or more"):
        load(tmp_path, RUBRIC[: RUBRIC.index("  words:")])


def test_the_critic_has_to_be_somewhere(tmp_path):
    with pytest.raises(ValueError, match="classify: unknown critic 'sorter'; add it to critics"):
        rubric_critics(load(tmp_path), {})


def test_grape_lint(tmp_path, capsys):
    load(tmp_path)
    data = written(tmp_path / "d.jsonl", [{"kind": 1, "word": "x"}, {"kind": 2, "word": "y"}, {"kind": 2, "word": "z"}])
    assert main(["lint", str(tmp_path / "rubric.yaml"), "--data", str(data)]) == 0
    assert "no problems found" in capsys.readouterr().out
    load(tmp_path, CALLED)
    assert main(["lint", str(tmp_path / "rubric.yaml"), "--data", str(data), "--allow", "sorting.py"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert next(line for line in lines if "word" in line and "regex" in line).split()[-1] in ("2", "│", "|")
