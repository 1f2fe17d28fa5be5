"""The house: which module may import which, how long a file may be, what has to be explained."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "grape_rl"
FILES = sorted(SOURCE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}

FLOORS = (
    {"types", "schema", "configs"},
    {"maths", "model", "data"},
    {"reward"},
    {"rubric_tools", "rollout"},
    {"training"},
    {"config"},
    {"setup"},
    {"sources"},
    {"method_checks"},
    {"methods"},
    {"table"},
    {"algorithms"},
    {"validation"},
    {"estimate"},
    {"run"},
    {"cli"},
)
"""From the ground up. Units that share a floor do not know each other."""

HEIGHT = {unit: floor for floor, units in enumerate(FLOORS) for unit in units}
PRINTERS = ("cli/", "training/display.py")


def name(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def unit(path: Path) -> str:
    """The floor's unit that a file belongs to: a folder, or a module by itself. The package's own file has none."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, at its top or later: grape_rl's own down to the file."""
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{name(path)}: relative import"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            found = [each for each in inner if _file(each)]
            yield from found or [node.module]


def _file(module: str) -> Path | None:
    if module.split(".")[0] != "grape_rl":
        return None
    at = SOURCE.joinpath(*module.split(".")[1:])
    candidates = (at.with_suffix(".py"), at / "__init__.py")
    return next((path for path in candidates if path in TREES), None)


def own(path: Path) -> list[Path]:
    """The files of grape_rl that a file imports."""
    return [found for module in imports(path) if (found := _file(module))]


def unlawful(user: str, used: str) -> bool:
    """Whether a unit may not import another."""
    return used != user and HEIGHT[used] >= HEIGHT[user]


def test_the_house_is_all_there():
    assert len(FILES) > 40
    assert sum(len(own(path)) for path in FILES) > 60, "imports are not found any more"
    units = {unit(path) for path in FILES} - {"__init__"}
    assert units <= HEIGHT.keys()
    assert HEIGHT.keys() == units


def test_the_law_itself():
    assert unlawful("maths", "model") and unlawful("model", "data") and unlawful("data", "maths")
    assert unlawful("reward", "training") and unlawful("types", "maths") and unlawful("setup", "run")
    assert not unlawful("cli", "types") and not unlawful("reward", "data") and not unlawful("maths", "maths")


def test_imports_point_down():
    faults = [
        f"{name(path)} imports {name(used)}"
        for path in FILES
        if unit(path) != "__init__"
        for used in own(path)
        if unit(used) == "__init__" or unlawful(unit(path), unit(used))
    ]
    assert not faults, "\n".join(faults)


def test_maths_rests_on_torch_alone():
    import sys

    # annotated_types is a vocabulary without any code, as jaxtyping's shapes are: which numbers an argument may be.
    allowed = {"torch", "jaxtyping", "annotated_types", *sys.stdlib_module_names}
    faults = [
        f"{name(path)} imports {module}"
        for path in FILES
        if unit(path) == "maths"
        for module in imports(path)
        if module.split(".")[0] not in allowed and not module.startswith(("grape_rl.types", "grape_rl.maths"))
    ]
    assert not faults, "\n".join(faults)


def test_no_import_goes_in_a_circle():
    finished: set[Path] = set()

    def walk(path: Path, trail: tuple[Path, ...]) -> None:
        assert path not in trail, " → ".join(map(name, (*trail, path)))
        if path not in finished:
            for used in own(path):
                walk(used, (*trail, path))
            finished.add(path)

    for path in FILES:
        walk(path, ())
    assert finished == set(FILES)


@pytest.mark.parametrize("path", FILES, ids=name)
def test_a_file_is_short_and_explained(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300
    faults: list[str] = []
    if path.stat().st_size and not ast.get_docstring(TREES[path]):
        faults.append("the file")

    def look(body: list[ast.stmt], inside: str) -> None:
        for node in body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.name[0] != "_":
                if not ast.get_docstring(node):
                    faults.append(f"{inside}{node.name}, line {node.lineno}")
                if isinstance(node, ast.ClassDef):
                    look(node.body, f"{node.name}.")

    look(TREES[path].body, "")
    assert not faults, f"{name(path)}: no docstring: {'; '.join(faults)}"


def test_only_the_command_line_prints():
    faults = [
        f"{name(path)}, line {node.lineno}"
        for path in FILES
        if not name(path).startswith(PRINTERS)
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not faults, "\n".join(faults)


def test_no_import_goes_in_a_circle_in_benchmarks():
    folder = Path(__file__).parents[1] / "benchmarks"
    files = {".".join(path.relative_to(folder).with_suffix("").parts): path for path in folder.rglob("*.py")}
    graph = {name: set(_benchmark_imports(path)) & files.keys() for name, path in files.items()}
    assert len(graph) > 15 and sum(map(len, graph.values())) > 30, "imports are not found any more"

    def walk(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " → ".join((*trail, module))
        for used in graph[module]:
            walk(used, (*trail, module))

    for module in graph:
        walk(module, ())


def _benchmark_imports(path: Path) -> Iterator[str]:
    """Every name that a file imports, at its top or later, as a module's name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
