"""Runs on labels, and of methods that remember: before and after, killed and resumed, and what is refused."""

import pytest

from grape_rl import train
from grape_rl.cli.results import print_held_out
from grape_rl.config.files import merge
from small_runs import killed_and_resumed, lines, settings, sums, written


def labeled(count):
    """Sums, every other one with its right result, the others with one that is 11 too large."""
    return [
        {"prompt": row["prompt"], "completion": str(int(row["completion"]) + 11 * (i % 2)), "label": i % 2 == 0}
        for i, row in enumerate(sums(count))
    ]


def preferred(count):
    """The same as pairs."""
    return [
        {"prompt": row["prompt"], "chosen": row["completion"], "rejected": str(int(row["completion"]) + 11)}
        for row in sums(count)
    ]


def label_settings(folder, method, rows=None, **more):
    wanted = settings(folder, method)
    written(folder / "rows.jsonl", labeled(12) if rows is None else rows)
    return merge({**wanted, "reward": {}}, more)


@pytest.mark.parametrize("method", ["kto", "bco_unpaired", "apo_zero_unpaired"])
def test_held_out_labels_before_and_after(method, tmp_path, capsys):
    """Held out are rows that it trains on: twelve sums teach nothing of others, and before and after should differ."""
    data = {"held_out": str(tmp_path / "rows.jsonl"), "held_out_rows": 6}
    wanted = label_settings(tmp_path, method, data=data, steps=20, prompts_per_step=6, options={"beta": 0.5})
    run = train(wanted)
    first, last = ({item.item: item.mean for item in run.evaluations[step].items} for step in (0, 20))
    assert first == {"accuracy": 0.5, "margin": 0.0, "desirable_reward": 0.0, "undesirable_reward": 0.0}
    assert last["accuracy"] == 1 and last["margin"] > 1 and last["desirable_reward"] > last["undesirable_reward"]
    losses = [line["loss"] for line in run.metrics]
    assert losses[-1] < losses[0]
    print_held_out(run.evaluations)
    assert "held-out: labels" in capsys.readouterr().out
    assert not (run.folder / "warnings.jsonl").exists()


def test_pairs_are_taken_apart(tmp_path):
    data = {"held_out": str(tmp_path / "rows.jsonl"), "held_out_rows": 3}
    run = train(label_settings(tmp_path, "kto", preferred(12), data=data, steps=12, prompts_per_step=6))
    last = {item.item: item for item in run.evaluations[12].items}
    assert last["accuracy"].graded == 6, "a pair is two responses"
    assert last["margin"].mean > 0.5
    assert 0 < sum(line["desirable_share"] for line in run.metrics) < 12


@pytest.mark.parametrize("method", ["kto", "bco_unpaired", "tr_dpo"])
def test_a_killed_run_goes_on_to_the_same_bits(method, tmp_path, monkeypatch):
    """bco_unpaired remembers its mean gain, and tr_dpo where its reference has come to."""
    more = {"options": {"reference_every": 1, "reference_mix": 0.5}} if method == "tr_dpo" else {}
    rows = None if method in ("kto", "bco_unpaired") else preferred(12)
    wanted = label_settings(tmp_path, method, rows, steps=4, checkpoint_every=2, data={"held_out_rows": 3}, **more)
    killed_and_resumed(wanted, tmp_path, monkeypatch)


def test_a_moving_reference_draws_the_margin_back_and_the_held_out_one_stays_with_the_start(tmp_path):
    found = {}
    for every in (1, 512):
        more = {"options": {"reference_every": every, "reference_mix": 0.9}, "output": str(tmp_path / str(every))}
        data = {"held_out": str(tmp_path / "rows.jsonl"), "held_out_rows": 6}
        found[every] = train(label_settings(tmp_path, "tr_dpo", preferred(12), steps=8, data=data, **more))
    still, moving = ([line["margin"] for line in found[every].metrics] for every in (512, 1))
    assert still[0] == moving[0] == 0 and moving[-1] < still[-1] / 2
    assert found[1].evaluations[8].mean("margin") > 2 * moving[-1]


@pytest.mark.parametrize("method", ["tdpo1", "beta_dpo", "mixture"])
def test_pairs_are_learned(method, tmp_path):
    options = {"dpo": 0.0, "ipo": 0.5, "tdpo2": 0.5, "wpo": 0.5} if method == "mixture" else {}
    wanted = label_settings(tmp_path, method, preferred(12), steps=10, options=options, prompts_per_step=6)
    margins = [line["margin"] for line in train(wanted).metrics]
    assert margins[0] == 0 and margins[-1] > 0.5


