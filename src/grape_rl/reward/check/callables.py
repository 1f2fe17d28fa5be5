"""Functions named in a rubric file. The file may come from a stranger, so only allowed files and modules are loaded."""

import ast
import asyncio
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Collection, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any


def python_callable(call: str, folder: Path, allow: Collection[str]) -> Callable[..., Any]:
    """The function named by ``"file.py:name"`` (a file in ``folder``) or ``"package.module:name"``.

    Nothing is imported unless ``allow`` contains exactly the name of the file or module.

    Raises:
        ValueError: the name is malformed or not allowed, its file or module cannot be imported, or it is not callable.
    """
    match = re.fullmatch(r"(?P<place>\w[\w. -]*\.py|[^\W\d]\w*(?:\.[^\W\d]\w*)*):(?P<name>[^\W\d]\w*)", call)
    if match is None:
        raise ValueError(
            f"{call!r} names no function: write 'file.py:name' (a file in the rubric's folder) or 'package.module:name'"
        )
    place, name = match["place"], match["name"]
    if place not in allow:
        raise ValueError(f"{call!r} runs code that is not allowed: if you trust it, add {place!r} to reward.allow")
    try:
        module = module_from_file(folder / place) if place.endswith(".py") else importlib.import_module(place)
    except Exception as error:
        raise ValueError(f"{call!r} cannot be loaded: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"{call!r}: {place} has no function {name!r}")
    return function


def run_coroutine(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine in a new thread and return its result: this thread may already run a loop, as in a notebook."""
    with ThreadPoolExecutor(1, thread_name_prefix="reward") as pool:
        return pool.submit(asyncio.run, coroutine).result()


def module_from_file(path: Path) -> ModuleType:
    """The module of a Python file, executed again at each call."""
    name = f"grape_rubric_{path.stem}_{abs(hash(path.resolve()))}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    folder = path.resolve().parent
    if str(folder) not in sys.path:
        sys.path.append(str(folder))  # for imports of neighboring files; last, so that they shadow nothing
    _check_neighbor_imports(path, folder)
    spec.loader.exec_module(module)
    return module


def _check_neighbor_imports(path: Path, folder: Path) -> None:
    """Check that an import of a name that a neighboring file has will load that file.

    Raises:
        ImportError: Python would load another module of that name.
    """
    nodes = list(ast.walk(ast.parse(path.read_bytes(), str(path))))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level]
    for name in dict.fromkeys(name.partition(".")[0] for name in names):
        neighbors = [folder / f"{name}.py", folder / name / "__init__.py"]
        spec = importlib.util.find_spec(name) if any(map(Path.exists, neighbors)) else None
        if spec and (not spec.origin or Path(spec.origin).resolve() not in map(Path.resolve, neighbors)):
            raise ImportError(f"import {name} finds {spec.origin} and not the file next to {path.name}: rename yours")
