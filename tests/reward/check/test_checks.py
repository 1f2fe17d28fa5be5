"""The checks, each by examples; a failure of the grading is a missing verdict and never a score."""

import math

import pytest
import reasoning_gym
from pydantic import TypeAdapter

from grape_rl.reward.check.checks import Check, check_verdict
from grape_rl.types import Response


def response(text="", row=None, tokens=10, finish="stop"):
    return Response("the prompt", text, row or {}, tokens, finish)


def graded(spec, given, context=None):
    return check_verdict("item", TypeAdapter(Check).validate_python(spec, context=context), given)


def score(spec, text, row=None, **more):
    found = graded(spec, response(text, row, **more))
    assert (found.item, found.status, found.confidence) == ("item", "ok", 1.0), found
    assert found.provenance == spec["type"]
    return found.score


def missing(found, reason):
    assert found.status == "infrastructure"
    assert math.isnan(found.score) and math.isnan(found.confidence)
    assert reason in found.reasoning, found.reasoning
    return True


@pytest.mark.parametrize(
    ("more", "gold", "text", "expected"),
    [
        ({}, "two words", "  two\n words ", 1),
        ({}, "two words", "twowords", 0),
        ({}, "Yes", "yes", 0),
        ({"ignore_case": True}, "Straße", "STRASSE", 1),
        ({}, 72, "72", 1),
        ({"extract": "A: (.*)"}, "b", "A: a\nA: b ", 1),
        ({"extract": "A: (.*)"}, "b", "b", 0),  # no answer is the policy's fault
        ({"gold_extract": "#### (.*)"}, "so\n#### b", "b", 1),
    ],
)
def test_exact(more, gold, text, expected):
    assert score({"type": "exact", "gold": "${row.gold}"} | more, text, {"gold": gold}) == expected


@pytest.mark.parametrize(
    ("more", "gold", "text", "expected"),
    [
        ({}, "72", "I say 70. No: 72.", 1),  # the last number
        ({}, "72", "72, not 70", 0),
        ({}, "72", "seventy-two", 0),
        ({}, 1200, "it is $1,200.00", 1),
        ({}, "50%", "50 percent", 1),
        ({}, "0.75", "3/4", 1),
        ({}, "-3", "3", 0),
        ({"extract": "#### (.+)"}, "72", "#### 72 apples", 1),
        ({"extract": "#### (.+)"}, "72", "72", 0),
        ({"extract": "#### (.+)"}, "72", "#### 70 or 72", 0),  # two answers are none
        ({"extract": "#### (.+)"}, "72", "#### many", 0),
        ({"rel_tol": 0.01}, 100, "99", 1),
        ({"rel_tol": 0.01}, 100, "98.99", 0),
        ({"rel_tol": 0.01}, -100, "-101", 1),
        ({"abs_tol": 0.3}, 0, "0.3", 1),  # to the bound itself, though the float 0.3 is under 3/10
        ({"abs_tol": 0.3}, 0, "-0.3001", 0),
        ({"abs_tol": 2, "rel_tol": 0.01}, 100, "102", 1),  # the wider of the two
        ({}, 9007199254740993, "9007199254740992", 0),  # equal as floats
        ({}, 0.1, "0.1", 1),
    ],
)
def test_numeric(more, gold, text, expected):
    assert score({"type": "numeric", "gold": "${row.gold}"} | more, text, {"gold": gold}) == expected


@pytest.mark.parametrize("gold", ["none", "1 or 2", None, math.nan, True, [1]])
def test_a_gold_answer_that_is_not_a_number_is_missing_and_not_zero(gold):
    assert missing(graded({"type": "numeric", "gold": "${row.gold}"}, response("72", {"gold": gold})), "gold answer")


@pytest.mark.parametrize("gold", ["", "  ", None, True, math.nan, {"a": 1}])
def test_a_gold_answer_that_is_not_text_is_missing_and_not_zero(gold):
    assert missing(graded({"type": "exact", "gold": "${row.gold}"}, response("", {"gold": gold})), "gold answer")


