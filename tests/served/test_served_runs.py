"""`grape score` and runs of GRAPE with a critic behind a real vLLM server: complete, killed, and resumed."""

import json

import pytest
import torch
from vllm_server import NAME

from grape_rl import train
from grape_rl.cli import main
from grape_rl.training.log import Log
from small_runs import lines, settings, told, weights

RUBRIC = """
schema: grape-rubric/1
categories:
  sums:
    items:
      - {id: right, weight: 3, judge: {criterion: It is right.}}
      - {id: brief, weight: 1, check: {type: length, max_tokens: 4}}
"""


@pytest.fixture
def wanted(vllm, tmp_path):
    """A run with two concurrent calls to the critic, so that its server can die during a batch."""
    found = settings(tmp_path, "grape")
    (tmp_path / "rubric.yaml").write_text(RUBRIC)
    critic = {"base_url": vllm.base_url, "model": NAME, "temperature": 1.0, "max_tokens": 256, "concurrency": 2}
    critic |= {"total_timeout_s": 20}
    return found | {"reward": found["reward"] | {"critics": {"default": critic}, "failure_limit": 0.3}}


def judged(run, step):
    rows = lines(run.folder / "rollouts" / f"step-{step:06d}.jsonl")
    return [v for row in rows for v in row["verdicts"] if v["item"] == "right"]


def test_grape_score(vllm, tmp_path, capsys):
    (tmp_path / "rubric.yaml").write_text(RUBRIC)
    rows = [{"prompt": "What is 2+2?", "response": f"It is {i}."} for i in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "critics.yaml").write_text(
        f"default: {{base_url: '{vllm.base_url}', model: {NAME}, max_tokens: 512, temperature: 1.0}}\n"
    )
    files = {"rubric": "rubric.yaml", "data": "rows.jsonl", "critics": "critics.yaml", "output": "out.jsonl"}
    code = main(["score", *(word for key, name in files.items() for word in (f"--{key}", str(tmp_path / name)))])
    assert code == 0, capsys.readouterr().err
    found = [v for row in lines(tmp_path / "out.jsonl") for v in row["verdicts"] if v["item"] == "right"]
    assert len(found) == 6 and [v["status"] for v in found].count("ok") >= 5
    assert {v["score"] for v in found if v["status"] == "ok"} <= {0.0, 1.0}


def test_a_run_whose_critic_dies_stops_and_resumes_to_the_same_bits(wanted, vllm, tmp_path, monkeypatch):
    """The server is killed during the verdicts of step 2: the run stops, and resumes with a new server."""
    straight = train(wanted | {"steps": 2, "output": str(tmp_path / "straight")})
    verdicts = judged(straight, 1) + judged(straight, 2)
    assert len(verdicts) == 24
    assert {v["status"] for v in verdicts} <= {"ok", "truncated"}
    assert sum(v["status"] == "ok" for v in verdicts) > 4
    dying = wanted | {"steps": 2, "checkpoint_every": 1}

    log, steps = Log.step, []
    with monkeypatch.context() as patch:
        patch.setattr(Log, "step", lambda self, number, metrics: steps.append(number) or log(self, number, metrics))
        vllm.killed_by_a_call(3, patch, lambda: steps == [1])
        with pytest.raises(
            RuntimeError, match=r"of 24 verdicts .* are missing, above the limit of 30%; .* of item 'right'"
        ):
            train(dying)
    assert not vllm.up()
    vllm.start()
    run = train(dying, resume=True)
    one, other = weights(run.model), weights(straight.model)
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert judged(run, 2) == judged(straight, 2)
    assert told(run) == told(straight)
