"""Functions named in a rubric file: which are loaded, and which are refused."""

import sys

import pytest

from grape_rl.reward.check.callables import python_callable


@pytest.fixture(autouse=True)
def _path(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])


MARKER = "from pathlib import Path\nPath(__file__).with_suffix('.ran').touch()\n"


def test_a_file_next_to_the_rubric_and_a_module(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: 'int'\ndef f(r): return A(r).x\n"
    )
    assert python_callable("mine.py:f", tmp_path, ["mine.py"])(3) == 3
    assert python_callable("os.path:join", tmp_path, ["os.path"])("a", "b") == "a/b"


def test_a_file_imports_its_neighbors(tmp_path):
    (tmp_path / "neighbor_of_mine.py").write_text("from other_of_mine.inner import VALUE\n")
    (tmp_path / "other_of_mine").mkdir()
    (tmp_path / "other_of_mine/__init__.py").touch()
    (tmp_path / "other_of_mine/inner.py").write_text("VALUE = 3\n")
    (tmp_path / "mine.py").write_text("import neighbor_of_mine as n\ndef f(): return n.VALUE\n")
    assert python_callable("mine.py:f", tmp_path, ["mine.py"])() == 3
    size = len(sys.path)
    assert python_callable("mine.py:f", tmp_path, ["mine.py"])() == 3
    assert len(sys.path) == size


@pytest.mark.parametrize(
    "text", ["import shared_name", "from shared_name.deep import f", "def f(): import os, shared_name as s"]
)
def test_an_import_that_would_load_another_file_than_the_neighbor_is_refused(tmp_path, text):
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
        (folder / "shared_name.py").write_text(f"VALUE = {folder.name!r}")
        (folder / "mine.py").write_text("import shared_name\ndef f(): return shared_name.VALUE\n")
    assert python_callable("mine.py:f", first, ["mine.py"])() == "first"
    (second / "mine.py").write_text(text)
    message = r"import shared_name finds \S*first/shared_name.py and not the file next to mine.py: rename yours"
    with pytest.raises(ValueError, match=message):
        python_callable("mine.py:f", second, ["mine.py"])
    sys.modules.pop("shared_name")


def test_a_neighbor_named_like_a_standard_module_is_refused_only_if_it_is_imported(tmp_path):
    (tmp_path / "json.py").touch()
    (tmp_path / "sys").mkdir()
    (tmp_path / "sys/__init__.py").touch()
    (tmp_path / "mine.py").write_text("from . import json\ndef f(): return 3\n")
    with pytest.raises(ValueError, match="cannot be loaded: ImportError: attempted relative import"):
        python_callable("mine.py:f", tmp_path, ["mine.py"])
    (tmp_path / "mine.py").write_text("import math\ndef f(): return 3\n")
    assert python_callable("mine.py:f", tmp_path, ["mine.py"])() == 3
    for name in ("json", "sys"):
        (tmp_path / "mine.py").write_text(f"import {name}\ndef f(): return 3\n")
        with pytest.raises(ValueError, match=rf"import {name} finds .* and not the file next to mine.py: rename yours"):
            python_callable("mine.py:f", tmp_path, ["mine.py"])


def test_only_allowed_code_runs(tmp_path):
    (tmp_path / "mine.py").write_text(MARKER)
    for allow in ((), ("other.py",), ("mine",), (str(tmp_path / "mine.py"),)):
        with pytest.raises(ValueError, match=r"add 'mine.py' to reward.allow"):
            python_callable("mine.py:f", tmp_path, allow)
    assert not (tmp_path / "mine.ran").exists()
    with pytest.raises(ValueError, match=r"add 'os' to reward.allow"):
        python_callable("os:system", tmp_path, ["os.path"])


@pytest.mark.parametrize(
    "call", ["../mine.py:f", "/tmp/mine.py:f", "a/mine.py:f", "mine.py", "f", "mine.py:a.b", "a b:f", "", "os:x\n"]
)
def test_only_bare_names_are_accepted(tmp_path, call):
    with pytest.raises(ValueError, match=r"names no function: write 'file.py:name'"):
        python_callable(call, tmp_path, ["../mine.py", "/tmp/mine.py", "a/mine.py", "mine.py", "os"])


def test_load_errors_name_the_cause(tmp_path):
    (tmp_path / "mine.py").write_text("VALUE = 3\n")
    (tmp_path / "broken.py").write_text("1 / 0\n")
    allow = ["mine.py", "broken.py", "none.py", "no_such_module"]
    for call, message in {
        "mine.py:f": "has no function 'f'",
        "mine.py:VALUE": "has no function 'VALUE'",
        "broken.py:f": "cannot be loaded: ZeroDivisionError",
        "none.py:f": "cannot be loaded: FileNotFoundError",
        "no_such_module:f": "cannot be loaded: ModuleNotFoundError",
    }.items():
        with pytest.raises(ValueError, match=message):
            python_callable(call, tmp_path, allow)
