import json

import pytest

from grape_rl.reward.rubric import category_name, check_rows, load_rubric

HEAD = "schema: grape-rubric/1\ncategories:\n  sums:\n    items:\n"
EXAMPLE = r"""
schema: grape-rubric/1
categories:
  sums:
    when: {task: [chain_sum, basic_arithmetic], level: 1}
    items:
      - {id: correct, weight: 6, gate: true, check: {type: reasoning_gym, extract: 'Answer: (.*)'}}
      - {id: format, check: {type: regex, pattern: '^Answer: \S+$'}}
      - {id: long, weight: -0.5, check: {type: length, min_tokens: 24}}
      - {id: dose, weight: 5, check: {type: numeric, extract: '#### (.+)', gold: "${row.meta.mg}", rel_tol: 1e-2}}
      - {id: padding, role: monitor, check: {type: exact, gold: "x"}}
  rest:
    when: {task: other}
    items: [{id: own, check: {type: python, call: "mine.py:f"}}]
"""


def load(tmp_path, text, allow=(), name="rubric.yaml"):
    (tmp_path / name).write_text(text)
    return load_rubric(tmp_path / name, allow)


def test_a_whole_rubric(tmp_path):
    (tmp_path / "mine.py").write_text("def f(response): return 1\n")
    rubric = load(tmp_path, EXAMPLE, ["mine.py"])
    sums = rubric.categories["sums"]
    assert [(item.id, item.weight, item.gate, item.role, item.check.type) for item in sums.items] == [
        ("correct", 6, True, "reward", "reasoning_gym"),
        ("format", 1, False, "reward", "regex"),
        ("long", -0.5, False, "reward", "length"),
        ("dose", 5, False, "reward", "numeric"),
        ("padding", 1, False, "monitor", "exact"),
    ]
    assert [item.id for item in sums.rewarded] == ["correct", "format", "long", "dose"]
    assert sums.items[3].check.rel_tol == 0.01
    as_json = {
        "schema": "grape-rubric/1",
        "categories": {"a": {"items": [{"id": "x", "check": {"type": "exact", "gold": 1}}]}},
    }
    assert load(tmp_path, json.dumps(as_json), name="r.json").categories["a"].items[0].id == "x"


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("{id: x, wieght: 2, check: {type: exact, gold: a}}", "unknown key 'wieght'; did you mean 'weight'?"),
        ("{id: x, check: {type: regex, patern: a}}", "items[x].check: unknown key 'patern'; did you mean 'pattern'?"),
        ("{id: x, check: {type: regx, pattern: a}}", "items[x].check: unknown type 'regx'; did you mean 'regex'?"),
        ("{id: x, judg: {criterion: good}}", "unknown key 'judg'; did you mean 'judge'?"),
        ("{id: x}", "items[x]: needs exactly one of check, judge, reward_model and human"),
        ("{id: x, check: {pattern: a}}", "items[x].check: has no type"),
        ("{id: x, check: exact}", "items[x].check: should be a mapping but is 'exact'"),
        (
            "{id: no, check: {type: exact, gold: a}}",
            "items[False].id: should be text but is the boolean False: YAML reads",
        ),
        ("{id: x, check: {type: exact, gold: yes}}", "check.gold: should be text or a number but is True; put text"),
        (
            "{id: x, check: {type: regex, pattern: on}}",
            "check.pattern: should be text but is the boolean True: YAML reads",
        ),
        ("{id: 12, check: {type: exact, gold: a}}", "items[12].id: should be text but is 12: put it in quotes"),
        ("{id: '', check: {type: exact, gold: a}}", "id: String should have at least 1 character"),
        ("{id: x, id: y, check: {type: exact, gold: a}}", "line 5: duplicate key 'id'"),
        ("{id: x, weight: 0, check: {type: exact, gold: a}}", "weight 0 has no effect: use 'role: monitor'"),
        ("{id: x, weight: .nan, check: {type: exact, gold: a}}", "weight: Input should be a finite number"),
        ("{id: x, weight: .inf, check: {type: exact, gold: a}}", "weight: Input should be a finite number"),
        ("{id: x, weight: yes, check: {type: exact, gold: a}}", "weight: should be a number but is the boolean True"),
        ("{id: x, weight: -1, gate: true, check: {type: exact, gold: a}}", "a gate needs a positive weight"),
        ("{id: x, role: monitor, gate: true, check: {type: exact, gold: a}}", "a gate needs a positive weight"),
        ("{id: x, role: monitor, check: {type: exact, gold: a}}", "no rewarded item"),
        ("{id: x, check: {type: regex, pattern: 'a('}}", "check.pattern: bad pattern 'a(': missing )"),
        ("{id: x, check: {type: exact, gold: a, extract: '['}}", "check.extract: bad pattern '['"),
        ("{id: x, check: {type: exact, gold: '${answer}'}}", "check.gold: '${answer}' is not a lookup"),
        ("{id: x, check: {type: length}}", "a length check needs max_tokens, min_tokens or max_characters"),
        ("{id: x, check: {type: length, min_tokens: 3, max_tokens: 2}}", "min_tokens 3 is greater than max_tokens 2"),
        (
            "{id: x, check: {type: numeric, gold: 1, abs_tol: -1}}",
            "abs_tol: Input should be greater than or equal to 0",
        ),
        ("{id: x, check: {type: python, call: 'os:system'}}", "add 'os' to reward.allow"),
        ("exact", "should be a mapping but is 'exact'"),
    ],
)
def test_a_fault_is_one_line_with_its_place(tmp_path, item, message):
    with pytest.raises(ValueError) as caught:
        load(tmp_path, f"{HEAD}      - {item}\n")
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path}/rubric.yaml: ")
    assert "\n" not in str(caught.value)
    assert "Value error" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            HEAD + "      - &x {id: x, check: {type: exact, gold: a}}\n      - *x\n",
            "categories.sums: duplicate item 'x'",
        ),
        (
            HEAD.replace("/1", "/2") + "      - {id: x, check: {type: exact, gold: a}}",
            "schema: Input should be 'grape-rubric/1'",
        ),
        (
            HEAD + "      - {id: x, wait: 1}\n      - {id: y, gat: 1}",
            "items[x]: unknown key 'wait'; did you mean 'weight'?; ",
        ),
        (
            "schema: grape-rubric/1\ncategories: {off: {items: []}}",
            "categories: a key should be text but is the boolean False",
        ),
        ("schema: grape-rubric/1\ncategories: {}", "categories: Dictionary should have at least 1 item"),
        ("schema: grape-rubric/1\ncategories: {a: {items: []}}", "categories.a: no rewarded item"),
        (
            "schema: grape-rubric/1\ncategories: {a: {when: [task], items: []}}",
            "categories.a.when: Input should be a valid dictionary",
        ),
        (
            "schema: grape-rubric/1\ncategories: {a: {when: {task: {b: 1}}, items: []}}",
            "categories.a.when.task",
        ),
        ("a: [", "while parsing a flow node"),
        ("- a", "should be a mapping but is ['a']"),
        ("", "should be a mapping but is None"),
        ("!!python/object/apply:os.getcwd []", "could not determine a constructor"),
    ],
)
def test_a_fault_of_the_whole_file(tmp_path, text, message):
    with pytest.raises(ValueError) as caught:
        load(tmp_path, text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ValueError, match="cannot be read"):
        load_rubric(tmp_path / "none.yaml")
    with pytest.raises(ValueError, match="duplicate key 'a'"):
        load(tmp_path, '{"a": 1, "a": 2}', name="r.json")
    with pytest.raises(ValueError, match=r"r\.json: Expecting"):
        load(tmp_path, "{", name="r.json")


