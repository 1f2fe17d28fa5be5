"""Runs that compare with a reference: how often its forward passes run, what is kept of them, and who holds a copy."""

import gc
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from grape_rl import run as runs
from grape_rl import train
from grape_rl.config.files import merge
from grape_rl.run import Run
from small_runs import REWARD, killed_and_resumed, lines, settings, sums, timeless_metrics, weights, written

NINE = [
    {"prompt": row["prompt"], "chosen": row["completion"], "rejected": str(int(row["completion"]) + 11)}
    for row in sums(9)
]


def offline(folder, method="dpo", **more):
    """A run of two epochs and a bit on nine rows, five a step."""
    base = {**settings(folder, method), "reward": {}, "steps": 4, "prompts_per_step": 5}
    written(folder / "rows.jsonl", NINE)
    return merge(base, more)


def counted(monkeypatch, part="preferences", name="pair_logprobs") -> list[int]:
    """How many sequences the reference is asked for, call by call."""
    calls: list[int] = []
    place = f"grape_rl.sources.{part}.{name}"
    whole: Callable[..., Any] = getattr(__import__(f"grape_rl.sources.{part}", fromlist=[name]), name)

    def asked(model, sequences, **how):
        calls.append(len(sequences.tokens))
        return whole(model, sequences, **how)

    monkeypatch.setattr(place, asked)
    return calls


def same(one: Run, other: Run) -> None:
    """Both have come to the same bits."""
    a, b = weights(one.model), weights(other.model)
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize(
    ("method", "part", "name", "rows"),
    [
        ("dpo", "preferences", "pair_logprobs", [10, 10]),
        ("aot", "preferences", "pair_logprobs", [10, 10]),
        ("apo_zero_unpaired", "labels", "label_logprobs", [5, 5, 5, 5]),
    ],
)
def test_each_row_s_reference_is_computed_once(method, part, name, rows, tmp_path, monkeypatch):
    calls = counted(monkeypatch, part, name)
    run = train(offline(tmp_path, method, steps=6))
    assert calls == rows
    assert [("reference_seconds" in line) for line in run.metrics] == [True] + [False] * 5
    if method == "dpo":
        assert run.metrics[0]["accuracy"] == 0.5 and run.metrics[0]["margin"] == 0, "at the reference, to the bit"


def test_rows_that_the_run_does_not_come_to_are_not_computed(tmp_path, monkeypatch):
    calls = counted(monkeypatch)
    train(offline(tmp_path, steps=1))
    assert calls == [10]


@pytest.mark.parametrize("lost", [False, True])
def test_a_run_that_goes_on_reads_what_is_kept_and_computes_what_is_lost_to_the_same_bits(lost, tmp_path, monkeypatch):
    wanted = offline(tmp_path, checkpoint_every=2)
    killed_and_resumed(wanted, tmp_path, monkeypatch)
    straight = train({**wanted, "output": str(tmp_path / "one"), "steps": 2})
    if lost:
        shutil.rmtree(straight.folder / "reference")
    calls = counted(monkeypatch)
    on = train({**wanted, "output": str(tmp_path / "one")}, resume=True)
    assert calls == ([10, 10] if lost else [])
    same(on, Run(tmp_path / "straight", on.config, {}))


def test_runs_share_a_folder_and_one_of_another_reference_does_not_use_it(tmp_path, monkeypatch):
    shared = {"reference_cache": str(tmp_path / "shared")}
    first = train(offline(tmp_path, **shared))
    calls = counted(monkeypatch)
    second = train(offline(tmp_path, output=str(tmp_path / "second"), **shared))
    assert calls == [] and not (second.folder / "reference").exists()
    same(first, second)
    assert timeless_metrics(first) == timeless_metrics(second)
    changes: list[dict[str, Any]] = [{"model": {"scratch": {"layers": 1}}}, {"precision": "bf16"}]
    for number, change in enumerate(changes):
        calls.clear()
        run = train(offline(tmp_path, output=str(tmp_path / f"other{number}"), **shared, **change))
        assert calls == [10, 10]
        assert [warning["key"] for warning in lines(run.folder / "warnings.jsonl")] == ["reference_cache"]
        same(run, train(offline(tmp_path, output=str(tmp_path / f"alone{number}"), **change)))


def frozen_copies(monkeypatch) -> list[PreTrainedModel]:
    """The copies of a model that are made as a reference."""
    made: list[PreTrainedModel] = []
    from grape_rl.model.load import frozen_copy

    def counting(model):
        made.append(frozen_copy(model))
        return made[-1]

    for place in ("setup.setup", "sources.preferences"):
        monkeypatch.setattr(f"grape_rl.{place}.frozen_copy", counting)
    return made


@pytest.mark.parametrize(
    ("method", "more", "copies"),
    [
        ("dpo", {}, 0), ("simpo", {}, 0), ("sft", {}, 0), ("apo_zero_unpaired", {}, 0),
        ("kto", {}, 1), ("tdpo1", {}, 1), ("tr_dpo", {"data": {"held_out_rows": 2}}, 1),
        ("online_dpo", {}, 1), ("online_tr_dpo", {}, 2), ("grpo", {}, 1), ("grpo", {"log_kl": False}, 0),
    ],
)  # fmt: skip
def test_no_copy_is_made_that_no_step_reads(method, more, copies, tmp_path, monkeypatch):
    made = frozen_copies(monkeypatch)
    wanted = offline(tmp_path, method, steps=1, prompts_per_step=2, **more)
    if method == "sft":
        written(tmp_path / "rows.jsonl", sums(4))
    if method in ("online_dpo", "online_tr_dpo", "grpo"):
        (tmp_path / "digits.py").write_text(REWARD)
        wanted["reward"] = {"function": f"{tmp_path / 'digits.py'}:digits"}
    train(wanted)
    assert len(made) == copies


@pytest.mark.parametrize(("method", "models"), [("dpo", 1), ("simpo", 1), ("kto", 2), ("tdpo1", 2)])
def test_a_run_that_goes_on_holds_no_model_that_no_step_reads(method, models, tmp_path, monkeypatch):
    wanted = offline(tmp_path, method, steps=1)
    train(wanted)
    counts: list[int] = []
    whole = runs.fit

    def counting(*args, **given):
        gc.collect()
        counts.append(sum(type(each).__name__.endswith("ForCausalLM") for each in gc.get_objects()))
        return whole(*args, **given)

    gc.collect()
    before = sum(type(each).__name__.endswith("ForCausalLM") for each in gc.get_objects())
    monkeypatch.setattr(runs, "fit", counting)
    made = frozen_copies(monkeypatch)
    train({**wanted, "steps": 2}, resume=True)
    assert counts == [before + models] and not made, "the start itself is the reference: nobody trains it"
