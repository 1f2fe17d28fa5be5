"""Critics in whole runs: they hear of responses early, are tried on canaries, and are let go of at the end."""

import json
import threading

from grape_rl import train
from grape_rl.cli import main
from grape_rl.reward.critic.judging import Judging
from small_runs import settings

RUBRIC = """
schema: grape-rubric/1
categories:
  sums:
    items:
      - {id: even, weight: 3, check: {type: regex, pattern: "[02468]"}}
      - {id: bold, weight: 1, judge: {criterion: It is bold.}}
      - {id: calm, weight: 1, judge: {criterion: It is calm.}}
"""
GULLIBLE = """
def f(response, criterion, labels):
    return ("yes" if response == ":" and "bold" in criterion else "no"), 0.9
"""


def with_critic(folder, **reward):
    told = settings(folder, "grape")
    (folder / "rubric.yaml").write_text(RUBRIC)
    (folder / "gullible.py").write_text(GULLIBLE)
    told["reward"] |= {"critics": {"default": {"stub": {"call": "gullible.py:f"}}}, "allow": ["gullible.py"], **reward}
    return told


def test_each_response_is_judged_from_the_moment_it_ends(tmp_path, monkeypatch):
    heard, batches, closed = [], [], []
    ahead, begin, close = Judging.prefetch, Judging.submit, Judging.close
    monkeypatch.setattr(Judging, "prefetch", lambda self, jobs: heard.append(jobs) or ahead(self, jobs))
    monkeypatch.setattr(Judging, "submit", lambda self, jobs: batches.append((len(heard), jobs)) or begin(self, jobs))
    monkeypatch.setattr(Judging, "close", lambda self: closed.append(True) or close(self))
    run = train(with_critic(tmp_path))
    # Two steps of three prompts with four responses each, on two judged items.
    assert [count for count, _ in batches] == [12, 24] and all(len(jobs) == 2 for jobs in heard)
    for n, (_, jobs) in enumerate(batches):
        early = [job for those in heard[12 * n : 12 * n + 12] for job in those]
        assert len(jobs) == 24 and all(job in jobs for job in early) and all(job in early for job in jobs)
    assert closed == [True] and not [t for t in threading.enumerate() if t.name == "critic"]
    assert run.metrics[-1]["item/sums/bold"] == 0


def test_canaries_are_tried_as_often_as_asked_and_told_of(tmp_path):
    run = train(with_critic(tmp_path, canary_every=2))
    told = [json.loads(line) for line in (run.folder / "warnings.jsonl").read_text().splitlines()]
    fooled = [each for each in told if each["key"] == "canary sums/bold"]
    assert len(fooled) == 2, "before the first step and after the second"
    assert "the response ':' scores 1, with confidence 0.90" in fooled[0]["message"]
    assert not [each for each in told if each["key"] == "canary sums/calm"]


def test_without_being_asked_no_canary_is_tried(tmp_path):
    assert not (train(with_critic(tmp_path)).folder / "warnings.jsonl").exists()


def test_grape_score_tries_canaries(tmp_path, capsys):
    with_critic(tmp_path)
    (tmp_path / "critics.yaml").write_text('{default: {stub: {call: "gullible.py:f"}}}')
    rows = [{"prompt": f"{n}+1=", "response": str(n + 1)} for n in range(3)]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = ["score", "--rubric", str(tmp_path / "rubric.yaml"), "--data", str(tmp_path / "answers.jsonl")]
    asked += ["--critics", str(tmp_path / "critics.yaml"), "--allow", "gullible.py"]
    assert main(asked) == 0
    assert "canaries" not in capsys.readouterr().out
    assert main([*asked, "--canaries"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split() for line in shown if line.startswith("sums") and len(line.split()) == 5] == [
        ["sums", "bold", "6", "0", "1"],
        ["sums", "calm", "6", "0", "0"],
    ]
    (finding,) = [line for line in shown if line.startswith("- ")]
    assert "item 'bold' of category 'sums': the response ':' scores 1" in finding
