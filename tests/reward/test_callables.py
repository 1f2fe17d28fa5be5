import pytest

from grape_rl.reward.callables import python_callable

MARKER = "from pathlib import Path\nPath(__file__).with_suffix('.ran').touch()\n"


def test_a_file_beside_the_rubric_and_a_module(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: 'int'\ndef f(r): return A(r).x\n"
    )
    assert python_callable("mine.py:f", tmp_path, ["mine.py"])(3) == 3
    assert python_callable("os.path:join", tmp_path, ["os.path"])("a", "b") == "a/b"


def test_nothing_runs_that_is_not_allowed(tmp_path):
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
def test_only_bare_names_are_read(tmp_path, call):
    with pytest.raises(ValueError, match=r"names no function: write 'file.py:name'"):
        python_callable(call, tmp_path, ["../mine.py", "/tmp/mine.py", "a/mine.py", "mine.py", "os"])


def test_what_cannot_be_loaded_says_why(tmp_path):
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
