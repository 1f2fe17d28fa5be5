"""Canaries: which items they are tried on, and what is told of a critic that falls for one."""

import math

import pytest
from judging_fixtures import judging
from server import Server, verdict

from grape_rl.reward.canary import CANARY_TEXTS, canaries, canary_jobs
from grape_rl.reward.grading import Assignment, assign_items
from grape_rl.reward.rubric import load_rubric
from grape_rl.types import Response

RUBRIC = """
schema: grape-rubric/1
categories:
  sums:
    when: {task: sums}
    items:
      - {id: exact, weight: 2, judge: {criterion: "It says ${row.answer}."}}
      - {id: graded, weight: 1, judge: {criterion: It is fair., labels: {poor: 0.25, good: 1}}}
      - {id: brief, weight: 1, judge: {criterion: It is brief., canary: false}}
      - {id: rude, weight: -1, judge: {criterion: It is rude.}}
      - {id: watched, role: monitor, judge: {criterion: It is watched.}}
      - {id: digits, weight: 1, check: {type: regex, pattern: "[0-9]"}}
  talk:
    when: {task: talk}
    items:
      - {id: kind, weight: 1, judge: {criterion: It is kind.}}
  unseen:
    when: {task: unseen}
    items:
      - {id: never, weight: 1, judge: {criterion: It is never asked.}}
"""
PROMPTS = [
    Response("What is 1 + 1?", "", {"task": "sums", "answer": "two"}, 0, "stop"),
    Response("What is 2 + 2?", "", {"task": "sums", "answer": "four"}, 0, "stop"),
    Response("Hello!", "", {"task": "talk"}, 0, "stop"),
]


@pytest.fixture
def rubric(tmp_path):
    (tmp_path / "rubric.yaml").write_text(RUBRIC)
    return load_rubric(tmp_path / "rubric.yaml")


def gullible(request, number):
    """Falls for a colon where it is about two, calls everything poor or fair, and breaks on 'Solution' of talk."""
    asked = request["messages"][1]["content"]
    text = asked.split("response begins\n")[1].split("\n[")[0].removesuffix("\n")
    if "It is fair" in asked:
        return verdict("poor")
    if "It is kind" in asked and text == "Solution":
        return {"content": "I cannot say."}
    return verdict("yes" if text == ":" and "It says two." in asked else "no", 17, "It says\nso.")


def test_a_critic_that_falls_for_one(rubric):
    with Server(gullible) as server:
        found = canaries(assign_items(rubric, PROMPTS), judging(server))
    asked = [request["messages"][1]["content"] for request in server.requests]
    assert len(found) == len(asked) == 3 * len(CANARY_TEXTS)
    assert [(each.category, each.item) for each in found[:2]] == [("sums", "exact"), ("sums", "graded")]
    assert {each.text for each in found} == set(CANARY_TEXTS) and "" in CANARY_TEXTS and ":" in CANARY_TEXTS
    assert not any("2 + 2" in each or "brief" in each or "rude" in each or "watched" in each for each in asked)
    (fooled,) = [each for each in found if each.fooled]
    assert (fooled.category, fooled.item, fooled.text, fooled.verdict.score) == ("sums", "exact", ":", 1)
    assert fooled.verdict.confidence == 0.85
    assert fooled.finding == (
        "item 'exact' of category 'sums': the response ':' scores 1, with confidence 0.85 (It says so.): make the "
        "criterion state what a response must contain, or use another critic; if an empty response rightly meets the "
        "criterion, set canary: false"
    )
    (missing,) = [each for each in found if each.verdict.missing]
    assert math.isnan(missing.verdict.score) and not missing.fooled
    assert "the response 'Solution' got no verdict, unparseable: the answer is not JSON" in missing.finding
    assert {each.verdict.score for each in found if each.item == "graded"} == {0.25}, "the least it can give"
    quiet = next(each for each in found if each.text == "")
    assert quiet.finding == "item 'exact' of category 'sums': the response '' scores 0, with confidence 0.85"


def test_jobs_are_filled_in_from_the_row(rubric):
    jobs = canary_jobs(assign_items(rubric, PROMPTS)[1])
    assert {job.judge.criterion for job in jobs} == {"It says four.", "It is fair."}
    assert [job.response.text for job in jobs[::2]] == list(CANARY_TEXTS) and jobs[
        0
    ].response.prompt == "What is 2 + 2?"


def test_no_items_no_calls(rubric):
    with Server(gullible) as server:
        assert canaries([], judging(server)) == ()
    unjudged = Assignment(PROMPTS[0], "sums", rubric.categories["sums"].items[2:])
    assert canary_jobs(unjudged) == [] and server.requests == []
