"""Run tests in a sandbox against a program in another sandbox, and report each case on standard output.

A case is an ``assert`` at the top level of the source, a ``test_…`` function, a method of a ``unittest.TestCase``, or,
with an entry point, the function ``check``, called with the program's function. The first line of standard input is
the job; the report repeats its ``marker``.
"""

import ast
import inspect
import os
import sys
import types
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from confine import confine
from proxy import ProgramEnded, ProgramError, ProgramLink, Proxy, UnsupportedTest
from wire import MODULE_NAME, receive, send


def report_tests(job: dict) -> dict:
    """The result of each case; or ``unsupported``, the reason why the tests themselves cannot run."""
    link = ProgramLink(job["answers"], job["requests"], job["seconds"], job["objects"])
    try:
        tree = ast.parse(job["tests"], "tests.py")
    except SyntaxError as error:
        return {"unsupported": f"the tests do not parse: {error}"}
    try:
        names = [str(name) for name in list(link.decode(link.request(action="load", source=job["program"])["value"]))]
    except Exception as error:
        return {"cases": [], "fault": f"the program fails while loading: {one_line(error)}"}
    except ProgramEnded as error:
        return {"cases": [], "fault": f"while loading, {error}"}
    namespace = {"__name__": "tests"}
    module = ProgramModule(Proxy(link, 0, "module"))
    sys.modules[MODULE_NAME] = module
    try:
        namespace.update((name, getattr(module, name)) for name in names)
        return {"cases": run_cases(tree, namespace, job["entry_point"])}
    except ProgramEnded as error:
        return {"cases": [], "fault": str(error)}
    except UnsupportedTest as error:
        return {"unsupported": str(error)}


class ProgramModule(types.ModuleType):
    """The program's module, as the tests import it."""

    def __init__(self, proxy):
        super().__init__(MODULE_NAME)
        self.__dict__["proxy"] = proxy

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.__dict__["proxy"], name)


def run_cases(tree: ast.Module, namespace: dict, entry_point: str) -> list[dict]:
    """The results of all cases, in order. Once the program has ended, the remaining cases fail."""
    results, ended = [], ""

    def case(name, body):
        nonlocal ended
        try:
            if ended:
                raise ProgramEnded(ended)
            body()
            results.append({"name": name, "passed": True, "reason": ""})
        except ProgramEnded as error:
            ended = str(error)
            results.append({"name": name, "passed": False, "reason": ended})
        except UnsupportedTest:
            raise
        except BaseException as error:
            results.append({"name": name, "passed": False, "reason": one_line(error)})

    # Top-level statements in order: an assert is a case, anything else is setup.
    for node in tree.body:
        code = compile(ast.Module([node], []), "tests.py", "exec")
        if isinstance(node, ast.Assert):
            case(ast.unparse(node)[:200], lambda code=code: exec(code, namespace))
        else:
            run_statement(code, namespace)
    # Test functions and test classes that these statements defined.
    own = {name: value for name, value in namespace.items() if type(value) is not Proxy}
    for name, value in own.items():
        if isinstance(value, types.FunctionType) and name.startswith("test_"):
            if inspect.signature(value).parameters:
                raise UnsupportedTest(f"{name} has parameters: fixtures are not supported")
            case(name, value)
        elif isinstance(value, type) and issubclass(value, unittest.TestCase):
            for method in unittest.TestLoader().getTestCaseNames(value):
                case(f"{name}.{method}", lambda value=value, method=method: run_test_method(value(method)))
    if entry_point and isinstance(own.get("check"), types.FunctionType):
        if entry_point not in namespace:
            return [*results, {"name": "check", "passed": False, "reason": f"the program has no {entry_point}"}]
        case("check", lambda: own["check"](namespace[entry_point]))
    if not results:
        raise UnsupportedTest("the tests have no case: no assert, no test_ function, no TestCase")
    return results


def run_statement(code, namespace: dict) -> None:
    """Run a statement that is not a case.

    A missing name of the program is the program's fault and fails the cases that use it.
    """
    try:
        exec(code, namespace)
    except (ImportError, NameError, AttributeError, ProgramError) as error:
        if isinstance(error, ImportError) and error.name not in (None, MODULE_NAME):
            raise UnsupportedTest(f"the tests themselves fail: {one_line(error)}") from None
    except Exception as error:
        raise UnsupportedTest(f"the tests themselves fail: {one_line(error)}") from None


def run_test_method(test: unittest.TestCase) -> None:
    """Run one method of a TestCase with its setUp and tearDown.

    Raises:
        AssertionError: the method failed, passed although it was expected to fail, or did not run.
    """
    result = unittest.TestResult()
    test.run(result)
    for _, trace in [*result.failures, *result.errors]:
        raise AssertionError(trace.strip().splitlines()[-1])
    if result.unexpectedSuccesses or not result.testsRun:
        raise AssertionError("it passed and was expected to fail, or did not run")


def one_line(error: BaseException) -> str:
    """An exception on one line."""
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def main() -> None:
    """Read the job, run its tests and write the report."""
    confine()
    job = receive(sys.stdin.buffer)
    out = os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    send(out, report_tests(job) | {"marker": job["marker"]})


if __name__ == "__main__":
    main()
