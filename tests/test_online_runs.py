"""Runs that learn from the best of their own responses: what they reach, killed and resumed, and what is refused."""

import math

import pytest
import torch

from grape_rl import train
from grape_rl.config.files import merge
from grape_rl.setup import sampling as setup_sampling
from grape_rl.training import pairs as training_pairs
from grape_rl.validation import load_config
from small_runs import REWARD, killed_and_resumed, lines, settings, weights

ROUNDS = {"options": {"epochs": 2, "minibatches": 2, "keep": 2, "deduplicate": True}, "prompts_per_step": 4}


def rewarded(folder, method, **more):
    """A run that is rewarded by a digit's worth for each digit."""
    (folder / "digits.py").write_text(REWARD)
    return merge({**settings(folder, method), "reward": {"function": f"{folder / 'digits.py'}:digits"}}, more)


@pytest.mark.parametrize(
    ("method", "more"), [("online_dpo", {"options": {"beta": 0.5}}), ("rejection_sampling", ROUNDS)]
)
def test_the_reward_rises(method, more, tmp_path):
    more = {**more, "prompts_per_step": 8, "group_size": 8, "optimizer": {"learning_rate": 5e-3}}
    run = train(rewarded(tmp_path, method, steps=16, log_kl=False, **more))
    told = [step["reward"] for step in run.metrics]
    assert sum(told[-3:]) / 3 > 1.5 * sum(told[:3]) / 3, told
    assert run.metrics[-1]["length"] > 0 and "kl" not in run.metrics[-1]


@pytest.mark.parametrize(("method", "more"), [("online_dpo", {}), ("rejection_sampling", ROUNDS)])
def test_a_killed_run_goes_on_to_the_same_bits(method, more, tmp_path, monkeypatch):
    wanted = rewarded(tmp_path, method, steps=3, checkpoint_every=1, **more)
    run, straight = killed_and_resumed(wanted, tmp_path, monkeypatch)
    drawn, again = (lines(at.folder / "rollouts" / "step-000003.jsonl") for at in (straight, run))
    assert drawn == again and len(drawn) == wanted["prompts_per_step"] * 4


def test_a_run_without_any_pair_says_so_and_moves_nothing(tmp_path):
    wanted = rewarded(tmp_path, "online_dpo", options={"min_gap": 1000.0}, optimizer={"weight_decay": 0.1})
    run = train({**wanted, "checkpoint_every": 1})
    one, other = (weights(run.folder / "checkpoints" / f"step-{step}") for step in (1, 2))
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert [line["key"] for line in lines(run.folder / "warnings.jsonl")].count("no_pairs") == 2
    assert [(step["pairs"], step["unpaired_groups"]) for step in run.metrics] == [(0, 3), (0, 3)]
    assert "loss" not in run.metrics[0] and math.isnan(run.metrics[0]["chosen_length"])


def test_a_round_keeps_what_passes_and_trains_on_it_alone(tmp_path):
    run = train(rewarded(tmp_path, "rejection_sampling", options={"threshold": 1.0, "keep": 3, "deduplicate": True}))
    for number, told in enumerate(run.metrics, 1):
        records = lines(run.folder / f"rollouts/step-{number:06d}.jsonl")
        kept = [r for r in records if r["advantage"] == 1]
        assert told["trained_responses"] == len(kept) < len(records) and all(r["reward"] >= 1 for r in kept)
        for prompt in {r["prompt"] for r in kept}:
            of_prompt = [r["response"] for r in kept if r["prompt"] == prompt]
            assert len(of_prompt) <= 3 and len(of_prompt) == len(set(of_prompt))


def test_a_round_in_which_none_passes_changes_nothing_and_says_so(tmp_path):
    run = train({**rewarded(tmp_path, "rejection_sampling", options={"threshold": 100.0}), "checkpoint_every": 1})
    one, other = (weights(run.folder / "checkpoints" / f"step-{step}") for step in (1, 2))
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert [step["trained_responses"] for step in run.metrics] == [0, 0]
    assert "no_advantages" in [line["key"] for line in lines(run.folder / "warnings.jsonl")]


def test_the_loss_is_of_the_policy_at_the_temperature_that_it_was_sampled_at(tmp_path, monkeypatch):
    seen = set()
    run = training_pairs.compute_logprobs

    def watched(model, sequences, temperature=1.0):
        seen.add(temperature)
        return run(model, sequences, temperature)

    monkeypatch.setattr(training_pairs, "compute_logprobs", watched)
    found = train(rewarded(tmp_path, "online_dpo", sampling={"temperature": 0.7}))
    assert seen == {0.7}, "the reference's, and the policy's"
    assert found.metrics[0]["margin"] == 0


def test_a_sampler_may_cut_and_its_kl_is_not_told(tmp_path, monkeypatch):
    used = []
    sample = setup_sampling.sample
    monkeypatch.setattr(setup_sampling, "sample", lambda *given: used.append(given[3]) or sample(*given))
    run = train(rewarded(tmp_path, "online_ipo", sampling={"top_k": 5, "top_p": 0.9}))
    assert {(how.top_k, how.top_p) for how in used} == {(5, 0.9)}
    assert "kl" not in run.metrics[0] and run.metrics[0]["pairs"] > 0


def test_held_out_responses_are_graded(tmp_path):
    run = train(rewarded(tmp_path, "online_simpo", data={"held_out_rows": 3}, evaluation={"samples": 2}))
    assert [run.evaluations[step].responses for step in (0, 2)] == [6, 6]
    assert all(item.category == "all" for item in run.evaluations[2].items)


@pytest.mark.parametrize(
    ("method", "change", "message"),
    [
        ("online_dpo", {"group_size": 1}, "group_size is 1: online_dpo compares the responses to a prompt"),
        ("online_dpo", {"reward": {"function": None}}, "reward: online_dpo learns from rewards: set exactly one of"),
        ("online_dpo", {"sampling": {"temperature": 0}}, "at temperature 0 all responses are equal: online_dpo would"),
        ("online_dpo", {"options": {"pairing": "worst"}}, "options of online_dpo: pairing: Input should be 'best_wor"),
        ("online_dpo", {"options": {"epochs": 2}}, "options of online_dpo: unknown key 'epochs'"),
        ("dpo", {"options": {"min_gap": 0.1}}, "options of dpo: unknown key 'min_gap'"),
        ("onlin_dpo", {}, "unknown method 'onlin_dpo'; did you mean 'online_dpo'?"),
        ("rejection_sampling", {"options": {"deduplicate": 3}}, "options of rejection_sampling: deduplicate: Input"),
    ],
)
def test_what_cannot_be_is_told_at_once(method, change, message, tmp_path):
    with pytest.raises(ValueError) as told:
        load_config(merge(rewarded(tmp_path, method), change))
    assert message in str(told.value) and "\n" not in str(told.value)


def test_too_many_missing_rewards_stop_the_run(tmp_path):
    (tmp_path / "broken.py").write_text("def broken(completions):\n    return [None for _ in completions]\n")
    wanted = rewarded(tmp_path, "online_dpo", reward={"function": f"{tmp_path / 'broken.py'}:broken"})
    with pytest.raises(RuntimeError, match=r"12 of 12 verdicts .* are missing"):
        train(wanted)
