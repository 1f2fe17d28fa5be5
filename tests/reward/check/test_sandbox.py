"""Hostile programs: none passes a test, hangs, or leaves a process or a file."""

import os
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from hostile import HOSTILE

from grape_rl.reward.check import sandbox
from grape_rl.reward.check.sandbox import SandboxLimits
from grape_rl.reward.check.unit_test_runner import run_unit_tests

pytestmark = pytest.mark.skipif(
    bool(sandbox.bubblewrap_problem()), reason=sandbox.bubblewrap_problem() or "bubblewrap works"
)

LIMITS = SandboxLimits(cpu_s=4, memory_mb=256, files_mb=4, processes=8)


def run(program, tests, seconds=4.0, **more):
    return run_unit_tests(program, tests, LIMITS, seconds, **more)


def sandboxes():
    """The host's processes that belong to a sandbox."""
    found = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    return [line for line in found.splitlines() if str(sandbox.SCRIPTS) in line]


TESTS = """
import math, unittest
assert f(1) == 42
assert abs(f(1) - 42) < 1e-6
assert f(1) in (41, 42)
assert 42 == f(1)
def test_f():
    assert f(1) == 42
class Test(unittest.TestCase):
    def test_equal(self):
        self.assertEqual(f(1), 42)
    def test_close(self):
        self.assertAlmostEqual(f(1), 42)
"""


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_program_passes_nothing_and_leaves_nothing(name):
    held, began = len(os.listdir("/proc/self/fd")), time.monotonic()
    report = run(HOSTILE[name], TESTS, seconds=2.0)
    assert time.monotonic() - began < 8
    assert not any(case.passed for case in report.cases), report
    assert report.fault or len(report.cases) == 7
    assert not sandboxes()
    assert len(os.listdir("/proc/self/fd")) == held


def test_a_right_program_passes_the_tests():
    report = run("def f(x):\n    return 41 + x", TESTS)
    assert [case.passed for case in report.cases] == [True] * 7 and not report.fault


def said(program):
    """The value of a program's ``f``, read from a test that raises it."""
    (case,) = run(program, "def test_f():\n    raise ValueError(f())").cases
    return case.reason.removeprefix("ValueError: ")


def test_a_program_sees_no_environment(monkeypatch):
    monkeypatch.setenv("SECRET", "hush")
    seen = said("import os\ndef f():\n    return sorted(os.environ)")
    assert "SECRET" not in seen and "HOME" in seen
    assert said("def f():\n    return open('/proc/1/environ').read()").startswith(("PermissionError", "''"))


@pytest.mark.parametrize("path", ["/etc/passwd", "/etc/hostname", str(Path(__file__)), str(Path.home() / ".bashrc")])
def test_a_program_sees_no_files_of_the_machine(path):
    assert said(f"import os\ndef f():\n    return os.path.exists({path!r})") == "False"


def test_a_program_leaves_no_files(tmp_path):
    before = set(os.listdir(tempfile.gettempdir()))
    assert said("def f():\n    open('/tmp/left', 'w').write('x')\n    return open('/tmp/left').read()") == "x"
    assert not (Path("/tmp/left").exists())
    assert not {name for name in set(os.listdir(tempfile.gettempdir())) - before if "left" in name}
    for place in (tmp_path / "left", sandbox.SCRIPTS / "left", Path("/usr/left"), Path("/left")):
        assert "Error" in said(f"def f():\n    return open({str(place)!r}, 'w').write('x')"), place
        assert not place.exists()


def test_the_size_of_a_program_s_files_is_limited():
    program = """
def f():
    for n in range(100):
        open(f"/tmp/{n}", "w").write("x" * 2**20)
"""
    assert "No space left" in said(program)


@pytest.mark.parametrize("address", [("1.1.1.1", 53), ("127.0.0.1", 22)])
def test_a_program_has_no_network(address):
    assert "Error" in said(f"import socket\ndef f():\n    return socket.create_connection({address}, timeout=1)")
    assert said("import socket\ndef f():\n    return len(socket.if_nameindex())") == "1", "but the loopback"


def test_a_program_has_no_privileges():
    assert said("import os\ndef f():\n    return os.getuid() != 0 or os.setuid(0)").endswith(("True", "permitted"))
    assert "Error" in said("import os\ndef f():\n    os.setuid(0)\n    os.chroot('/tmp')")
    program = """
def f():
    lines = dict(line.split(":") for line in open("/proc/thread-self/status"))
    return [int(lines[name], 16) for name in ("CapPrm", "CapEff", "CapAmb", "NoNewPrivs")]
"""
    assert said(program) == "[0, 0, 0, 1]"


