"""Checks that hang, exit their process or cannot be loaded: missing verdicts, and the next check is graded."""

import os

import pytest
from pydantic import TypeAdapter

from grape_rl.reward.check.checks import Check
from grape_rl.reward.check.sandbox import bubblewrap_problem
from grape_rl.reward.check.worker import CheckJob, Worker, run_checks
from grape_rl.types import Response

FUNCTIONS = """
import asyncio, os, sys, time
def process(response): return os.getpid() != int(response.row["pid"])
def loops(response):
    while True: pass
def ends(response): os._exit(7)
def leaves(response): sys.exit(0)
def prints(response):
    print("loud"); os.write(1, b"louder")
    return True
def raises(response): raise KeyError("no")
def length(response): return len(response.text) / 10
def lazy(response):
    import beside_the_rubric
    return beside_the_rubric.score
def reads(response): return input("answer? ") == ""
def reads_all(response): return sys.stdin.read() == ""
def goes(response):
    os.chdir("/")
    return True
def stays(response): return os.getcwd() == response.row["folder"]
def nothing(response): pass
def several(response): return [1.0, 0.0]
async def waits(response):
    await asyncio.sleep(0.01)
    return len(response.text) / 10
async def waits_and_raises(response): raise KeyError("no")
async def waits_for_ever(response): await asyncio.sleep(1000)
class Waiting:
    async def __call__(self, response): return await waits(response)
instance = Waiting()
"""


@pytest.fixture
def check(tmp_path):
    (tmp_path / "functions.py").write_text(FUNCTIONS)
    context = {"folder": tmp_path, "allow": frozenset(["functions.py"])}

    def made(spec, timeout_s=60):
        spec = {"type": "python", "call": f"functions.py:{spec}"} if isinstance(spec, str) else spec
        return TypeAdapter(Check).validate_python({"timeout_s": timeout_s} | spec, context=context)

    return made


def response(text, row=None):
    return Response("the prompt", text, row or {}, 10, "stop")


def test_a_function_runs_in_another_process(check):
    (found,) = run_checks([CheckJob("item", check("process"), response("", {"pid": os.getpid()}))])
    assert (found.item, found.score, found.provenance) == ("item", 1, "python")


def test_a_check_that_hangs_or_exits_is_missing_and_the_rest_is_graded(check):
    hangs = check({"type": "regex", "pattern": "(a+)+$"}, timeout_s=1)
    jobs = [
        CheckJob("first", check("length"), response("12345")),
        CheckJob("hangs", hangs, response("a" * 40 + "b")),
        CheckJob("loops", check("loops", timeout_s=1), response("")),
        CheckJob("ends", check("ends"), response("")),
        CheckJob("leaves", check("leaves"), response("")),
        CheckJob("prints", check("prints"), response("")),
        CheckJob("raises", check("raises"), response("")),
        CheckJob("short", hangs, response("aaa")),
        CheckJob("last", check("length"), response("123")),
    ]
    found = {verdict.item: verdict for verdict in run_checks(jobs)}  # at once, where it would take an age
    assert list(found) == [job.item for job in jobs]
    assert (found["first"].score, found["short"].score, found["last"].score) == (0.5, 1, 0.3)
    assert found["prints"].score == 1
    for name in ("hangs", "loops"):
        assert (found[name].status, found[name].reasoning) == ("timeout", "no verdict within 1 seconds")
    assert found["ends"].status == "infrastructure"
    assert found["ends"].reasoning == "the check ended its process (status 7)"
    assert "SystemExit" in found["leaves"].reasoning and found["leaves"].missing
    assert "KeyError" in found["raises"].reasoning and found["raises"].missing
    assert [found[name].provenance for name in ("hangs", "ends", "prints")] == ["regex", "python", "python"]


def test_a_function_has_no_input_and_starts_in_the_folder_of_the_run(check):
    row = {"folder": os.getcwd()}
    names = ("reads", "reads_all", "goes", "stays")
    found = {v.item: v for v in run_checks([CheckJob(name, check(name), response("", row)) for name in names])}
    assert found["reads"].missing and found["reads"].reasoning == "EOFError: EOF when reading a line"
    assert [found[name].score for name in ("reads_all", "goes", "stays")] == [1, 1, 1]
    run_checks([CheckJob("goes", check("goes"), response("", row))])
    assert run_checks([CheckJob("stays", check("stays"), response("", row))])[0].score == 1


def test_the_error_for_a_return_value_that_is_not_a_number(check):
    found = run_checks([CheckJob(name, check(name), response("")) for name in ("nothing", "several")])
    assert [v.reasoning for v in found] == [
        "TypeError: returned None, which is not a number",
        "TypeError: returned [1.0, 0.0], which is not a number",
    ]


