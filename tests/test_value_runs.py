"""Runs with a value function, and with numbers that a step leaves to the next: resumed to the same bits, and told."""

import math
import warnings

import pytest
import torch
from transformers import AutoModelForCausalLM

from grape_rl import ALGORITHMS, train
from grape_rl.config.files import merge
from grape_rl.maths.penalty import reference_kl
from grape_rl.methods import build_objective, resolve_options
from grape_rl.model.load import load
from grape_rl.model.scratch import character_tokenizer, random_llama
from grape_rl.model.value_head import separate_value_model
from grape_rl.sources.responses import current_options
from grape_rl.training import log as training_log
from small_runs import lines, settings, weights

PASSES = {"epochs": 2, "minibatches": 2}
CASES = {
    "shared": (
        "ppo",
        PASSES | {"kl_target": 0.01, "kl_horizon": 20.0, "value_warmup": 1, "kl": 0.02, "value_trunk": "shared"},
    ),
    "own": ("ppo", PASSES | {"value_trunk": "own", "value_learning_rate": 3e-3, "step_kl_limit": 0.05}),
    "average": ("reinforce", {"baseline": "moving_average", "decay": 0.5, "kl_in_reward": 0.1}),
}


def told(folder):
    return [
        {k: v for k, v in m.items() if not k.endswith(("time", "seconds"))} for m in lines(folder / "metrics.jsonl")
    ]


@pytest.mark.parametrize("case", CASES)
def test_a_killed_run_goes_on_to_the_same_bits(case, tmp_path, monkeypatch):
    method, options = CASES[case]
    wanted = settings(tmp_path, method) | {"options": options, "steps": 4, "checkpoint_every": 2}
    straight = train(wanted | {"output": str(tmp_path / "straight")})

    whole = training_log.Log.step

    def dying(self, number, metrics):
        whole(self, number, metrics)
        if number == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(training_log.Log, "step", dying)
    with pytest.raises(KeyboardInterrupt):
        train(wanted)
    monkeypatch.undo()
    run = train(wanted, resume=True)

    assert told(run.folder) == told(straight.folder)
    ours, theirs = (sorted(p for p in r.model.rglob("*") if p.suffix == ".safetensors") for r in (run, straight))
    assert [p.relative_to(run.model) for p in ours] == [p.relative_to(straight.model) for p in theirs]
    assert len(ours) == (1 if case == "average" else 2)
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(ours, theirs, strict=True))
    ours, theirs = (torch.load(r.model / "trainer.pt", weights_only=True) for r in (run, straight))
    assert ours["memory"] == theirs["memory"]
    for one, another in zip(ours["optimizer"]["state"].values(), theirs["optimizer"]["state"].values(), strict=True):
        assert all(torch.equal(one[key], another[key]) for key in one)
    check_memory(case, run, ours["memory"])


def check_memory(case, run, memory):
    """What was told of each step is what the step before left."""
    metrics = told(run.folder)
    if case == "average":
        average = math.nan
        for step in metrics:
            assert step["moving_average"] == (None if math.isnan(average) else pytest.approx(average))
            earned = step["reward"] - step["kl_penalty"]
            average = earned if math.isnan(average) else 0.5 * average + 0.5 * earned
        assert memory == {"moving_average": pytest.approx(average)}
    if case == "shared":  # β rises while the KL is over its target: 12 responses of a horizon of 20
        scale = 1.0
        for step in metrics:
            assert step["kl_scale"] == pytest.approx(scale)
            assert step["kl_penalty"] == pytest.approx(0.05 * scale * step["response_kl"], rel=1e-4, abs=1e-6)
            scale *= 1 + max(-0.2, min(0.2, step["response_kl"] / 0.01 - 1)) * 12 / 20
        assert memory == {"kl_scale": pytest.approx(scale)}
        assert metrics[1]["kl_scale"] < 1 < metrics[3]["kl_scale"] / metrics[2]["kl_scale"], "first under, later over"
    if case == "own":
        assert memory == {"kl_scale": 1.0} and all(step["kl_scale"] == 1 for step in metrics)