def test_an_absent_column_is_missing():
    found = graded({"type": "exact", "gold": "${row.gold}"}, response("a", {"answer": "a"}))
    assert missing(found, "no 'gold' in the row, which has answer")


def test_regex():
    check = {"type": "regex", "pattern": r"^Answer: \S+$"}
    assert score(check, "Answer: 5") == 1
    assert score(check, "So\nAnswer: 5") == 0
    assert score(check | {"multiline": True}, "So\nAnswer: 5\nBye") == 1


def test_text_from_the_row_is_matched_literally():
    row = {"answer": "3.5 (a+b)", "sly": "${row.answer}"}
    assert score({"type": "regex", "pattern": "is ${row.answer}$"}, "is 3.5 (a+b)", row) == 1
    assert score({"type": "regex", "pattern": "${row.answer}"}, "3x5 aab", row) == 0
    assert score({"type": "exact", "gold": "x", "extract": "${row.answer} (.*)"}, "3.5 (a+b) x", row) == 1
    assert score({"type": "exact", "gold": "x", "gold_extract": "${row.none}x"}, "x", {"none": ""}) == 1
    assert score({"type": "exact", "gold": "${row.sly}"}, "${row.answer}", row) == 1


@pytest.mark.parametrize(
    ("limits", "tokens", "text", "expected"),
    [
        ({"max_tokens": 24}, 24, "", 1),
        ({"max_tokens": 24}, 25, "", 0),
        ({"min_tokens": 5}, 5, "", 1),
        ({"min_tokens": 5}, 4, "", 0),
        ({"max_characters": 3}, 99, "abc", 1),
        ({"max_characters": 3}, 99, "abcd", 0),
        ({"min_tokens": 2, "max_tokens": 4, "max_characters": 3}, 3, "abcd", 0),
        ({"min_tokens": 2, "max_tokens": 4, "max_characters": 3}, 1, "a", 0),
        ({"min_tokens": 2, "max_tokens": 4, "max_characters": 3}, 3, "a", 1),
        ({"max_tokens": 0}, 1, "", 0),
    ],
)
def test_length(limits, tokens, text, expected):
    assert score({"type": "length"} | limits, text, tokens=tokens) == expected


def test_a_truncated_response_is_graded_as_it_is():
    assert score({"type": "numeric", "gold": 7}, "so it is 7", finish="length") == 1


@pytest.mark.parametrize("task", ["chain_sum", "spell_backward", "number_sorting"])
def test_real_reasoning_gym_tasks(task):
    check = {"type": "reasoning_gym", "extract": "Answer: (.*)"}
    for entry in reasoning_gym.create_dataset(task, size=20, seed=3):
        row, gold = {"task": task, "entry": entry}, entry["answer"]
        wrong = {"chain_sum": f"{gold}1", "spell_backward": f"{gold}x", "number_sorting": "['0']"}[task]
        assert score(check, f"Let me see.\nAnswer: {gold} ", row) == 1
        assert score(check, f"Let me see.\nAnswer: {wrong}", row) == 0
        assert score(check, gold, row) == 0  # the answer is not where it has to be
        assert score({"type": "reasoning_gym"}, f" {gold}\n", row) == 1


def test_reasoning_gym_partial_scores_count_only_with_partial():
    entry = reasoning_gym.create_dataset("spell_backward", size=1, seed=3)[0]
    row = {"name": "spell_backward", "deep": {"entry": entry}}
    close = entry["answer"][:-1] + "?"
    own = reasoning_gym.get_score_answer_fn("spell_backward")(answer=close, entry=entry)
    check = {"type": "reasoning_gym", "task": "${row.name}", "entry": "${row.deep.entry}"}
    assert 0 < own < 1
    assert score(check, close, row) == 0
    assert score(check | {"partial": True}, close, row) == own