def test_async_functions(check):
    names = ("waits", "instance", "waits_and_raises", "waits_for_ever", "waits")
    found = run_checks(
        [CheckJob(n, check(n, timeout_s=1 if n == "waits_for_ever" else 60), response("123")) for n in names]
    )
    assert [v.score for v in found if not v.missing] == [0.3, 0.3, 0.3]
    assert found[2].reasoning == "KeyError: 'no'"
    assert (found[3].status, found[3].reasoning) == ("timeout", "no verdict within 1 seconds")


def test_a_function_imports_its_neighbor_when_it_is_called(check, tmp_path):
    (tmp_path / "beside_the_rubric.py").write_text("score = 0.75")
    assert run_checks([CheckJob("lazy", check("lazy"), response(""))])[0].score == 0.75


def test_a_deleted_file_is_a_missing_verdict(check, tmp_path):
    job = CheckJob("item", check("length"), response("12"))
    (tmp_path / "functions.py").unlink()
    (found,) = run_checks([job])
    assert found.missing and "cannot be loaded" in found.reasoning and found.item == "item"


def test_the_process_is_reused_and_restarted(check):
    worker = Worker()
    job = CheckJob("item", check("length"), response("12"))
    assert worker.verdicts([job])[0].score == 0.2
    first = worker.process.pid
    assert worker.verdicts([job])[0].score == 0.2 and worker.process.pid == first
    assert worker.verdicts([CheckJob("item", check("loops", timeout_s=1), response(""))])[0].status == "timeout"
    assert worker.process is None
    assert worker.verdicts([job])[0].score == 0.2 and worker.process.pid != first
    again = worker.process
    worker.end()
    assert again.poll() is not None and worker.process is None


def test_an_interrupted_batch_leaves_nothing_for_the_next(check, monkeypatch):
    jobs = [CheckJob(name, check("length"), response(text)) for name, text in (("one", "1"), ("two", "12"))]
    worker = Worker()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Worker, "_receive", interrupted(Worker._receive))
        worker.verdicts(jobs)
    assert [found.score for found in worker.verdicts(jobs[::-1])] == [0.2, 0.1]
    worker.end()


def interrupted(heard):
    """An interrupt before the second verdict."""
    calls = []

    def told(self, seconds):
        calls.append(seconds)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return heard(self, seconds)

    return told


@pytest.mark.skipif(bool(bubblewrap_problem()), reason="no bubblewrap")
def test_programs_are_graded_in_parallel_and_in_order(check):
    spec = {"type": "unit_tests", "tests": "import time\ntime.sleep(0.5)\nassert f(1) == 1\nassert f(2) == 4"}
    jobs = [
        CheckJob(f"{n}", check(spec | {"timeout_s": 5}), response(f"def f(x):\n    return x ** {n}")) for n in range(3)
    ]
    found = run_checks([*jobs, CheckJob("length", check("length"), response("12"))])
    assert [verdict.item for verdict in found] == ["0", "1", "2", "length"]
    assert [verdict.score for verdict in found] == [0.5, 0.5, 1, 0.2]
    assert found[0].reasoning == "1 of 2; assert f(2) == 4: AssertionError"


@pytest.mark.skipif(bool(bubblewrap_problem()), reason="no bubblewrap")
@pytest.mark.parametrize(
    ("text", "more", "score", "status"),
    [
        ("```python\ndef f(x):\n    return x\n```\nand\n```python\ndef f(x):\n    return x * x\n```", {}, 1, "ok"),
        ("def f(x):\n    return x", {}, 0.5, "ok"),
        ("def f(x):\n    return x", {"score": "all"}, 0, "ok"),
        ("<code>def f(x): return x * x</code>", {"extract": "<code>(.*)</code>"}, 1, "ok"),
        ("no code", {"extract": "<code>(.*)</code>"}, 0, "ok"),
        ("def f(x): syntax", {}, 0, "ok"),
        ("def f(x): return x", {"tests": "x = 1"}, None, "infrastructure"),
        ("def f(x):\n    while True: pass", {"timeout_s": 0.5}, 0, "ok"),
    ],
)
def test_unit_tests(check, text, more, score, status):
    spec = {"type": "unit_tests", "tests": "assert f(1) == 1\nassert f(2) == 4", "timeout_s": 5} | more
    (found,) = run_checks([CheckJob("item", check(spec), response(text))])
    assert found.status == status, found
    assert found.missing if score is None else found.score == score


def test_unit_tests_are_refused_where_there_is_no_isolation(check, monkeypatch):
    monkeypatch.setattr("grape_rl.reward.check.unit_tests.bubblewrap_problem", lambda: "no bwrap here")
    with pytest.raises(ValueError, match="no bwrap here"):
        check({"type": "unit_tests", "tests": "assert f(1)"})
    assert check({"type": "unit_tests", "tests": "assert f(1)", "isolation": "none"})