@pytest.mark.parametrize("trunk", ["shared", "own"])
def test_the_policy_s_checkpoint_is_a_plain_model_and_the_value_lies_beside_it(trunk, tmp_path):
    run = train(settings(tmp_path, "ppo") | {"options": {"value_trunk": trunk}})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, found = AutoModelForCausalLM.from_pretrained(run.model, output_loading_info=True)
    assert not any(found[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert [p.name for p in run.model.glob("*.safetensors")] == ["model.safetensors"], "whoever reads them all"
    assert model.state_dict().keys() >= weights(run.model).keys() and not any(
        "value" in key for key in weights(run.model)
    )
    assert {p.name for p in (run.model / "value").iterdir()} == (
        {"head.safetensors"} if trunk == "shared" else {"config.json", "model.safetensors"}
    )


@pytest.mark.parametrize("trunk", ["shared", "own"])
def test_while_the_value_warms_up_the_policy_keeps_every_bit(trunk, tmp_path):
    options = {"value_trunk": trunk, "value_warmup": 2, "kl_in_reward": 0.0, **PASSES}
    wanted = settings(tmp_path, "ppo") | {"options": options, "steps": 3, "checkpoint_every": 1, "keep_checkpoints": 3}
    wanted["optimizer"] = {"learning_rate": 1e-2, "weight_decay": 0.1}
    run = train(wanted)
    first, second, third = (weights(run.folder / "checkpoints" / f"step-{n}") for n in (1, 2, 3))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not any(torch.equal(second[key], third[key]) for key in second)
    assert [m["kl"] for m in run.metrics] == pytest.approx([0.0, 0.0, 0.0], abs=1e-6), "all three by the start policy"
    assert run.metrics[1]["loss/value_loss"] < run.metrics[0]["loss/value_loss"]
    assert run.metrics[0]["grad_norm"] == 0 < run.metrics[2]["grad_norm"]


def test_ppo_learns_and_so_does_its_value(tmp_path):
    """Short even answers are wanted, one response a prompt: no group to compare, and the value takes its place."""
    wanted = merge(
        settings(tmp_path, "ppo"),
        {"options": {"value_trunk": "own", "kl_in_reward": 0.01, "step_kl_limit": 0.3, **PASSES}, "steps": 20},
    )
    wanted |= {"prompts_per_step": 24, "group_size": 1, "optimizer": {"learning_rate": 5e-3}}
    metrics = train(wanted).metrics
    mean = lambda name, steps: sum(m[name] for m in steps) / len(steps)  # noqa: E731
    assert mean("reward", metrics[-4:]) > mean("reward", metrics[:4]) + 0.1
    assert mean("loss/value_loss", metrics[-4:]) < mean("loss/value_loss", metrics[:4]) / 4
    assert all(1 <= m["optimizer_steps"] <= 4 for m in metrics)
    assert {"explained_variance", "value_grad_norm", "kl_penalty", "kl_scale"} <= metrics[0].keys()


def test_a_reward_model_is_the_value_s_start(tmp_path):
    first = train(settings(tmp_path, "sft"))
    policy, tokenizer = load(str(first.model), torch.device("cpu"))
    rewarder = separate_value_model(policy)
    with torch.no_grad():
        rewarder.score.weight.fill_(0.01)
    rewarder.save_pretrained(tmp_path / "rewarder")
    tokenizer.save_pretrained(tmp_path / "rewarder")
    options = {"value_trunk": "own", "value_model": str(tmp_path / "rewarder"), "value_learning_rate": 1e-9}
    wanted = settings(tmp_path, "ppo") | {"model": {"name": str(first.model)}, "options": options, "steps": 1}
    run = train(wanted | {"output": str(tmp_path / "ppo")})
    kept = weights(run.model / "value")["score.weight"]
    torch.testing.assert_close(kept, torch.full_like(kept, 0.01), rtol=0, atol=1e-8)


def foreign(folder):
    """A value model whose tokenizer is another's."""
    tokenizer = character_tokenizer(["abcdefghijklmnopqrstuvwxyz"])
    separate_value_model(random_llama(tokenizer, 32, 2, 2, 64, seed=0)).save_pretrained(folder / "foreign")
    tokenizer.save_pretrained(folder / "foreign")
    return str(folder / "foreign")


def few(folder):
    """A value model with fewer tokens than the policy's tokenizer."""
    separate_value_model(random_llama(character_tokenizer(["ab"]), 32, 2, 2, 64, seed=0)).save_pretrained(
        folder / "few"
    )
    return str(folder / "few")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"value_trunk": "both"}, "value_trunk: Input should be 'own' or 'shared'"),
        ({"value_trunk": "shared", "value_model": "rewarder"}, "a shared trunk has no model of its own; set"),
        (
            {"value_trunk": "own", "value_model": "nowhere/at/all"},
            "value model 'nowhere/at/all': cannot be loaded",
        ),
        ({"value_trunk": "own", "value_model": foreign}, "has another tokenizer than the policy"),
        ({"value_trunk": "own", "value_model": few}, r"has 6 embeddings for the policy's \d+ tokens"),
        ({"kl_target": -1.0}, "kl_target: Input should be greater than or equal to 0"),
        ({"kl_target": 6.0, "kl_horizon": 2.0}, r"kl_horizon is 2.0; with 12 responses it must be over 2.4"),
        ({"value_warmup": -1}, "value_warmup: Input should be greater than or equal to 0"),
        (
            {"kl_target": 6.0, "kl_in_reward": 0.0},
            "kl_target adapts the coefficient kl or kl_in_reward, but both are 0",
        ),
    ],
)
def test_what_a_value_cannot_be_is_said_before_the_first_step(options, message, tmp_path):
    options = {key: value(tmp_path) if callable(value) else value for key, value in options.items()}
    with pytest.raises(ValueError, match=message) as error:
        train(settings(tmp_path, "ppo") | {"options": options})
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_kl_that_follows_its_target_is_so_in_the_reward_and_in_the_loss():
    row = ALGORITHMS["ppo"]
    chosen = resolve_options(row, {"kl": 0.5, "kl_in_reward": 0.25, "kl_target": 3.0})
    found = current_options(chosen, {"kl_scale": 3.0})
    assert (found["kl"], found["kl_in_reward"]) == (1.5, 0.75)
    assert {key: value for key, value in found.items() if key not in ("kl", "kl_in_reward")} == {
        key: value for key, value in chosen.items() if key not in ("kl", "kl_in_reward")
    }
    (held,) = [term for term in build_objective(row, found).terms if term.function is reference_kl]
    assert held.coefficient == 1.5
    assert current_options(chosen, row.source.start_memory) == chosen == current_options(chosen, {})


def test_a_method_without_a_value_function_has_no_option_of_it(tmp_path):
    with pytest.raises(ValueError, match="unknown key 'value_trunk'"):
        train(settings(tmp_path, "grpo") | {"options": {"value_trunk": "own"}})


@pytest.mark.parametrize("method", ["reinforce", "rloo", "reinforce_plus_plus"])
def test_the_kl_in_the_reward_takes_the_reference_s_forward_pass_whether_it_is_measured_or_not(method, tmp_path):
    base = settings(tmp_path, method) | {"log_kl": False}
    without = train(base | {"output": str(tmp_path / "without")})
    held = train(base | {"options": {"kl_in_reward": 5.0}, "output": str(tmp_path / "held")})
    assert "kl" not in without.metrics[0] and "kl_penalty" not in without.metrics[0]
    assert held.metrics[0]["kl_penalty"] == pytest.approx(0.0, abs=1e-5) and held.metrics[1]["kl_penalty"] != 0
    assert not torch.equal(
        weights(without.model)["model.embed_tokens.weight"], weights(held.model)["model.embed_tokens.weight"]
    )
    assert ALGORITHMS[method].source.token_reward is ALGORITHMS["ppo"].source.token_reward
