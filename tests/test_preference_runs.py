"""Runs on pairs: data of one's own, before and after, killed and resumed, and what is refused before a run begins."""

import json

import pytest

from grape_rl import train
from grape_rl.cli.results import print_held_out
from grape_rl.config.files import merge
from grape_rl.sources.preferences import Preferences
from grape_rl.training import pairs as training_pairs
from grape_rl.validation import load_config
from small_runs import killed_and_resumed, lines, settings, sums, written


def preferred(count):
    """Sums whose right result is preferred to one that is 11 too large, with rewards; prompts of two lengths."""
    return [
        {
            "prompt": row["prompt"],
            "chosen": row["completion"],
            "rejected": str(int(row["completion"]) + 11),
            "chosen_reward": 1.0,
            "rejected_reward": 0.25,
        }
        for row in sums(count)
    ]


def pair_settings(folder, method, rows=None, **more):
    """A run of ``method`` on pairs, with nothing to grade responses by."""
    wanted = settings(folder, method)
    written(folder / "rows.jsonl", preferred(12) if rows is None else rows)
    return merge({**wanted, "reward": {}}, more)


@pytest.mark.parametrize("method", ["dpo", "simpo", "aot"])
def test_held_out_preferences_before_and_after(method, tmp_path, capsys):
    """Held out are rows that it trains on: twelve sums teach nothing of others, and before and after should differ."""
    data = {"held_out": str(tmp_path / "rows.jsonl"), "held_out_rows": 4}
    run = train(pair_settings(tmp_path, method, data=data, steps=12, optimizer={"learning_rate": 3e-3}))
    assert sorted(run.evaluations) == [0, 12]
    first, last = (
        {item.item: item for item in run.evaluations[step].items if item.category == "preferences"} for step in (0, 12)
    )
    assert all(item.graded == 4 for item in (first | last).values())
    if method != "simpo":  # whose implied reward is the policy's own log-probability
        assert (first["accuracy"].mean, first["margin"].mean) == (0.5, 0.0), "at the reference nothing is preferred"
    assert last["margin"].mean > first["margin"].mean + 0.5 and last["accuracy"].mean > 0.7
    assert run.evaluations[12].responses == 0
    told = json.loads((run.folder / "held_out.json").read_text())
    assert told["12"]["reward"] is None and told["12"]["length"] is None
    assert [item["item"] for item in told["12"]["items"]] == ["accuracy", "likelier", "margin"]
    losses = [line["loss"] for line in run.metrics]
    assert losses[-1] < losses[0]
    print_held_out(run.evaluations)
    said = capsys.readouterr().out
    assert "held-out: preferences" in said and "accuracy" in said and "reward" not in said


def test_the_reference_is_the_start_and_stays_it(tmp_path):
    """At the first step the margin is 0 to the bit; a run that goes on from a checkpoint compares with the start."""
    run = train(pair_settings(tmp_path, "dpo", steps=3))
    assert run.metrics[0]["margin"] == 0 and run.metrics[0]["accuracy"] == 0.5
    assert run.metrics[0]["loss"] == pytest.approx(0.6931472, abs=1e-6)
    assert run.metrics[2]["margin"] > 0


@pytest.mark.parametrize("method", ["dpo", "aot"])
def test_a_killed_run_goes_on_to_the_same_bits(method, tmp_path, monkeypatch):
    wanted = pair_settings(tmp_path, method, steps=4, checkpoint_every=2, data={"held_out_rows": 3})
    killed_and_resumed(wanted, tmp_path, monkeypatch)


def test_a_method_without_a_reference_runs_none(tmp_path, monkeypatch):
    def none(*_, **__):
        raise AssertionError("there is no reference to run")

    monkeypatch.setattr(training_pairs, "pair_logprobs", none)
    monkeypatch.setattr("grape_rl.sources.preferences.pair_logprobs", none)
    train(pair_settings(tmp_path, "simpo"))
    with pytest.raises(AssertionError, match="no reference to run"):
        train({**pair_settings(tmp_path, "dpo"), "output": str(tmp_path / "other")})


def test_columns_of_other_names(tmp_path):
    names = {"prompt": "q", "chosen": "good", "rejected": "bad", "chosen_reward": "a", "rejected_reward": "b"}
    rows = [{names[key]: value for key, value in row.items()} for row in preferred(12)]
    run = train(pair_settings(tmp_path, "odpo", rows, data=names))
    assert len(run.metrics) == 2


def test_pairs_that_are_cut_or_left_out_are_told(tmp_path):
    rows = [*preferred(3), {"prompt": "1=", "chosen": "1234567", "rejected": "2"}]
    rows.append({"prompt": "1+2+3+4=", "chosen": "1", "rejected": "2"})
    run = train(pair_settings(tmp_path, "dpo", rows, data={"max_length": 7}))
    assert [w["message"] for w in lines(run.folder / "warnings.jsonl")] == [
        "1 of 5 pairs are truncated to 7 tokens",
        "1 of 5 pairs are equal in 7 tokens: left out",
    ]


def without(*keys):
    return [{k: v for k, v in row.items() if k not in keys} for row in preferred(12)]


