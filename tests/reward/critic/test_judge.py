"""Rubrics whose items a critic judges: from the file to rewards, to `grape score`, and to a run of GRAPE."""

import json
import math

import pytest
import torch
from server import Server, verdict

from grape_rl import train
from grape_rl.cli import main
from grape_rl.maths.grape import confidence_weighted
from grape_rl.reward.critic.settings import Endpoint
from grape_rl.reward.grading import rubric_critics
from grape_rl.reward.rubric import check_rows, load_rubric
from grape_rl.reward.scores import rubric_scorer
from grape_rl.types import Response
from small_runs import lines, settings

RUBRIC = """
schema: grape-rubric/1
categories:
  all:
    items:
      - {id: even, weight: 1, check: {type: regex, pattern: "[02468]"}}
      - id: kind
        weight: 2
        judge: {criterion: "It says ${row.word}.", labels: {absent: 0, hinted: 0.5, said: 1}}
      - {id: long, weight: -1, role: monitor, judge: {criterion: It is too long.}}
"""


@pytest.fixture
def rubric(tmp_path):
    (tmp_path / "judged.yaml").write_text(RUBRIC)
    return load_rubric(tmp_path / "judged.yaml")


def answering(request, number):
    """A label that depends on the response; malformed JSON if the response contains "break"."""
    asked = request["messages"][1]["content"]
    if "too long" in asked:
        return verdict("no", 20)
    inside = asked.split("response begins\n")[1].split("\n")[0]
    if "break" in inside:
        return {"content": "no JSON"}
    return verdict("said" if "please" in inside else "absent", 10 if "4" in inside else 20)


def test_the_reward_of_judged_and_checked_items(rubric):
    texts = ["4 please", "3 please", "4", "break 2"]
    answers = [Response("Say it.", text, {"word": "please"}, 5, "stop") for text in texts]
    with Server(answering) as server:
        critics = rubric_critics(rubric, {"default": Endpoint(base_url=server.base_url, model="stub")})
        scores = rubric_scorer(rubric, confidence_weighted, critics=critics)(answers, torch.zeros(4, dtype=torch.long))
    assert len(server.requests) == 8
    asked = [request["messages"][1]["content"] for request in server.requests]  # in any order
    assert ["It says please." in each for each in asked].count(True) == 4
    assert [[v.item for v in row] for row in scores.verdicts] == [["even", "kind", "long"]] * 4
    assert [row[1].status for row in scores.verdicts] == ["ok", "ok", "ok", "unparseable"]
    assert [row[1].score for row in scores.verdicts[:3]] == [1, 1, 0]
    assert [row[1].confidence for row in scores.verdicts[:3]] == [0.5, 1, 0.5]
    sure = (0.5 + 1 + 0.5) / 3
    weight = [1.0, 2.0 * sure]
    filled = 2 / 3  # the missing score is the item's mean
    expected = [(e * weight[0] + k * weight[1]) / sum(weight) for e, k in zip((1, 0, 1), (1, 1, 0), strict=True)]
    assert scores.reward[:3].tolist() == pytest.approx(expected)
    assert math.isnan(scores.reward[3]) or scores.reward[3] == pytest.approx((1 + filled * weight[1]) / sum(weight))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "hinted: 0.5, said: 1}",
            "hinted: 0.5, said: 1.5}",
            "items[kind].judge.labels.said: Input should be less than or",
        ),
        ("{absent: 0, hinted: 0.5, said: 1}", "{no: 0, yes: 1}", "the label False is not text; put it in quotes"),
        (
            "{absent: 0, hinted: 0.5, said: 1}",
            "{a: 1, b: 1}",
            "labels needs at least two labels, with different scores",
        ),
        ('criterion: "It says ${row.word}."', 'criterion: " "', "the criterion is empty"),
        (
            "judge: {criterion: It is",
            "judge: {confidence: {mode: agreement}, criterion: It is",
            "agreement needs k of at",
        ),
        ("judge: {criterion: It is", "judge: {show: [prompt], criterion: It is", "does not include 'response'"),
        ("judge: {criterion: It is", "judge: {show: [response, reference], criterion: It is", "set both"),
        (
            "{id: even, weight: 1, ",
            "{id: even, judge: {criterion: x}, ",
            "needs exactly one of check, judge, reward_model and human",
        ),
    ],
)
def test_an_invalid_judge_is_refused_when_the_rubric_loads(old, new, message, tmp_path):
    assert old in RUBRIC
    (tmp_path / "bad.yaml").write_text(RUBRIC.replace(old, new))
    with pytest.raises(ValueError) as told:
        load_rubric(tmp_path / "bad.yaml")
    assert message in str(told.value) and "\n" not in str(told.value)


