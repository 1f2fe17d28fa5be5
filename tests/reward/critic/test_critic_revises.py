"""A run whose critic is behind a server: the policy reads what it said, and it is asked of each response once."""

import json

from server import Server, verdict

from grape_rl import train
from grape_rl.config.files import merge
from small_runs import lines, settings

RUBRIC = """
schema: grape-rubric/1
categories:
  sums:
    items:
      - {id: even, weight: 1, check: {type: regex, pattern: "[02468]"}}
      - {id: style, weight: 2, judge: {criterion: It is short., labels: {long: 0, "fair": 0.5, short: 1}}}
"""
LABELS = ("long", "fair", "short")


def test_the_policy_reads_what_the_critic_said_of_its_response(tmp_path):
    with Server(lambda request, number: verdict(LABELS[number % 3], 4 + number, f"Reason {number}.")) as server:
        wanted = merge(
            settings(tmp_path, "grape"),
            {
                "model": {"scratch": {"hidden": 32, "layers": 2, "heads": 2, "context": 256}},
                "reward": {"critics": {"default": {"base_url": server.base_url, "model": "stub"}}},
                "revise": {"per_group": 1, "request": "{critique}"},
                "steps": 1,
            },
        )
        (tmp_path / "rubric.yaml").write_text(RUBRIC)
        run = train(wanted)
    found = lines(run.folder / "rollouts" / "step-000001.jsonl")
    own, revisions = found[:12], found[12:]
    assert len(revisions) == 3 and len(server.requests) == 15, "each response is judged once"
    for each in revisions:
        said = {v["item"]: v for v in own[each["revision_of"]]["verdicts"]}
        assert f"It is short. Verdict: {LABELS[round(2 * said['style']['score'])]}. Reason" in each["critique"]
        assert said["style"]["reasoning"] in each["critique"]
    for prompt in {each["prompt"] for each in own}:  # GRAPE's reward, by the mean confidence of all five
        group = [each for each in found if each["prompt"] == prompt]
        judged = [next(v for v in each["verdicts"] if v["item"] == "style") for each in group]
        sure = 2 * sum(v["confidence"] for v in judged) / len(group)
        for each, v in zip(group, judged, strict=True):
            even = next(w["score"] for w in each["verdicts"] if w["item"] == "even")
            assert abs(each["reward"] - (even + sure * v["score"]) / (1 + sure)) < 1e-12
    assert json.loads((run.folder / "metrics.jsonl").read_text())["revisions"] == 3
