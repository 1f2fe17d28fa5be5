"""The table of metrics: its patterns, and the warning about a metric that is not in it."""

import json

import pytest

from grape_rl.training.log import UNDOCUMENTED, Log
from grape_rl.training.metrics import METRICS, describe_metric


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("loss", "loss"),
        ("loss/value_loss", "loss/*"),
        ("item/sums/correct", "item/*/*"),
        ("missing_verdicts", "missing_verdicts"),
        ("missing_verdicts/timeout", "missing_verdicts/*"),
        ("confidence/sums/correct", "confidence/*/*"),
    ],
)
def test_a_metric_is_found_by_its_name_or_a_pattern(name, pattern):
    assert describe_metric(name) is METRICS[pattern]


@pytest.mark.parametrize("name", ["spam", "loss/", "item/sums", "losses", "my/loss"])
def test_other_names_are_not_documented(name):
    assert describe_metric(name) is None


def test_every_metric_has_a_meaning():
    assert all(metric.meaning.endswith(".") for metric in METRICS.values())


def test_the_tests_fail_on_a_metric_without_a_meaning(tmp_path):
    with Log(tmp_path, "x", 2) as log, pytest.raises(AssertionError, match="metric 'spam' has no meaning"):
        log.step(1, {"loss": 1.0, "spam": 2.0})


def test_the_log_warns_once_of_a_metric_without_a_meaning(tmp_path, monkeypatch):
    monkeypatch.undo()
    with Log(tmp_path, "x", 2) as log:
        log.step(1, {"loss": 1.0, "spam": 2.0})
        log.step(2, {"loss": 1.0, "spam": 2.0})
    (warning,) = map(json.loads, (tmp_path / "warnings.jsonl").read_text().splitlines())
    assert warning["key"] == UNDOCUMENTED and "'spam'" in warning["message"] and warning["step"] == 1
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[1])["spam"] == 2.0
