"""Runs: a killed one resumed to the same bits, folders that hold something else, failures and warnings on the way."""

import json
import math

import pytest
import torch

from grape_rl import ALGORITHMS, Config, train
from grape_rl.config.files import merge
from grape_rl.model.load import load
from grape_rl.model.logprobs import compute_logprobs
from grape_rl.training import log as training_log
from grape_rl.types import Sequences
from grape_rl.validation import load_config
from small_runs import lines, settings, sums, weights, written

LONG = {
    "data": {"held_out_rows": 3},
    "options": {"kl": 0.05, "epochs": 2, "minibatches": 2},
    "optimizer": {"warmup": 2, "schedule": "cosine", "weight_decay": 0.1},
    "evaluation": {"every": 1},
    "steps": 4,
    "checkpoint_every": 2,
}


def told(folder, name):
    """A log without its times."""
    timed = ("time", "seconds")
    return [{k: v for k, v in line.items() if not k.endswith(timed)} for line in lines(folder / name)]


def same(folder, other):
    """Whether two runs left the same: weights, optimizer, metrics, warnings, responses, held-out results."""
    last, other_last = folder / "checkpoints" / "step-4", other / "checkpoints" / "step-4"
    assert (last / "model.safetensors").read_bytes() == (other_last / "model.safetensors").read_bytes()
    moments, other_moments = (
        torch.load(path / "trainer.pt", weights_only=True)["optimizer"]["state"] for path in (last, other_last)
    )
    assert moments.keys() == other_moments.keys() and len(moments) > 10
    for one, another in zip(moments.values(), other_moments.values(), strict=True):
        assert all(torch.equal(one[key], another[key]) for key in one)
    for name in ("metrics.jsonl", "warnings.jsonl"):
        assert told(folder, name) == told(other, name)
    drawn = sorted((folder / "rollouts").iterdir())
    assert [path.name for path in drawn] == [path.name for path in sorted((other / "rollouts").iterdir())]
    assert all(path.read_bytes() == (other / "rollouts" / path.name).read_bytes() for path in drawn)
    assert (folder / "held_out.json").read_bytes() == (other / "held_out.json").read_bytes()


@pytest.fixture
def killed(monkeypatch):
    """Kill the run as soon as it has logged a step."""

    def at(step):
        whole = training_log.Log.step

        def dying(self, number, metrics):
            whole(self, number, metrics)
            if number == step:
                raise KeyboardInterrupt

        monkeypatch.setattr(training_log.Log, "step", dying)

    yield at
    monkeypatch.undo()


@pytest.mark.parametrize("method", ["grpo", "grape", "sft"])
def test_a_killed_run_goes_on_to_the_same_bits(method, tmp_path, killed, monkeypatch):
    wanted = merge(settings(tmp_path, method), LONG)
    if method == "sft":
        wanted |= {"options": {"epochs": 2}, "data": {**wanted["data"], "max_length": 5}}
    straight = train({**wanted, "output": str(tmp_path / "straight")})

    wanted["output"] = str(tmp_path / "killed")
    for step in (1, 3):  # once before there is a checkpoint, once after
        killed(step)
        with pytest.raises(KeyboardInterrupt):
            train(wanted, resume=step > 1)
        monkeypatch.undo()
    assert len(lines(tmp_path / "killed" / "metrics.jsonl")) == 3
    run = train(wanted, resume=True)

    same(run.folder, straight.folder)
    assert {s: e.as_json() for s, e in run.evaluations.items()} == {
        s: e.as_json() for s, e in straight.evaluations.items()
    }
    assert sorted(run.evaluations) == [0, 1, 2, 3, 4]
    if method == "sft":
        assert [w["key"] for w in told(run.folder, "warnings.jsonl")] == ["cut", "left_out"], "once, not at each resume"
    with pytest.raises(ValueError, match="all of its 4 steps are done; for more, raise steps"):
        train(wanted, resume=True)
    more = train({**wanted, "steps": 5}, resume=True)
    assert [line["step"] for line in more.metrics] == [1, 2, 3, 4, 5]


def test_the_same_settings_give_the_same_run_and_another_seed_another(tmp_path):
    wanted = settings(tmp_path, "grpo")
    one, two, other = (
        train({**wanted, "seed": seed, "output": str(tmp_path / name)})
        for seed, name in ((1, "one"), (1, "two"), (2, "other"))
    )
    assert (one.model / "model.safetensors").read_bytes() == (two.model / "model.safetensors").read_bytes()
    assert (one.model / "model.safetensors").read_bytes() != (other.model / "model.safetensors").read_bytes()


