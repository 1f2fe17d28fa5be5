"""Running means of confidence in a run: what they are, resumed, and what does not move them."""

import math

import pytest
import torch

from grape_rl import train
from grape_rl.config.files import merge
from grape_rl.maths.grape import confidence_weighted, running_confidence
from grape_rl.reward.rubric import load_rubric
from grape_rl.reward.running_confidence import RunningMeans
from grape_rl.reward.scores import rubric_scorer
from grape_rl.types import Response
from small_runs import killed_and_resumed, lines, settings

CRITICS = """
from grape_rl.types import Verdict, failed

def unsure(response):
    return Verdict("", float(response.text.count("2") > 1), min(1.0, 0.25 + len(set(response.text)) / 16))

def sure(response):
    return Verdict("", float(len(response.text) % 2), 0.5)

def seldom(response):
    if "late" not in response.row:
        return failed("", "refused", "not asked yet")
    return Verdict("", 1.0, response.row["late"])
"""

RUBRIC = """
schema: grape-rubric/1
categories:
  sums:
    items:
      - {id: twos, weight: 3, check: {type: python, call: "critics.py:unsure"}}
      - {id: odd, weight: 2, check: {type: python, call: "critics.py:sure"}}
"""


def wanted(folder, **more):
    (folder / "critics.py").write_text(CRITICS)
    own = {"options": {"scope": "running", "decay": 0.5}, "steps": 4, "checkpoint_every": 1, "prompts_per_step": 2}
    given = merge(settings(folder, "grape"), own)
    (folder / "rubric.yaml").write_text(RUBRIC)
    given["reward"]["allow"] = ["critics.py"]
    return merge(given, more)


def left(run, step):
    return torch.load(run.folder / "checkpoints" / f"step-{step}" / "trainer.pt", weights_only=True)["memory"]


def test_a_killed_run_goes_on_to_the_same_bits_and_evaluations_leave_no_trace(tmp_path, monkeypatch):
    often = {"data": {"held_out_rows": 3}, "evaluation": {"every": 1}}
    run, straight = killed_and_resumed(wanted(tmp_path, **often), tmp_path, monkeypatch)
    assert left(run, 4) == left(straight, 4)
    seldom = merge(wanted(tmp_path, **often), {"evaluation": {"every": 0}, "output": str(tmp_path / "seldom")})
    assert left(train(seldom), 4) == left(run, 4)
    by_group = train(merge(seldom, {"options": {"scope": "group"}, "output": str(tmp_path / "group")}))
    assert left(by_group, 4) == {}
    assert [step["reward"] for step in by_group.metrics] != [step["reward"] for step in run.metrics]


def test_the_means_are_those_of_the_responses_and_each_step_is_scored_with_what_the_last_left(tmp_path):
    run = train(wanted(tmp_path, keep_checkpoints=4))
    mean = {"twos": math.nan, "odd": math.nan}
    for step in range(1, 5):
        records = lines(run.folder / "rollouts" / f"step-{step:06d}.jsonl")
        said = [{v["item"]: v for v in record["verdicts"]} for record in records]
        group = torch.arange(len(records)) // 4
        if step > 1:
            assert {k: v for k, v in run.metrics[step - 1].items() if k.startswith("confidence/")} == pytest.approx(
                {f"confidence/sums/{item}": value for item, value in mean.items()}, rel=1e-6
            )
            share = [weight * mean[item] for item, weight in (("twos", 3), ("odd", 2))]
            expected = [(share[0] * s["twos"]["score"] + share[1] * s["odd"]["score"]) / sum(share) for s in said]
        else:
            expected = []
            for mine, line in zip(group, said, strict=True):
                mates = [s for s, g in zip(said, group, strict=True) if g == mine]
                share = [
                    weight * sum(s[item]["confidence"] for s in mates) for item, weight in (("twos", 3), ("odd", 2))
                ]
                expected.append((share[0] * line["twos"]["score"] + share[1] * line["odd"]["score"]) / sum(share))
        assert [record["reward"] for record in records] == pytest.approx(expected, rel=1e-9)
        for item in mean:
            now = sum(s[item]["confidence"] for s in said) / len(said)
            mean[item] = now if step == 1 else 0.5 * mean[item] + 0.5 * now
        assert left(run, step) == pytest.approx({f"confidence/sums/{item}": value for item, value in mean.items()})


def test_an_item_that_comes_later_begins_with_its_groups_and_one_of_a_prompts_own_never_has_a_mean(tmp_path):
    (tmp_path / "critics.py").write_text(CRITICS)
    (tmp_path / "rubric.yaml").write_text(
        RUBRIC + '      - {id: later, weight: 1, check: {type: python, call: "critics.py:seldom"}}\n'
        '    row_items: {from: "${row.own}", format: grape}\n'
    )
    memory = {}
    rubric = load_rubric(tmp_path / "rubric.yaml", ["critics.py"])
    scorer = rubric_scorer(rubric, lambda *given, **more: confidence_weighted(*given, "running", **more),
                           running=RunningMeans(running_confidence, memory))  # fmt: skip
    texts = ["22", "2", "212", "1"]
    own = {"own": [{"id": "1", "weight": 1, "check": {"type": "python", "call": "critics.py:sure"}}]}
    early, late = ([Response("p", text, row, 3, "stop") for text in texts] for row in (own, own | {"late": 0.75}))
    group = torch.tensor([0, 0, 1, 1])

    first = scorer(early, group)
    assert memory == {}, "the training source keeps what is left"
    assert first.memory.keys() == {"confidence/sums/twos", "confidence/sums/odd"}
    memory |= first.memory
    second = scorer(late, group)
    assert second.memory["confidence/sums/later"] == 0.75
    assert "confidence/sums/row/1" not in second.memory
    twos, odd = memory["confidence/sums/twos"], memory["confidence/sums/odd"]
    scores = [(1, 0), (0, 1), (1, 1), (0, 1)]
    below = 3 * twos + 2 * odd + 0.75 + 0.5
    expected = [(3 * twos * a + 2 * odd * b + 0.75 + 0.5 * b) / below for a, b in scores]
    assert second.reward.tolist() == pytest.approx(expected)


def test_a_category_has_means_of_its_own(tmp_path):
    memory = {"confidence/sums/twos": 0.25}
    running = RunningMeans(running_confidence, memory)
    assert running.means("sums", ["twos"], 1).tolist() == [0.25]
    assert running.means("words", ["twos"], 1).isnan().all()
    assert running.updated("words", ["twos"], torch.tensor([[1.0], [0.5]]).double()) == {"confidence/words/twos": 0.75}