def test_columns_of_look_ups_must_exist(rubric):
    with pytest.raises(ValueError, match=r"row 0: item 'kind' of category 'all': .*word"):
        check_rows(rubric, [{"prompt": "x"}])


def test_an_unknown_critic_is_refused(rubric):
    with pytest.raises(ValueError, match="item 'kind': unknown critic 'default'; add it to critics"):
        rubric_critics(rubric, {})


def test_grape_score_asks_critics(tmp_path, capsys):
    (tmp_path / "judged.yaml").write_text(RUBRIC)
    rows = [{"prompt": "Say it.", "response": text, "word": "please"} for text in ("4 please", "3", "break")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with Server(answering) as server:
        (tmp_path / "critics.yaml").write_text(f"default: {{base_url: '{server.base_url}', model: stub}}\n")
        files = {name: str(tmp_path / name) for name in ("judged.yaml", "rows.jsonl", "critics.yaml", "out.jsonl")}
        named = {"rubric": "judged.yaml", "data": "rows.jsonl", "critics": "critics.yaml", "output": "out.jsonl"}
        code = main(["score", *(word for key, file in named.items() for word in (f"--{key}", files[file]))])
    said, complaint = capsys.readouterr()
    assert code == 1 and "unparseable 1" in said and "written: " in said, "one of nine verdicts is over a tenth"
    assert "1 of them of item 'kind', mostly unparseable: the answer is not JSON" in complaint
    found = {v["item"]: v for v in lines(tmp_path / "out.jsonl")[0]["verdicts"]}
    assert (found["kind"]["score"], found["kind"]["confidence"]) == (1.0, 0.5)


def test_grape_learns_from_a_critic(tmp_path):
    """The critic prefers even digits; a twelfth of its answers fail, and no failure is a score."""

    def likes(request, number):
        if number % 12 == 5:
            return {"content": "I cannot say."}
        inside = request["messages"][1]["content"].split("response begins\n")[1].split("\n")[0]
        return verdict("said" if any(d in inside for d in "02468") else "absent", 15)

    wanted = settings(tmp_path, "grape")
    (tmp_path / "rubric.yaml").write_text(
        "schema: grape-rubric/1\ncategories:\n  sums:\n    items:\n"
        "      - {id: liked, weight: 3, judge: {criterion: It has an even digit., labels: {absent: 0, said: 1}}}\n"
        "      - {id: brief, weight: 1, check: {type: length, max_tokens: 4}}\n"
    )
    with Server(likes) as server:
        critics = {"default": {"base_url": server.base_url, "model": "stub"}}
        more = {"critics": critics, "critic_cache": str(tmp_path / "cache.sqlite"), "failure_limit": 0.2}
        run = train(wanted | {"reward": wanted["reward"] | more, "steps": 3})
    verdicts = [v for step in (1, 2, 3) for r in lines(run.folder / "rollouts" / f"step-{step:06d}.jsonl")
                for v in r["verdicts"] if v["item"] == "liked"]  # fmt: skip
    statuses = {v["status"] for v in verdicts}
    assert statuses == {"ok", "unparseable"}
    assert all(v["score"] is None and v["confidence"] is None for v in verdicts if v["status"] != "ok")
    assert {v["confidence"] for v in verdicts if v["status"] == "ok"} == {0.75}
    assert all(step["missing"] > 0 for step in run.metrics) or sum(step["missing"] for step in run.metrics) > 0
    assert (tmp_path / "cache.sqlite").exists()