def test_a_reasoning_gym_check_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "reasoning_gym", None)
    with pytest.raises(ValueError, match=r"install grape-rl\[tasks\]"):
        load(tmp_path, HEAD + "      - {id: x, check: {type: reasoning_gym}}")


def test_categories(tmp_path):
    item = "items: [{id: x, check: {type: exact, gold: a}}]"
    rubric = load(
        tmp_path,
        "schema: grape-rubric/1\ncategories:\n"
        f"  low: {{when: {{task: [a, b], level: 1}}, {item}}}\n"
        f"  high: {{when: {{task: a, level: [2, 3]}}, {item}}}\n"
        f"  also: {{when: {{level: 3}}, {item}}}\n",
    )
    assert category_name(rubric, {"task": "a", "level": 1, "more": 0}) == "low"
    assert category_name(rubric, {"task": "b", "level": 1}) == "low"
    assert category_name(rubric, {"task": "a", "level": 2}) == "high"
    assert category_name(rubric, {"level": 3}) == "also"
    with pytest.raises(ValueError, match=r"\{task='a', level=3\} belongs to more than one category: high, also"):
        category_name(rubric, {"task": "a", "level": 3})
    for row in ({"task": "b", "level": 2}, {"task": "a"}, {"task": "a", "level": "1"}, {"task": "a", "level": True}):
        with pytest.raises(
            ValueError, match=r"belongs to no category; categories: low .when task is 'a' or 'b' and level is 1.; high"
        ):
            category_name(rubric, row)
    everything = load(tmp_path, f"schema: grape-rubric/1\ncategories: {{all: {{{item}}}}}")
    assert category_name(everything, {}) == "all"


def test_rows_that_cannot_be_graded_are_found_before_training(tmp_path):
    (tmp_path / "mine.py").write_text("def f(response): return 1\n")
    rubric = load(tmp_path, EXAMPLE, ["mine.py"])
    good = {"task": "chain_sum", "level": 1, "entry": {}, "meta": {"mg": 3}}
    check_rows(rubric, [good, {"task": "other"}])
    with pytest.raises(
        ValueError,
        match=r"row 1: item 'dose' of category 'sums': \$\{row.meta.mg\}: no 'mg' in the row, which has task, level",
    ):
        check_rows(rubric, [good, {**good, "meta": {}}, {**good, "meta": 3}])
    with pytest.raises(ValueError, match=r"row 0: item 'correct' of category 'sums': \$\{row.entry\}: no 'entry'"):
        check_rows(rubric, [{"task": "chain_sum", "level": 1, "meta": {"mg": 3}}])  # the check's own default look-up
    with pytest.raises(ValueError, match=r"row 2: the row \{task='z'\} belongs to no category"):
        check_rows(rubric, [good, good, {"task": "z"}])