def told(wanted, folder):
    with pytest.raises(ValueError) as error:
        train(wanted)
    assert not (folder / "run").exists() and "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("method", "rows", "more", "message"),
    [
        ("kto", sums(6), {}, "rows.jsonl: kto needs labeled responses (prom"),
        ("dpo", labeled(6), {}, "which kto, bco_unpaired and apo_zero_unpaired learn from"),
        ("kto", [*labeled(3), {"prompt": "1+1=", "completion": "2", "label": "good"}], {},
         "rows.jsonl: row 3: the label ('label') must be true or false; got 'good'"),
        ("kto", [*labeled(3), {"prompt": "1+1=", "completion": "2"}], {}, "row 3 has no column 'label', the label"),
        ("kto", [{"prompt": "1+1=", "completion": " ", "label": True}], {}, "('completion') is empty"),
        ("kto", labeled(6), {"data": {"max_length": 2}}, "none of the 6 rows has a response within the 2 tokens"),
        ("kto", labeled(6), {"options": {"reduction": "token"}}, "options of kto: unknown key 'reduction'"),
        ("mixture", preferred(6), {"options": {"dpo": 0.0}}, "mixture: every loss has coefficient 0, so there"),
        ("tdpo2", preferred(6), {"options": {"alpha": 0.5}}, "options of tdpo2: unknown key 'alpha'"),
    ],
)  # fmt: skip
def test_what_a_method_cannot_use_is_told_before_a_run_leaves_a_trace(method, rows, more, message, tmp_path):
    assert message in told(label_settings(tmp_path, method, rows, **more), tmp_path)


def test_labels_that_do_not_balance_are_told_with_what_would(tmp_path):
    rows = [row for i, row in enumerate(labeled(16)) if row["label"] or i % 4 == 1]
    warned = lambda folder: [w["message"] for w in lines(folder / "warnings.jsonl")]  # noqa: E731
    wanted = label_settings(tmp_path, "kto", rows, steps=1)
    assert warned(train(wanted).folder) == [
        "8 desirable responses of weight 1 and 4 undesirable ones of weight 1 have a balance of 2 to 1, but KTO's "
        "paper advises 1 to 4/3: set options.desirable_weight between 0.5 and 0.667"
    ]
    mended = {**wanted, "options": {"desirable_weight": 0.6}, "output": str(tmp_path / "mended")}
    assert warned(train(mended).folder) == []
    written(tmp_path / "rows.jsonl", [row for row in rows if row["label"]])
    alone = train({**wanted, "output": str(tmp_path / "alone")})
    assert warned(alone.folder) == ["all 8 responses are desirable: there is no undesirable response to compare with"]
    assert alone.metrics[0]["loss"] > 0


def test_responses_that_are_cut_or_left_out_are_told(tmp_path):
    rows = [*labeled(4), {"prompt": "1=", "completion": "1234567", "label": True}]
    rows.append({"prompt": "1+2+3+4=", "completion": "1", "label": False})
    run = train(label_settings(tmp_path, "kto", rows, data={"max_length": 7}))
    assert [w["message"] for w in lines(run.folder / "warnings.jsonl")][:2] == [
        "1 of 6 responses are truncated to 7 tokens",
        "1 of 6 prompts fill 7 tokens alone: left out",
    ]


def test_columns_of_other_names_and_messages(tmp_path):
    names = {"prompt": "q", "completion": "a", "label": "ok"}
    rows = [{names[key]: value for key, value in row.items()} for row in labeled(12)]
    assert len(train(label_settings(tmp_path, "kto", rows, data=names)).metrics) == 2


def test_training_in_bf16_follows_training_in_fp32(tmp_path):
    found = {}
    for method in ("kto", "tdpo1"):
        for precision in ("fp32", "bf16"):
            rows = None if method == "kto" else preferred(12)
            more = {"precision": precision, "output": str(tmp_path / (method + precision)), "options": {"beta": 0.5}}
            found[precision] = train(
                label_settings(tmp_path, method, rows, steps=12, prompts_per_step=6, **more)
            ).metrics
        # Both run in the same precision, beside other rows: sums of some tens of log-probs, each rounded to 3 digits.
        assert found["fp32"][0]["margin"] == pytest.approx(0, abs=1e-4)
        assert found["bf16"][0]["margin"] == pytest.approx(0, abs=0.1)
        assert found["bf16"][-1]["loss"] == pytest.approx(found["fp32"][-1]["loss"], rel=0.3)
