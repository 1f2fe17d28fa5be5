"""Runs tests in a sandbox of their own against a program in another, and reports each case on standard output.

A case is an ``assert`` at the top of the source, a function ``test_…``, a method of a ``unittest.TestCase``, or, with
an entry point, the function ``check`` that takes the program's function. The first line of standard input says all that
is to be known; the report carries its ``marker``.
"""

import ast
import inspect
import os
import sys
import types
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from confine import confined
from proxy import Ended, Link, ProgramError, Remote, Unsupported
from wire import received, sent

MODULE = "solution"


def report(told: dict) -> dict:
    """Each case with whether it passed and why not; or what is amiss with the tests."""
    link = Link(told["answers"], told["requests"], told["seconds"], told["objects"])
    try:
        tree = ast.parse(told["tests"], "tests.py")
    except SyntaxError as error:
        return {"unsupported": f"the tests do not parse: {error}"}
    try:
        names = [str(name) for name in list(link.value(link.asked(do="load", source=told["program"])["value"]))]
    except Exception as error:
        return {"cases": [], "fault": f"the program fails as it is loaded: {said(error)}"}
    except Ended as error:
        return {"cases": [], "fault": f"as the program is loaded, {error}"}
    space = {"__name__": "tests"}
    module = Module(Remote(link, 0, "module"))
    sys.modules[MODULE] = module
    try:
        space.update((name, getattr(module, name)) for name in names)
        return {"cases": run(tree, space, told["entry_point"])}
    except Ended as error:
        return {"cases": [], "fault": str(error)}
    except Unsupported as error:
        return {"unsupported": str(error)}


class Module(types.ModuleType):
    """The program's module, to be imported by the tests."""

    def __init__(self, remote):
        super().__init__(MODULE)
        self.__dict__["remote"] = remote

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.__dict__["remote"], name)


def run(tree: ast.Module, space: dict, entry_point: str) -> list[dict]:
    """Every case in its order; once the program is gone, the rest fail."""
    found, gone = [], ""

    def case(name, body):
        nonlocal gone
        try:
            if gone:
                raise Ended(gone)
            body()
            found.append({"name": name, "passed": True, "why": ""})
        except Ended as error:
            gone = str(error)
            found.append({"name": name, "passed": False, "why": gone})
        except Unsupported:
            raise
        except BaseException as error:
            found.append({"name": name, "passed": False, "why": said(error)})

    for node in tree.body:
        code = compile(ast.Module([node], []), "tests.py", "exec")
        if isinstance(node, ast.Assert):
            case(ast.unparse(node)[:200], lambda code=code: exec(code, space))
        else:
            prepared(code, space)
    own = {name: value for name, value in space.items() if type(value) is not Remote}
    for name, value in own.items():
        if isinstance(value, types.FunctionType) and name.startswith("test_"):
            if inspect.signature(value).parameters:
                raise Unsupported(f"{name} has parameters: fixtures are not there")
            case(name, value)
        elif isinstance(value, type) and issubclass(value, unittest.TestCase):
            for method in unittest.TestLoader().getTestCaseNames(value):
                case(f"{name}.{method}", lambda value=value, method=method: ran(value(method)))
    if entry_point and isinstance(own.get("check"), types.FunctionType):
        if entry_point not in space:
            return [*found, {"name": "check", "passed": False, "why": f"the program has no {entry_point}"}]
        case("check", lambda: own["check"](space[entry_point]))
    if not found:
        raise Unsupported("the tests have no case: no assert, no test_ function, no TestCase")
    return found


def prepared(code, space: dict) -> None:
    """Run a statement that is no case.

    A name that the program lacks is its own fault, and shows in the cases that use it.
    """
    try:
        exec(code, space)
    except (ImportError, NameError, AttributeError, ProgramError) as error:
        if isinstance(error, ImportError) and error.name not in (None, MODULE):
            raise Unsupported(f"the tests fail by themselves: {said(error)}") from None
    except Exception as error:
        raise Unsupported(f"the tests fail by themselves: {said(error)}") from None


def ran(test: unittest.TestCase) -> None:
    """One method of a TestCase, set up and torn down; raises what it failed by."""
    result = unittest.TestResult()
    test.run(result)
    for _, trace in [*result.failures, *result.errors]:
        raise AssertionError(trace.strip().splitlines()[-1])
    if result.unexpectedSuccesses or not result.testsRun:
        raise AssertionError("it was not to pass")


def said(error: BaseException) -> str:
    """An exception in a line."""
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def main() -> None:
    """Read what is to be known, run, report."""
    confined()
    told = received(sys.stdin.buffer)
    out = os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    sent(out, report(told) | {"marker": told["marker"]})


if __name__ == "__main__":
    main()
