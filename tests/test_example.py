"""The graded example of the demo: its numbers are those of the run, and follow from one another."""

import re

import pytest

from grape_rl import train
from grape_rl.cli.example import print_graded_example
from small_runs import lines, settings

RUBRIC = """
schema: grape-rubric/1
categories:
  sums:
    items:
      - {id: even, weight: 3, check: {type: regex, pattern: "[02468]"}}
      - {id: style, weight: 2, judge: {criterion: It is terse., labels: {"no": 0, partly: 0.5, "yes": 1}}}
"""


def example(folder, capsys, faults=None):
    """The run, and what it prints."""
    wanted = settings(folder, "grape") | {"steps": 1}
    (folder / "rubric.yaml").write_text(RUBRIC)
    wanted["reward"] |= {"critics": {"default": {"stub": {"faults": faults or {}}}}, "failure_limit": 1.0}
    run = train(wanted)
    capsys.readouterr()
    print_graded_example(run)
    return run, capsys.readouterr().out


def test_the_reward_and_the_advantage_follow_from_the_printed_numbers(tmp_path, capsys):
    run, text = example(tmp_path, capsys)
    rows = re.findall(r"^(even|style) +(\S+) +(\S+) +(\S+)$", text, re.M)
    numbers = {item: tuple(map(float, values)) for item, *values in rows}
    assert numbers["even"][1:] == (1.0, 3.0) and 0 < numbers["style"][1] < 1 and numbers["style"][2] == 2
    total = sum(score * confidence * weight for score, confidence, weight in numbers.values())
    reward = float(re.search(r"confidence\) = (\S+)", text)[1])
    assert reward == pytest.approx(total / sum(c * w for _, c, w in numbers.values()), abs=2e-3)
    mean, std, advantage = map(float, re.search(r"- (\S+)\) / (\S+) = (\S+)", text).groups())
    assert advantage == pytest.approx((reward - mean) / std, abs=0.02)
    recorded = [record["reward"] for record in lines(run.folder / "rollouts" / "step-000001.jsonl")]
    assert any(reward == pytest.approx(value, abs=6e-4) for value in recorded)


def test_without_an_unsure_critic_or_with_missing_verdicts_there_is_no_example(tmp_path, capsys):
    _, text = example(tmp_path, capsys, {"timeout": 1.0})
    assert text == ""
    run = train(settings(tmp_path, "grape") | {"steps": 1, "output": str(tmp_path / "sure")})
    capsys.readouterr()
    print_graded_example(run)
    assert capsys.readouterr().out == ""
