"""What a critique tells: the items that cost most, and nothing that gives the answer away."""

import pytest

from grape_rl.reward.critique import write_critique
from grape_rl.reward.rubric import items_of, load_rubric
from grape_rl.types import Response, Verdict, failed

RUBRIC = """
schema: grape-rubric/1
categories:
  sums:
    items:
      - {id: answer, weight: 4, check: {type: numeric, gold: "${row.answer}"}}
      - {id: rigor, weight: 3, judge: {criterion: Each step follows., labels: {broken: 0, gaps: 0.5, sound: 1}}}
      - {id: rude, weight: -2, judge: {criterion: It is rude., labels: {polite: 0, rude: 1}}}
      - {id: same, weight: 5, judge: {criterion: It says what is known., show: [response, reference],
         reference: "${row.answer}"}}
      - {id: told, weight: 6, judge: {criterion: "It says ${row.answer}."}}
      - {id: spy, weight: 9, role: monitor, judge: {criterion: Spied.}}
"""
ROW = {"answer": "73"}
RESPONSE = Response("p", "r", ROW, 3, "stop")


def found(tmp_path, *verdicts, text=RUBRIC, **more):
    (tmp_path / "rubric.yaml").write_text(text)
    items = items_of(load_rubric(tmp_path / "rubric.yaml"), "sums", ROW)
    return write_critique(RESPONSE, items, verdicts, **more)


LABELS = {"rigor": {0: "broken", 0.5: "gaps", 1: "sound"}, "rude": {0: "polite", 1: "rude"}}
LABELS |= {item: {0: "no", 1: "yes"} for item in ("same", "told", "spy")}
BEST = {"answer": 1, "rigor": 1, "rude": 0, "same": 1, "told": 1, "spy": 1}


def verdicts(**scores):
    return [
        Verdict(item, float(score), reasoning=f"73 of {item}.", label=LABELS.get(item, {}).get(score, ""))
        for item, score in (BEST | scores).items()
    ]


def test_nothing_is_held_against_a_response_that_lost_nothing(tmp_path):
    assert found(tmp_path, *verdicts()) == ""


def test_the_items_that_cost_most_come_first(tmp_path):
    told = found(tmp_path, *verdicts(answer=0.75, rigor=0.5, rude=1), max_items=9)
    assert told.splitlines() == [
        "- rude: 1, where 0 is best. It is rude. Verdict: rude. 73 of rude.",  # 2
        "- rigor: 0.5, where 1 is best. Each step follows. Verdict: gaps. 73 of rigor.",  # 1.5
        "- answer: 0.75, where 1 is best.",  # 1
    ]
    assert found(tmp_path, *verdicts(answer=0.75, rigor=0.5, rude=1), max_items=1) == told.splitlines()[0]


def test_what_graders_know_of_the_answer_is_not_told_unless_asked_for(tmp_path):
    lost = verdicts(answer=0, same=0, told=0)
    told = found(tmp_path, *lost)
    assert "73" not in told and "known" not in told
    assert told.splitlines() == [
        "- told: 0, where 1 is best. Verdict: no.",
        "- same: 0, where 1 is best. Verdict: no.",
        "- answer: 0, where 1 is best.",
    ]
    fixed = RUBRIC.replace('reference: "${row.answer}"', "reference: Two and two.")
    assert found(tmp_path, *lost, text=fixed) == told
    assert found(tmp_path, *lost, show_gold=True).splitlines() == [
        "- told: 0, where 1 is best. It says 73. Verdict: no. 73 of told.",
        "- same: 0, where 1 is best. It says what is known. Verdict: no. 73 of same.",
        "- answer: 0, where 1 is best. 73 of answer.",
    ]


def test_a_monitor_and_a_missing_verdict_hold_nothing_against_it(tmp_path):
    missing = failed("rigor", "timeout", "the critic was slow")
    kept = [each for each in verdicts(spy=0) if each.item != "rigor"]
    assert found(tmp_path, *kept, missing) == ""


def test_a_mean_of_verdicts_has_no_label(tmp_path):
    assert found(tmp_path, *verdicts(rigor=0.75)) == "- rigor: 0.75, where 1 is best. Each step follows. 73 of rigor."


def test_a_closed_gate_cost_all_that_is_behind_it(tmp_path):
    gated = RUBRIC.replace("- {id: rigor, weight: 3,", "- {id: rigor, weight: 1, gate: true,")
    assert found(tmp_path, *verdicts(told=0, rigor=0), text=gated).startswith("- rigor")
    deep = gated.replace("weight: -2", "weight: -50")
    assert found(tmp_path, *verdicts(rigor=0), text=deep).startswith("- rigor"), "pitfalls are not behind it"
    assert found(tmp_path, *verdicts(told=0, rigor=0.5), text=gated).startswith("- told"), "half open is open"


@pytest.mark.parametrize("limit", [1, 40, 62, 63])
def test_what_is_too_long_loses_its_end(tmp_path, limit):
    whole = found(tmp_path, *verdicts(rigor=0.75))
    cut = found(tmp_path, *verdicts(rigor=0.75), max_characters=limit)
    assert len(cut) == min(limit, len(whole))
    assert cut == whole if limit >= len(whole) else cut == whole[: limit - 1] + "…"
