"""docs/rubrics.md: its examples load, and every key that a rubric file may have is on it."""

import re
from pathlib import Path
from typing import get_args

import pytest
import yaml
from pydantic import BaseModel

from grape_rl.reward.critic.calibration import Calibration
from grape_rl.reward.formats import FORMATS
from grape_rl.reward.rubric import Rubric, load_rubric
from grape_rl.rubric_tools.lint.lint import lint

PAGE = (Path(__file__).parents[1] / "docs" / "rubrics.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def models(kind):
    """The parts of a file that a part may hold, itself included."""
    if kind is Calibration:  # a file of its own, which no rubric spells out
        return set()
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        inner = (found for field in kind.model_fields.values() for found in models(field.annotation))
        return {kind, *inner}
    return {found for argument in get_args(kind) for found in models(argument)}


def keys():
    return sorted({field.alias or name for model in models(Rubric) for name, field in model.model_fields.items()})


def test_the_page_has_examples():
    assert len(EXAMPLES) == 5


@pytest.mark.parametrize("text", EXAMPLES, ids=lambda text: text.split("\n")[1].rstrip(":"))
def test_an_example_loads_and_has_no_fault(tmp_path, text):
    (tmp_path / "rubric.yaml").write_text(text)
    rubric = load_rubric(tmp_path / "rubric.yaml")
    assert list(rubric.categories) == list(yaml.safe_load(text)["categories"])
    assert lint(rubric) == []


@pytest.mark.parametrize("key", keys())
def test_every_key_is_on_the_page(key):
    assert re.search(rf"[`{{, ]{key}[`:,}} ]", PAGE)


def test_every_format_and_check_is_on_the_page():
    types = {model.model_fields["type"].annotation for model in models(Rubric) if "type" in model.model_fields}
    names = {name for literal in types for name in get_args(literal)}
    assert len(names) == 9
    assert all(f"| `{name}` |" in PAGE for name in {*names, *FORMATS})
