"""Runs of models that score, and runs that are scored by them: before and after, resumed, and what is refused."""

import pytest
import torch

from grape_rl import train
from grape_rl.cli.train import resolve_config
from grape_rl.config.files import merge
from small_runs import killed_and_resumed, lines, settings, weights, written
from test_preference_runs import preferred, without

STEPS = [
    {"prompt": f"{i}+{j}=", "completions": [str(i), str(i + j)], "labels": [True, False]}
    if (i + j) % 2
    else {"prompt": f"{i}+{j}=", "completions": [str(i), "no"], "labels": [True, True]}
    for i in range(3)
    for j in range(4)
]
ROWS = {"reward_model": preferred(12), "process_reward_model": STEPS}


def scoring(folder, method, rows=None, **more):
    """A run that trains a model to score."""
    wanted = settings(folder, method)
    written(folder / "rows.jsonl", ROWS[method] if rows is None else rows)
    return merge({**wanted, "reward": {}}, more)


def by_item(run, step):
    return {item.item: item.mean for item in run.evaluations[step].items}


@pytest.mark.parametrize("method", ROWS)
def test_it_ranks_and_judges_what_it_has_learned(method, tmp_path):
    data = {"held_out": str(tmp_path / "rows.jsonl"), "held_out_rows": 12}
    run = train(scoring(tmp_path, method, data=data, steps=25, prompts_per_step=12))
    before, after = by_item(run, 0), by_item(run, 25)
    assert after["accuracy"] > 0.9 >= before["accuracy"], (before, after)
    assert run.evaluations[25].responses == 0 and not list((run.folder / "rollouts").iterdir())
    if method == "reward_model":
        assert after["margin"] > before["margin"] + 1 and {"accuracy", "margin", "reward"} == after.keys()
    else:
        assert after["accuracy_wrong"] > 0.8 and after["accuracy_right"] > 0.8


@pytest.mark.parametrize("method", ROWS)
def test_a_killed_run_goes_on_to_the_same_bits(method, tmp_path, monkeypatch):
    wanted = scoring(tmp_path, method, steps=4, checkpoint_every=2, data={"held_out_rows": 3})
    run, _ = killed_and_resumed(wanted, tmp_path, monkeypatch)
    assert "score.weight" in weights(run.model)


def test_a_reward_model_is_the_start_of_another_and_of_no_language_model(tmp_path):
    first = train(scoring(tmp_path, "reward_model"))
    again = scoring(tmp_path, "reward_model", output=str(tmp_path / "again"), optimizer={"learning_rate": 1e-9})
    second = train(merge(again, {"model": {"name": str(first.model)}}))
    torch.testing.assert_close(weights(second.model), weights(first.model), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match=r"has the head score\.weight of a reward model; use a language model"):
        train(merge(settings(tmp_path, "grpo"), {"model": {"name": str(first.model)}, "output": str(tmp_path / "x")}))


def test_pairs_over_the_limit_are_told(tmp_path):
    rows = [*preferred(3), {"prompt": "1=", "chosen": "1234567", "rejected": "2"}]
    run = train(scoring(tmp_path, "reward_model", rows, data={"max_length": 7}))
    assert [w["message"] for w in lines(run.folder / "warnings.jsonl")] == [
        "1 of 4 pairs do not fit into 7 tokens, or do not differ: left out"
    ]


@pytest.mark.parametrize(
    ("method", "rows", "more", "message"),
    [
        ("process_reward_model", preferred(12), {}, "process_reward_model needs solut"),
        ("process_reward_model", [{**STEPS[0], "labels": [True]}], {}, "row 0: 2 steps in 'completions' but 1 labels"),
        ("reward_model", STEPS, {}, "are stepwise supervision data, which process_reward_model learns from"),
        ("reward_model", without("chosen_reward"), {"options": {"margin_from": "rewards"}}, "requires the columns"),
        ("reward_model", preferred(12), {"options": {"margin_from": "gap"}}, "margin_from: Input should be 'column'"),
        ("process_reward_model", STEPS, {"options": {"separator": ""}}, "separator: String should have at least 1"),
    ],
)  # fmt: skip
def test_what_a_method_cannot_use_is_told_before_a_run_leaves_a_trace(method, rows, more, message, tmp_path):
    with pytest.raises(ValueError) as told:
        train(scoring(tmp_path, method, rows, **more))
    assert message in str(told.value) and "\n" not in str(told.value)
    assert not (tmp_path / "run").exists()


ITEM = """
schema: grape-rubric/1
categories:
  sums:
    items:
      - {id: even, weight: 1, check: {type: regex, pattern: "[02468]"}}
      - {id: liked, weight: 2, reward_model: {model: MODEL, confidence: certainty}}
"""


def test_runs_are_scored_by_a_reward_model_and_by_an_item(tmp_path):
    """Before the run a missing model is told; after, each response has the model's own number."""
    model = str(train(scoring(tmp_path, "reward_model", output=str(tmp_path / "rm"))).model)
    by_model = {**settings(tmp_path, "grpo"), "reward": {"model": model}, "output": str(tmp_path / "grpo")}
    run = train(by_model)
    told = lines(run.folder / "rollouts" / "step-000001.jsonl")
    assert len({line["reward"] for line in told}) > 1
    assert all(line["reward"] == line["verdicts"][0]["score"] for line in told)
    (tmp_path / "rubric.yaml").write_text(ITEM.replace("MODEL", model))
    by_item = {**settings(tmp_path, "grape"), "output": str(tmp_path / "grape")}
    (tmp_path / "rubric.yaml").write_text(ITEM.replace("MODEL", model))
    run = train(by_item)
    for line in lines(run.folder / "rollouts" / "step-000002.jsonl"):
        _, liked = line["verdicts"]
        assert 0 < liked["score"] < 1 and liked["confidence"] == pytest.approx(abs(2 * liked["score"] - 1))
        assert liked["item"] == "liked" and liked["provenance"] == model
    for wrong, message in (
        ({"reward": {"model": str(tmp_path / "gone")}}, "gone': cannot be loaded from the Hub"),
        ({"reward": {"model": model, "aggregate": "min"}}, "aggregate is min, but the model scores whole responses"),
        (
            {"reward": {"rubric": str(tmp_path / "rubric.yaml"), "aggregate": "min"}},
            "aggregate applies to the steps of a",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            train({**by_model, **wrong, "output": str(tmp_path / "none")})
        assert not (tmp_path / "none").exists()


def test_the_demo_takes_a_reward_model_in_the_place_of_its_rubric():
    given = {"reward": {"model": "runs/demo/reward_model/checkpoints/last"}}
    config = resolve_config("grpo", "demo", given)
    assert config.reward.model == given["reward"]["model"] and config.reward.rubric is None
    assert resolve_config("grpo", "demo", {"reward": {"function": "f.py:f"}}).reward.rubric is None