def test_a_run_starts_from_another_s_model_and_measures_how_far_it_goes(tmp_path):
    """SFT, then GRAPE from its checkpoint: the KL is that to the start, at the sampling temperature, and 0 at first."""
    first = train(settings(tmp_path, "sft"))
    wanted = {
        **settings(tmp_path, "grape"),
        "model": {"name": str(first.model)},
        "output": str(tmp_path / "grape"),
        "sampling": {"max_tokens": 10, "temperature": 0.8},
        "steps": 3,
    }
    run = train(wanted)
    assert run.metrics[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert run.metrics[2]["kl"] > 1e-4

    start, now = (load(str(path), torch.device("cpu"))[0] for path in (first.model, run.model))
    tokens = torch.tensor([[5, 6, 7]])
    row = Sequences((torch.tensor([4, 5]),), tokens, torch.ones_like(tokens, dtype=torch.bool), torch.tensor([0]))
    assert not torch.allclose(compute_logprobs(start, row).logp, compute_logprobs(now, row).logp, atol=1e-3)


def test_in_bf16_each_step_sees_the_weights_that_the_last_one_left(tmp_path):
    """The same rows each step: the loss falls as in float32, but for bf16's rounding of some 0.01."""
    wanted = settings(tmp_path, "sft") | {"prompts_per_step": 12, "steps": 4}
    fine, coarse = (
        [told["loss"] for told in train({**wanted, "precision": kind, "output": str(tmp_path / kind)}).metrics]
        for kind in ("fp32", "bf16")
    )
    assert fine[0] - fine[3] > 0.5
    assert coarse == pytest.approx(fine, abs=0.05)


def test_a_folder_that_holds_another_run(tmp_path):
    wanted = settings(tmp_path, "sft")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"run: contains another run; name a new folder with --output, or --resume"):
        train(wanted)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]
    with pytest.raises(ValueError, match="run: contains no run to resume"):
        train(wanted, resume=True)
    with pytest.raises(ValueError, match=r"rows\.jsonl: is a file; name a folder"):
        train({**wanted, "output": str(tmp_path / "rows.jsonl")})
    (tmp_path / "run" / "notes.txt").unlink()
    train(wanted)  # an empty folder is welcome


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 5}, "another seed;"),
        ({"sampling": {"temperature": 0.5}}, "another sampling.temperature;"),
        ({"options": {"clip_low": 0.1}, "group_size": 5}, "another options.clip_low, group_size;"),
    ],
)
def test_a_run_is_resumed_as_it_was_configured(tmp_path, change, named):
    wanted = settings(tmp_path, "grpo")
    (tmp_path / "run").mkdir()
    from grape_rl.config.files import dump

    (tmp_path / "run" / "config.yaml").write_text(dump(load_config(wanted)))
    with pytest.raises(ValueError) as error:
        train(merge(wanted, change), resume=True)
    assert f"run: was run with {named} resume it with the same configuration" in str(error.value)


REWARDS = """
import math

def none_of_them(completions, **columns):
    raise KeyError("no such column: gold")

def no_numbers(completions, **columns):
    return [math.nan] * len(completions)

def all_but_one(completions, **columns):
    return [math.nan] + [float(len(text)) for text in completions[1:]]

def alike(completions, **columns):
    return [2.5] * len(completions)
"""


def with_function(folder, name, **more):
    (folder / "rewards.py").write_text(REWARDS)
    return {**settings(folder, "grpo"), "reward": {"function": f"{folder}/rewards.py:{name}", **more}}


@pytest.mark.parametrize(
    ("name", "reason"), [("none_of_them", "KeyError: 'no such column: gold'"), ("no_numbers", "nan")]
)
def test_a_reward_function_that_never_answers_stops_the_run_before_it_changes_anything(
    tmp_path, monkeypatch, name, reason
):
    updated = []
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: updated.append(self))
    with pytest.raises(RuntimeError) as error:
        train(with_function(tmp_path, name))
    assert "12 of 12 verdicts (100%) are missing" in str(error.value)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)
    assert not updated
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert lines(tmp_path / "run" / "metrics.jsonl") == []


def test_one_verdict_that_is_missing_is_told_and_the_run_goes_on(tmp_path):
    run = train(with_function(tmp_path, "all_but_one", failure_limit=0.2))
    assert [line["missing_verdicts"] for line in run.metrics] == [1, 1]
    assert all(math.isfinite(line["reward"]) for line in run.metrics)
    told_of = lines(run.folder / "warnings.jsonl")
    assert [w["key"] for w in told_of] == ["missing_verdicts", "missing_verdicts"]
    assert "item 'all_but_one', infrastructure" in told_of[0]["message"]
    first, second = lines(run.folder / "rollouts" / "step-000001.jsonl")[:2]
    assert first["reward"] is None and first["advantage"] is None
    assert first["verdicts"][0]["status"] == "infrastructure" and first["verdicts"][0]["score"] is None
    assert second["reward"] is not None


def test_missing_verdicts_of_the_held_out_rows_are_written_down(tmp_path):
    wanted = with_function(tmp_path, "all_but_one", failure_limit=0.2)
    run = train(merge(wanted, {"data": {"held_out_rows": 2}, "steps": 1}))
    items = json.loads((run.folder / "held_out.json").read_text())["1"]["items"]
    assert [(item["graded"], item["missing"]) for item in items] == [(1, {"infrastructure": 1})]