@pytest.mark.parametrize(
    ("method", "rows", "more", "message"),
    [
        ("dpo", sums(12), {}, "rows.jsonl: dpo needs pairs (prompt, chosen, rejected), but the "
         "columns prompt, completion are prompt-completion data, which sft and dft learn from"),
        ("dpo", [*preferred(2), *without("rejected")], {}, "row 2 has no column 'rejected': a preference needs"),
        ("sft", preferred(12), {}, "rows.jsonl: sft needs demonstrations (prompt and completion, or messages, or t"),
        ("rpo", without("chosen_reward"), {}, "data: rpo: pair 0 lacks chosen_reward or rejected_reward; both "
         "are required (rewards are read from the columns 'chosen_reward' and 'rejected_reward'; the columns are "
         "'prompt', 'chosen', 'rejected', 'rejected_reward')"),
        ("odpo", [*preferred(11), {**preferred(1)[0], "chosen_reward": 0.25}], {},
         "data: odpo: pair 11: chosen_reward 0.25 must be above rejected_reward 0.25"),
        ("odpo", [{**preferred(1)[0], "chosen_reward": "good"}], {}, "'chosen_reward' must be a finite number; got 'g"),
        ("dpo", preferred(12), {"data": {"max_length": 3}}, "none of the 12 pairs differs within the 3 tokens of max"),
        ("dpo", preferred(12), {"data": {"held_out_rows": 12}}, "all of its 12 rows are held out"),
        ("dpo", preferred(12), {"options": {"reduction": "token"}}, "options of dpo: unknown key 'reduction'"),
        ("f_dpo", preferred(12), {"options": {"divergence": "kl"}}, "options of f_dpo: divergence: Input should be"),
    ],
)  # fmt: skip
def test_what_a_method_cannot_use_is_told_before_a_run_leaves_a_trace(method, rows, more, message, tmp_path):
    wanted = pair_settings(tmp_path, method, rows, **more)
    with pytest.raises(ValueError) as told:
        train(wanted)
    assert message in str(told.value) and "\n" not in str(told.value)
    assert not (tmp_path / "run").exists()


def test_tasks_whose_teacher_has_nothing_worse_to_say(tmp_path):
    wanted = pair_settings(tmp_path, "dpo", data={"source": None, "tasks": {"chain_sum": {}}, "rows": 4})
    with pytest.raises(ValueError, match="right answers are rejected for their style, but styles has only one"):
        train(wanted)


@pytest.mark.parametrize("method", ["dpo", "aot"])
def test_training_in_bf16_follows_training_in_fp32(method, tmp_path):
    """Each forward pass has weights of its own step: copies kept from the first one would train nothing."""
    found = {}
    for precision in ("fp32", "bf16"):
        more = {"precision": precision, "output": str(tmp_path / precision), "data": {"held_out_rows": 2}}
        wanted = pair_settings(tmp_path, method, steps=15, optimizer={"learning_rate": 3e-3}, **more)
        run = train(wanted)
        found[precision] = [step["loss"] for step in run.metrics]
        assert run.evaluations[0].mean("margin") == 0, "the reference runs in the same precision"
    assert found["fp32"][-1] < 0.8 * found["fp32"][0]
    assert found["bf16"][-1] == pytest.approx(found["fp32"][-1], rel=0.2)


def said(role, text):
    return [{"role": role, "content": text}]


@pytest.mark.parametrize("kinds", [(), ("prompt",), ("chosen", "rejected"), ("prompt", "chosen", "rejected")])
def test_plain_text_becomes_messages_where_data_chat_says_so(kinds, tmp_path):
    """Whatever of it is messages already (``kinds``) stays, but for a plain prompt before whole conversations."""
    (row,) = preferred(1)
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    given = {**row, **{key: said(roles[key], row[key]) for key in kinds}}
    if kinds == ("chosen", "rejected"):
        given |= {key: said("user", row["prompt"]) + given[key] for key in kinds}
    wanted = pair_settings(tmp_path, "dpo", [given], data={"chat": True, "system": "Be brief."})
    ((found,), _) = Preferences().rows(load_config(wanted), {})
    assert found["prompt"] == said("system", "Be brief.") + said("user", row["prompt"])
    assert found["chosen"] == said("assistant", row["chosen"])
    assert found["rejected"] == said("assistant", row["rejected"])


def test_tasks_become_messages_where_data_chat_says_so(tmp_path):
    data = {"source": None, "tasks": {"chain_sum": {}}, "rows": 4, "teacher": {"wrong": 1.0}, "chat": True}
    found, _ = Preferences().rows(load_config(pair_settings(tmp_path, "dpo", data=data)), {})
    assert [found[0][key][0]["role"] for key in ("prompt", "chosen", "rejected")] == ["user", "assistant", "assistant"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (without("prompt"), "data.chat makes messages of plain text, so it needs a column 'prompt'; there is none"),
        ([{**preferred(1)[0], "prompt": " "}], "row 0: the prompt ('prompt') is empty"),
        ([{**preferred(1)[0], "chosen": " "}], "('chosen') is empty"),
        (without("chosen"), "row 0 has no column 'chosen': a preference needs"),
    ],
)
def test_what_data_chat_cannot_make_messages_of(rows, message, tmp_path):
    with pytest.raises(ValueError) as told:
        train(pair_settings(tmp_path, "dpo", rows, data={"chat": True}))
    assert message in str(told.value) and "\n" not in str(told.value)
