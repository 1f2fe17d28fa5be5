"""Functions that a rubric file names. The file may come from a stranger, so the caller says which are allowed."""

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
    """The function that ``"file.py:name"`` (a file in ``folder``) or ``"package.module:name"`` names.

    Nothing is imported before the file or module is found in ``allow``, by exactly that name.

    Raises:
        ValueError: it is not allowed, not there, fails as it is imported, or is no function.
    """
    match = re.fullmatch(r"(?P<place>\w+\.py|[^\W\d]\w*(?:\.[^\W\d]\w*)*):(?P<name>[^\W\d]\w*)", call)
    if match is None:
        raise ValueError(
            f"{call!r} names no function: write 'file.py:name' (beside the rubric) or 'package.module:name'"
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


def awaited(result: Coroutine[Any, Any, Any]) -> Any:
    """What a coroutine returns, in a thread of its own: there may be a loop here already, as in a notebook."""
    with ThreadPoolExecutor(1, thread_name_prefix="reward") as pool:
        return pool.submit(asyncio.run, result).result()


def module_from_file(path: Path) -> ModuleType:
    """The module of a Python file, executed again at each call."""
    name = f"grape_rubric_{path.stem}_{abs(hash(path.resolve()))}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # a dataclass in the file looks its own module up there
    folder = path.resolve().parent
    if str(folder) not in sys.path:
        sys.path.append(str(folder))  # for the files beside it, at the end so that they hide no one else's
    _need_neighbors(path, folder)
    spec.loader.exec_module(module)
    return module


def _need_neighbors(path: Path, folder: Path) -> None:
    """An import of a file's own that has a file beside it by that name has to find that one.

    Raises:
        ImportError: it finds another.
    """
    nodes = list(ast.walk(ast.parse(path.read_bytes())))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level]
    for name in dict.fromkeys(each.partition(".")[0] for each in names):
        beside = [folder / f"{name}.py", folder / name / "__init__.py"]
        found = importlib.util.find_spec(name) if any(map(Path.exists, beside)) else None
        if found and (not found.origin or Path(found.origin).resolve() not in map(Path.resolve, beside)):
            raise ImportError(f"import {name} finds {found.origin} and not the one beside {path.name}: rename yours")