def test_objects_created_by_a_test():
    program = """
class Money(Exception): pass
class Purse:
    def __init__(self, coins): self.coins = coins
    def __add__(self, other): return Purse(self.coins + other.coins)
    def __eq__(self, other): return self.coins == other.coins
    def __len__(self): return len(self.coins)
    def __iter__(self): return iter(self.coins)
    def __bool__(self): return bool(self.coins)
    def take(self, coin):
        if coin not in self.coins: raise Money(f"no {coin}")
        self.coins.remove(coin); return self
    total = property(lambda self: sum(self.coins))
"""
    plain = """
purse = Purse([1, 2])
assert purse.total == 3 and len(purse) == 2 and list(purse) == [1, 2]
assert purse and not Purse([])
assert purse.take(1).total == 2
assert isinstance(purse, Purse) and not isinstance(3, Purse)
def test_raises():
    from solution import Money
    try: purse.take(7)
    except Money as error: assert str(error) == "no 7"
    else: assert False
def test_assigns():
    purse.coins = [5]
    assert purse.total == 5
"""
    assert all(case.passed for case in run(program, plain).cases)
    operators = (
        "assert (Purse([1]) + Purse([2])).total == 3\nassert Purse([1]) == Purse([1])\nassert Purse([1]) != Purse([2])"
    )
    assert [case.passed for case in run(program, operators).cases] == [False, False, True]
    assert all(case.passed for case in run(program, operators, objects=True).cases)


def test_values_keep_their_type():
    program = "def f(x): return x"
    values = [
        "None", "True", "-3", "2**80", "0.1", "float('inf')", "'é\\ud800'", "b'\\xff'", "1+2j", "[1, [2]]",
        "(1,)", "{1, 2}",
        "frozenset({1})", "{1: 'a', (2, 3): [4]}", "range(2, 9, 3)", "__import__('fractions').Fraction(1, 3)",
        "__import__('decimal').Decimal('0.1')", "__import__('datetime').date(2020, 1, 2)",
        "__import__('collections').Counter('aab')", "__import__('collections').deque([1])",
    ]  # fmt: skip
    tests = "\n".join(f"assert f({v}) == {v} and type(f({v})) is type({v})" for v in values)
    report = run(program, tests + "\nassert f(float('nan')) != f(float('nan'))")
    assert [case for case in report.cases if not case.passed] == []


def test_arguments_functions_and_generators_cross_the_pipe():
    program = """
def sort(values): values.sort()
def fill(table, key): table[key] = len(table)
def apply(function, *values, **more): return [function(v, **more) for v in values]
def careful(function):
    try: function()
    except ValueError as error: return str(error)
def numbers():
    yield 1
    yield 2
"""
    tests = """
def test_in_place():
    values, table = [3, 1], {}
    sort(values); fill(table, 'a')
    assert values == [1, 3] and table == {'a': 0}
def test_functions():
    assert apply(lambda v, by=1: v * by, 1, 2, by=3) == [3, 6]
    def bad(): raise ValueError('so')
    assert careful(bad) == 'so'
def test_generators():
    assert list(numbers()) == [1, 2] and next(numbers()) == 1 and 2 in numbers()
def test_a_name_that_is_not_there():
    import solution
    assert not hasattr(solution, 'absent')
"""
    assert [case for case in run(program, tests).cases if not case.passed] == []


@pytest.mark.parametrize(
    ("tests", "told"),
    [
        ("assert f(1) ==", "the tests do not parse"),
        ("x = 1", "the tests have no case"),
        ("import numpy_of_nowhere\nassert f(1)", "the tests themselves fail: ModuleNotFoundError"),
        ("x = 1 / 0\nassert f(1)", "the tests themselves fail: ZeroDivisionError"),
        ("def test_f(tmp_path): pass", "test_f has parameters"),
        ("class Tree: pass\nassert f(Tree())", "the tests pass an object of their class Tree to the program"),
    ],
)
def test_faulty_tests_are_not_the_program_s_fault(tests, told):
    with pytest.raises(ValueError, match=told):
        run("def f(x): return x", tests)


def test_endless_tests_are_not_the_program_s_fault(monkeypatch):
    monkeypatch.setattr("grape_rl.reward.check.unit_test_runner.GRACE_S", 0.5)
    with pytest.raises(TimeoutError, match="the tests did not end within 2 seconds"):
        run("def f(x): return x", "while True: pass\nassert f(1)", seconds=1.0)
    assert not sandboxes()


def test_a_program_that_lacks_a_name_fails():
    assert [case.passed for case in run("def g(x): return x", "assert g(1) == 1\nassert f(1) == 1").cases] == [
        True,
        False,
    ]
    missing = run("def g(x): return x", "from solution import f\nassert f(1) == 1")
    assert [case.passed for case in missing.cases] == [False]


def test_an_entry_point():
    tests = "def check(candidate):\n    assert candidate(2) == 4"
    assert run("def f(x): return 2 * x", tests, entry_point="f").cases[0].passed
    assert not run("def f(x): return x", tests, entry_point="f").cases[0].passed
    (case,) = run("def g(x): return x", tests, entry_point="f").cases
    assert (case.passed, case.reason) == (False, "the program has no f")


def test_without_bubblewrap_it_refuses_to_run(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    sandbox.bubblewrap_problem.cache_clear()
    try:
        with pytest.raises(ValueError, match="bwrap is not installed: install it"):
            run("def f(x): return x", "assert f(1)")
        assert run("def f(x): return x", "assert f(1)", isolation="none").cases[0].passed
    finally:
        sandbox.bubblewrap_problem.cache_clear()
