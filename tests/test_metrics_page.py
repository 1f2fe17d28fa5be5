"""docs/metrics.md lists exactly the metrics that a run can log, with their units."""

import re
from pathlib import Path

from grape_rl.training.metrics import METRICS

PAGE = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text(encoding="utf-8")
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("| `")]


def test_the_page_lists_every_metric_once():
    names = [row[0].strip("`") for row in ROWS]
    assert len(names) == len(set(names))
    assert set(names) == METRICS.keys()


def test_units_are_those_of_the_log():
    assert {row[0].strip("`"): row[1] for row in ROWS} == {name: metric.unit for name, metric in METRICS.items()}


def test_every_metric_has_a_meaning_and_most_have_a_sign_of_health():
    assert all(len(row) == 5 and re.match(r"\w|`|Σ|1 −|exp", row[2]) for row in ROWS)
    neutral = {"learning_rate", "tokens", "critic_tokens", "labeled_steps", "moving_average"}
    silent = {row[0].strip("`") for row in ROWS if not row[3] and not row[4]}
    assert all(name in neutral or name.endswith(("_seconds", "_length")) for name in silent), silent
