"""Critics in whole runs: prefetching, canaries, revision by their critique, and their end."""

import json
import threading

from server import Server, verdict

from grape_rl import train
from grape_rl.cli import main
from grape_rl.config.files import merge
from grape_rl.reward.critic.judging import Judging
from small_runs import lines, settings

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


def test_each_response_is_prefetched_when_it_ends(tmp_path, monkeypatch):
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


def test_canaries_are_judged_every_n_steps_and_logged(tmp_path):
    run = train(with_critic(tmp_path, canary_every=2))
    told = [json.loads(line) for line in (run.folder / "warnings.jsonl").read_text().splitlines()]
    fooled = [each for each in told if each["key"] == "canary sums/bold"]
    assert len(fooled) == 2, "before the first step and after the second"
    assert "the response ':' scores 1, with confidence 0.90" in fooled[0]["message"]
    assert not [each for each in told if each["key"] == "canary sums/calm"]


def test_by_default_no_canary_is_judged(tmp_path):
    assert not (train(with_critic(tmp_path)).folder / "warnings.jsonl").exists()


def test_grape_score_with_the_flag(tmp_path, capsys):
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


STYLE_RUBRIC = """
schema: grape-rubric/1
categories:
  sums:
    items:
      - {id: even, weight: 1, check: {type: regex, pattern: "[02468]"}}
      - {id: style, weight: 2, judge: {criterion: It is short., labels: {long: 0, "fair": 0.5, short: 1}}}
"""
LABELS = ("long", "fair", "short")


def test_a_revision_is_conditioned_on_the_critique_and_judged_once(tmp_path):
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
        (tmp_path / "rubric.yaml").write_text(STYLE_RUBRIC)
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