def test_rewards_that_are_all_equal_are_warned_of_and_change_nothing(tmp_path):
    wanted = with_function(tmp_path, "alike")
    run = train({**wanted, "checkpoint_every": 1})
    assert {w["key"] for w in lines(run.folder / "warnings.jsonl")} == {"equal_rewards"}
    assert "every reward of the step is 2.5" in lines(run.folder / "warnings.jsonl")[0]["message"]
    one, two = (weights(run.folder / "checkpoints" / f"step-{n}") for n in (1, 2))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert [line["zero_variance_groups"] for line in run.metrics] == [1, 1]


def test_responses_that_are_all_cut_off_are_warned_of(tmp_path):
    run = train({**settings(tmp_path, "grpo"), "sampling": {"max_tokens": 1}, "prompts_per_step": 1, "steps": 6})
    whole = {w["step"] for w in lines(run.folder / "warnings.jsonl") if w["key"] == "all_truncated"}
    assert whole == {line["step"] for line in run.metrics if line["truncated"] == 1}
    assert whole, "with this seed there is such a step"
    assert "truncated at 1 tokens: raise sampling.max_tokens" in (run.folder / "warnings.jsonl").read_text()


def test_demonstrations_that_are_cut_or_left_out_are_told(tmp_path, capsys):
    rows = [{"prompt": "1+1=", "completion": "2"}, {"prompt": "1+2=", "completion": "3333"}]
    rows += [{"prompt": "1+2+3+4=", "completion": "10"}]
    wanted = merge(settings(tmp_path, "sft"), {"data": {"max_length": 7}})
    written(tmp_path / "rows.jsonl", rows)
    run = train(wanted)
    assert [w["message"] for w in lines(run.folder / "warnings.jsonl")] == [
        "1 of 3 demonstrations are truncated to 7 tokens",
        "1 of 3 demonstrations have nothing to learn within 7 tokens: left out",
    ]
    assert "left out" in capsys.readouterr().err


def test_held_out_rows_are_the_first_and_never_trained_on(tmp_path):
    wanted = merge(settings(tmp_path, "grpo"), {"data": {"held_out_rows": 4}, "steps": 6})
    run = train(wanted)
    held = {row["prompt"] for row in sums(4)}
    drawn = {record["prompt"] for path in (run.folder / "rollouts").iterdir() for record in lines(path)}
    assert drawn == {row["prompt"] for row in sums(12)[4:]} - held
    assert run.evaluations[0].responses == 4
    assert run.metrics == [line for line in run.metrics if line["phase"] == "grpo"]
    assert isinstance(run.config, Config)


def test_held_out_rows_of_their_own_file(tmp_path):
    written(tmp_path / "test.jsonl", [{"prompt": "9+9="}, {"prompt": "8+8="}, {"prompt": "1+0="}])
    own = {"data": {"held_out": str(tmp_path / "test.jsonl"), "held_out_rows": 2}}
    run = train(merge(settings(tmp_path, "sft"), {**own, "evaluation": {"samples": 5}}))
    assert run.evaluations[2].responses == 10
    assert sorted(run.evaluations) == [0, 2]


def test_a_run_that_failed_before_its_first_step_may_be_tried_again_in_its_folder(tmp_path):
    with pytest.raises(RuntimeError):
        train(with_function(tmp_path, "none_of_them"))
    assert (tmp_path / "run" / "config.yaml").is_file()
    run = train(with_function(tmp_path, "alike"))
    assert len(run.metrics) == 2
    with pytest.raises(ValueError, match="contains another run"):
        train(with_function(tmp_path, "alike"))


def test_what_changes_no_result_may_change_when_a_run_is_resumed(tmp_path):
    wanted = settings(tmp_path, "grpo") | {"checkpoint_every": 1}
    train(wanted)
    more = {"steps": 3, "tokens_per_microbatch": 64, "generation_batch_size": 4, "keep_checkpoints": 1}
    assert len(train(wanted | more, resume=True).metrics) == 3


def test_training_in_bf16_follows_training_in_fp32(tmp_path):
    """Autocast keeps copies of the weights until it is left: around more than one step it trains nothing."""
    found = {}
    for precision in ("fp32", "bf16"):
        wanted = settings(tmp_path, "sft") | {"steps": 15, "precision": precision, "output": str(tmp_path / precision)}
        more = {"data": {**wanted["data"], "held_out_rows": 2}, "optimizer": {"learning_rate": 3e-3}}
        found[precision] = [step["loss"] for step in train(wanted | more).metrics]
    assert found["fp32"][-1] < 0.8 * found["fp32"][0]
    # bf16 keeps 8 bits; a run that stands still is off by a fifth at the end.
    assert found["bf16"] == pytest.approx(found["fp32"], rel=0.03)


def test_a_plain_prompt_becomes_a_user_s_message_where_data_chat_says_so(tmp_path):
    wanted = settings(tmp_path, "sft")
    config = load_config(merge(wanted, {"data": {"chat": True, "system": "Be brief."}}))
    train_rows, _ = ALGORITHMS["sft"].source.rows(config, {})
    assert train_rows[0]["prompt"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": sums(1)[0]["prompt"]},
    ]
    assert train_rows[0]["completion"] == [{"role": "assistant", "content": sums(1)[0]["completion"]}]