def test_partial_credit_above_one_is_not_a_right_answer():
    entry = {"question": "", "answer": "", "metadata": {}}
    row = {"task": "spell_backward", "entry": entry}
    for size in range(1, 60):
        entry["answer"] = "a" * size
        assert score({"type": "reasoning_gym"}, entry["answer"], row) == 1
        assert score({"type": "reasoning_gym"}, entry["answer"] + "b", row) == 0
        assert score({"type": "reasoning_gym", "partial": True}, entry["answer"] + "b", row) <= 1


@pytest.mark.parametrize("given", [math.nan, 1.5, -0.5])
@pytest.mark.parametrize("partial", [False, True])
def test_an_invalid_reasoning_gym_score_is_missing(monkeypatch, given, partial):
    monkeypatch.setattr("grape_rl.reward.check.checks._reasoning_gym_score", lambda task: lambda answer, entry: given)
    found = graded({"type": "reasoning_gym", "partial": partial}, response("1", {"task": "t", "entry": {}}))
    assert missing(found, "which is not in [0, 1]")


def test_an_unknown_reasoning_gym_task_is_missing():
    found = graded({"type": "reasoning_gym"}, response("1", {"task": "no_such_task", "entry": {}}))
    assert missing(found, "no_such_task")


FUNCTIONS = """
import math
import torch
from grape_rl.types import Verdict, failed

def half(r): return 0.5
def yes(r): return r.text == "yes" and r.tokens == 10 and r.prompt == "the prompt"
async def waits(r): return yes(r)
def sure(r): return Verdict("other", 0.25, 0.75, reasoning="because", provenance="mine")
def fault(r): return Verdict("other", 0.0, status="policy_fault")
def late(r): return failed("other", "timeout", "too slow")
def wild(r): return Verdict("other", 3.0)
def nothing(r): return None
def text(r): return "1"
def code(r): return b"1"
def several(r): return [1.0, 0.0]
def tensor(r): return torch.tensor(several(r))
def one(r): return torch.tensor([[0.5]])
def nan(r): return math.nan
def inf(r): return math.inf
def over(r): return 1.01
def under(r): return -0.01
def raises(r): raise KeyError("no such key")
def leaves(r): raise SystemExit(0)
def own_type(r): return object()
def zero_arguments(): return 1
"""


@pytest.fixture
def call(tmp_path):
    (tmp_path / "mine.py").write_text(FUNCTIONS)
    context = {"folder": tmp_path, "allow": ["mine.py"]}
    return lambda name: graded({"type": "python", "call": f"mine.py:{name}"}, response("yes"), context)


def test_python_functions(call):
    assert (call("half").score, call("half").confidence, call("half").provenance) == (0.5, 1, "python")
    assert call("yes").score == call("waits").score == 1
    assert call("one").score == 0.5
    found = call("sure")
    assert (found.item, found.score, found.confidence) == ("item", 0.25, 0.75)
    assert (found.reasoning, found.provenance) == ("because", "mine")
    assert (call("fault").score, call("fault").status, call("fault").provenance) == (0, "policy_fault", "python")
    assert (call("late").item, call("late").status, call("late").reasoning) == ("item", "timeout", "too slow")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nothing", "TypeError: returned None, which is not a number"),
        ("text", "TypeError: returned '1', which is not a number"),
        ("code", "TypeError: returned b'1', which is not a number"),
        ("several", "TypeError: returned [1.0, 0.0], which is not a number"),
        ("tensor", "TypeError: returned tensor([1., 0.]), which is not a number"),
        ("nan", "nan"),
        ("inf", "inf"),
        ("over", "score 1.01 is not in [0, 1]"),
        ("under", "score -0.01 is not in [0, 1]"),
        ("wild", "score 3.0 is not in [0, 1]"),
        ("raises", "KeyError: 'no such key'"),
        ("leaves", "SystemExit: 0"),
        ("own_type", "TypeError"),
        ("zero_arguments", "TypeError"),
    ],
)
def test_a_python_function_that_fails_is_missing_and_not_zero(call, name, reason):
    assert missing(call(name), reason)
