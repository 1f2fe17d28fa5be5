"""Configurations against their methods: a method from a user's own file, and what is refused before any work."""

import sys

import pytest

from grape_rl import ALGORITHMS, Config, train
from grape_rl.algorithms import method_named
from grape_rl.config.files import from_file
from grape_rl.validation import load_config
from small_runs import settings

MINE = """
from dataclasses import replace

from grape_rl import ALGORITHMS

METHOD = replace(ALGORITHMS["grpo"], name="mine", summary="GRPO with another default.", defaults={"clip_high": 0.3})
number = 3
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path / "mine.py"


def test_a_name_of_the_table_is_its_method():
    assert all(method_named(name) is method for name, method in ALGORITHMS.items())


def test_a_method_of_one_s_own_trains_from_its_file(file, tmp_path):
    wanted = settings(tmp_path, f"{file}:METHOD") | {"steps": 1, "output": str(tmp_path / "{method}")}
    run = train(wanted)
    assert run.folder == tmp_path / "mine" and run.metrics[0]["phase"] == "mine"
    assert train({**wanted, "steps": 2}, resume=True).metrics[1]["step"] == 2


def test_a_method_of_a_module_on_the_path(file, monkeypatch):
    monkeypatch.syspath_prepend(str(file.parent))
    assert method_named("mine:METHOD").name == "mine"
    monkeypatch.delitem(sys.modules, "mine")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("grop", "unknown method 'grop'; did you mean 'grpo'?"),
        ("{}/nowhere.py:METHOD", "nowhere.py:METHOD': there is no file "),
        ("{}/mine.py:METHDO", "has no 'METHDO'; did you mean 'METHOD'?"),
        ("{}/mine.py:number", "number is of type int, not Method"),
        ("{}/broken.py:METHOD", "broken.py cannot be loaded: ZeroDivisionError: division by zero"),
        ("no.such.module:METHOD", "no.such.module cannot be loaded: ModuleNotFoundError: No module named 'no'"),
    ],
)
def test_a_method_that_is_not_there_is_reported_in_one_line(file, name, message):
    (file.parent / "broken.py").write_text("1 / 0")
    with pytest.raises(ValueError) as error:
        method_named(name.format(file.parent))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_configuration_finds_the_method_beside_it(file):
    (file.parent / "run.yaml").write_text("method: mine.py:METHOD\nsteps: 3\n")
    assert from_file(file.parent / "run.yaml", f"{file}:METHOD") == {"method": f"{file}:METHOD", "steps": 3}


def test_a_configuration_object_is_checked_too(tmp_path):
    config = Config.model_validate(settings(tmp_path, "grpo") | {"group_size": 1})
    for check in (load_config, train):
        with pytest.raises(ValueError, match="config: group_size is 1: grpo compares"):
            check(config)
    assert not (tmp_path / "run").exists()
