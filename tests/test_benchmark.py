"""The benchmark of the methods: its runs, its data, and the tables of its results."""

import json
import math

import pytest

import methods
import offline
import online
import tables
from grape_rl.algorithms import ALGORITHMS, FAMILIES
from grape_rl.cli.train import demo_config
from grape_rl.config.files import from_file
from grape_rl.sources.demonstrations import Demonstrations
from grape_rl.sources.preferences import Preferences
from grape_rl.sources.responses import Responses
from grape_rl.validation import load_config
from result_file import append_record, read_records


def solved(question, right, wrong):
    """A question with the solutions of four models: the correct ones first, then the wrong ones."""
    solutions = [{"is_correct": True, "solution": text} for text in right]
    solutions += [{"is_correct": False, "solution": text} for text in wrong]
    return {"question": question, "ground_truth": "A: 4"} | dict(zip(offline.MODELS, solutions, strict=True))


QUESTIONS = [
    solved(f"What is {n} + 2?", [f"{n} + 2 = {n + 2}\nA: {n + 2}"] * 2, [f"It is\nA: {n + 7}", f"A: {n}"])
    for n in range(5)
]


def record(method, seed, rate, reward, tokens=30_000, **more):
    """A record of ``online`` with two steps."""
    held_out = {"reward": 0.4, "correct": 0.3}
    told = {
        "method": method,
        "seed": seed,
        "set": {"optimizer": {"learning_rate": rate}},
        "curve": {"reward": [0.5, reward], "tokens": [tokens, tokens]},
        "held_out": {"before": held_out, "after": {"reward": reward, "correct": reward / 2}},
        "end": {"entropy": 0.25, "kl": 0.125},
        "seconds": 12.0,
        "where": {"date": "1 May", "machine": "M", "cores": 2, "threads": 1, "torch": "2", "python": "3"},
    }
    return told | more


def test_sampling_methods_are_all_methods_that_sample():
    found = online.sampling_methods()
    for name, row in ALGORITHMS.items():
        if isinstance(row.source, Responses):
            assert name in found
        if isinstance(row.source, Demonstrations | Preferences):
            assert name not in found
    assert set(offline.pair_methods()) == {n for n, row in ALGORITHMS.items() if isinstance(row.source, Preferences)}


def test_the_grid_is_over_settings_that_the_method_has():
    assert [each["optimizer"]["learning_rate"] for each in online.grid(ALGORITHMS["grpo"])] == list(online.RATES)
    assert [each["options"]["delta"] for each in online.grid(ALGORITHMS["trpo"])] == list(online.DELTAS)


@pytest.mark.parametrize("name", online.sampling_methods())
def test_all_methods_share_the_budget_and_keep_their_own_options(name, tmp_path):
    demo = load_config(from_file(demo_config(name), name))
    for given in online.grid(ALGORITHMS[name]):
        config = online.settings(name, 3, given, tmp_path / "model", tmp_path / "run")
        drawn = (config.steps, config.prompts_per_step, config.group_size, config.sampling.max_tokens)
        assert drawn == (online.STEPS, online.PROMPTS, online.GROUP, 40)
        assert config.seed == 3 and config.model.name == str(tmp_path / "model")
        assert config.optimizer.schedule == "constant"
        assert config.options == demo.options | given.get("options", {})
        rate = given.get("optimizer", demo.optimizer.model_dump())["learning_rate"]
        assert config.optimizer.learning_rate == rate


def test_the_best_of_a_grid_is_by_the_last_quarter_and_failures_rank_last():
    rising = {"curve": {"reward": [0.0] * 6 + [0.4, 0.6]}}
    falling = {"curve": {"reward": [0.9] * 6 + [0.1, None]}}
    assert online.last_reward(rising) == pytest.approx(0.5)
    assert online.last_reward(falling) == pytest.approx(0.1), "the last of the seven rewards that are not None"
    assert online.best([{"failed": "no"}, falling | {"name": 1}, {"failed": "no"}])["name"] == 1


def test_a_run_from_start_to_report(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(online, "RATES", (1e-3,))
    arguments = ["--small", "--seeds", "0", "--folder", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    methods.main(["online", "--methods", "rloo", *arguments])
    (result,) = read_records(tmp_path / "results" / "online.jsonl")
    assert result["method"] == "rloo" and result["set"] == {"optimizer": {"learning_rate": 1e-3}}
    assert len(result["curve"]["reward"]) == 1 and result["curve"]["tokens"][0] > 0
    assert result["held_out"]["before"].keys() == result["held_out"]["after"].keys() >= {"reward", "correct", "length"}
    assert result["end"]["entropy"] > 0 and result["end"]["kl"] > 0, "one step has moved the policy"
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["start-0"], "the run's own folder is gone"

    methods.main(["online", "--methods", "rloo", *arguments])
    assert len(read_records(tmp_path / "results" / "online.jsonl")) == 1, "recorded runs are skipped"

    page = tmp_path / "page.md"
    page.write_text(
        "# Page\n<!-- online -->\nold\n<!-- end of online -->\n<!-- grid -->\n<!-- end of grid -->\nthe end\n"
    )
    pytest.importorskip("matplotlib", reason="the picture needs matplotlib: pip install -e '.[bench]'")
    methods.report(tmp_path / "results", page)
    assert "| `rloo` | 1e-3 | " in page.read_text() and "old" not in page.read_text()
    assert page.read_text().endswith("<!-- end of grid -->\nthe end\n")
    assert "| method | 1e-3 |" in page.read_text()
    assert (tmp_path / "methods.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_on_pairs(tmp_path):
    data = tmp_path / "solutions.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    arguments = ["--small", "--seeds", "0", "--folder", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    methods.main(["offline", "--data", str(data), "--methods", "dpo", *arguments])
    (result,) = read_records(tmp_path / "results" / "offline.jsonl")
    held_out = result["held_out"]
    assert held_out["pairs"] == 4, "two questions, each with a right solution over two wrong ones"
    assert 0 <= held_out["accuracy"] <= 1 and 0 <= held_out["likelier"] <= 1
    assert held_out["chosen"] != 0 and held_out["rejected"] != 0, "one step has moved the policy"
    assert result["baselines"] == {"shorter": 0.0, "better_model": 0.0}
    text = tables.offline_table([result])
    assert "| `dpo` | " in text and "| *shorter* | 0.000 | " in text and "4 held-out pairs" in text


def test_pairs_are_all_correct_with_all_wrong_solutions_without_duplicates():
    row = solved("Why? ", ["a ", "b"], ["c", "c"])
    made = offline.preference_rows([row])
    assert [(each["chosen"], each["rejected"]) for each in made] == [("a", "c"), ("b", "c")]
    assert made[0]["prompt"] == "Why?\n" and (made[0]["chosen_reward"], made[0]["rejected_reward"]) == (1.0, 0.0)
    assert made[0]["models"] == ["6b_finetuning", "175b_verification"]
    assert not offline.preference_rows([solved("Why?", ["a", "b", "c", "d"], [])])
    assert not offline.preference_rows([solved("Why?", ["same"], ["same", "same ", "same"])]), "they do not differ"


def test_held_out_questions_are_not_trained_on():
    rows = [*QUESTIONS, solved("All right?", list("abcd"), [])]
    train, test = offline.split(rows, 2)
    assert len(test) == 2 and len(train) == 4
    assert {row["question"] for row in train}.isdisjoint(row["question"] for row in test)
    assert offline.split(rows, 2) == (train, test)
    with pytest.raises(ValueError, match="5 questions have a correct and a wrong solution; more than 5 are required"):
        offline.split(rows, 5)


def test_rules_without_a_policy_count_a_tie_half():
    def row(chosen, rejected, of_chosen, of_rejected):
        return {
            "chosen": chosen,
            "rejected": rejected,
            "models": [offline.MODELS[of_chosen], offline.MODELS[of_rejected]],
        }

    rows = [row("a", "bb", 3, 0), row("aa", "bb", 3, 1), row("aaa", "bb", 0, 2), row("a", "bbb", 1, 1)]
    assert offline.baselines(rows) == {"shorter": (1 + 0.5 + 0 + 1) / 4, "better_model": (1 + 1 + 0 + 0.5) / 4}


def test_a_file_of_results_survives_a_kill(tmp_path):
    path = tmp_path / "results" / "online.jsonl"
    assert read_records(path) == []
    append_record(path, {"a": 1.23456789, "b": math.nan})
    with path.open("a") as file:
        file.write('{"a": 2, "cut o')
    assert read_records(path) == [{"a": 1.2346, "b": None}]
    append_record(path, {"a": 3})
    assert read_records(path) == [{"a": 1.2346, "b": None}, {"a": 3}]
    path.write_text("broken\n{}\n")
    with pytest.raises(ValueError, match="line 1: not JSON"):
        read_records(path)


def test_a_method_is_shown_with_the_best_settings_of_its_first_seed():
    found = [
        record("grpo", 0, 1e-4, 0.6),
        record("grpo", 0, 3e-4, 0.8),
        record("grpo", 0, 1e-3, 0.7),
        record("grpo", 1, 3e-4, 0.6),
        record("grpo", 1, 3e-4, 0.1),  # made once more
        record("rloo", 0, 1e-4, 0.5),
        record("rloo", 0, 3e-4, 0.6),
        record("rloo", 0, 1e-3, 0.9),
        record("rloo", 1, 1e-3, 0.9, tokens=10_000),
        {"method": "rloo", "seed": 2, "set": {"optimizer": {"learning_rate": 1e-3}}, "failed": "it burst"}
        | {"where": record("", 0, 0, 0)["where"]},
    ]
    grpo, rloo = tables.by_method(found)
    assert [r["seed"] for r in grpo.records] == [0, 1] and not grpo.edge
    assert [r["seed"] for r in rloo.records] == [0, 1] and rloo.edge and rloo.failed == "seed 2: it burst"
    lines = tables.online_table(found).splitlines()
    assert lines[2].startswith("| *start (SFT)* |  | 0.500 |  | 0.400 | 0.300 |")
    assert lines[3].startswith("| `rloo` | 1e-3* | 0.700† | 0.500 – 0.900 | 0.900 | 0.450 | 0.125 | 0.250 | 40k | 12 |")
    assert lines[4].startswith("| `grpo` | 3e-4 | 0.500 |")
    assert "`rloo` failed: seed 2: it burst" in lines
    assert tables.grid_table(found).splitlines() == [
        "| method | 1e-4 | 3e-4 | 1e-3 |",
        "| --- | ---: | ---: | ---: |",
        "| `grpo` | 0.600 | 0.800 | 0.700 |",
        "| `rloo` | 0.500 | 0.600 | 0.900 |",
    ]
    assert "Measured: 1 May, 1 thread of 2 cores (M), torch 2, Python 3." in lines


def test_the_reward_at_a_number_of_tokens_is_over_the_steps_before_it():
    told = {"curve": {"tokens": [10.0] * 10, "reward": [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, None, 7.0, 8.0, 9.0]}}
    assert tables.reward_at(told, 40) == (2.0 + 3.0) / 2, "the steps that end at 30 and 40"
    assert tables.reward_at(told, 80) == (5.0 + 7.0) / 2, "at 60, 70 and 80; that at 70 has no reward"
    assert tables.reward_at(told, 1000) == (7.0 + 8.0 + 9.0) / 3, "it ends at 100: those at 80, 90 and 100"


def test_the_error_of_a_difference_is_the_interaction_of_methods_and_seeds():
    def of(*rewards):
        records = tuple({"seed": seed, "reward": reward} for seed, reward in enumerate(rewards))
        return tables.MethodRuns("m", records, False)

    def reward(told):
        return told["reward"]

    assert tables.difference_error([of(1.0, 2.0, 3.0), of(2.0, 3.0, 4.0)], reward) == pytest.approx(0.0, abs=1e-12)
    # Differences 0, 2, 1 between the two: their variance is 1, and that of the mean of three is 1/3.
    assert tables.difference_error([of(1.0, 2.0, 3.0), of(1.0, 4.0, 4.0)], reward) == pytest.approx(math.sqrt(1 / 3))
    assert math.isnan(tables.difference_error([of(1.0, 2.0)], reward))


def test_text_is_inserted_between_its_comments():
    page = "a\n<!-- online -->\nold\n<!-- end of online -->\nb\n"
    assert tables.inserted(page, "online", "new \\1\n") == page.replace("old", "new \\1")
    with pytest.raises(ValueError, match="lacks the comments <!-- offline -->"):
        tables.inserted(page, "offline", "new")


def test_a_panel_has_no_more_curves_than_colors():
    picture = pytest.importorskip("learning_curves", reason="the picture needs matplotlib: pip install -e '.[bench]'")
    shown = picture.panels(online.sampling_methods())
    assert [name for _, members in shown for name in members] == [
        row.name for rows in FAMILIES.values() for row in rows if row.name in online.sampling_methods()
    ]
    assert all(0 < len(members) <= len(picture.COLORS) for _, members in shown)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["onlin"], "name one of online, offline and report"),
        (["online", "--methods", "grpoo"], "unknown method 'grpoo'; did you mean 'grpo'?"),
        (["offline"], "offline needs --data FILE"),
        (["offline", "--data", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["online", "--small", "1"], "name one of online"),
    ],
)
def test_an_invalid_command_raises(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(online, "initial_model", lambda *_: None)
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        methods.main(arguments)


def test_the_effect_of_a_seed_is_subtracted_from_its_curves():
    picture = pytest.importorskip("learning_curves", reason="the picture needs matplotlib: pip install -e '.[bench]'")

    def of(name, *rewards):
        tokens = [2_000.0, 20_000.0, 18_000.0]
        records = [{"seed": s, "curve": {"tokens": tokens, "reward": [reward] * 3}} for s, reward in enumerate(rewards)]
        return tables.MethodRuns(name, tuple(records), False)

    found = picture.curves([of("a", 0.1, 0.5), of("b", 0.3, 0.7), of("c", 0.6)])
    assert found["a"][:, 0].tolist() == pytest.approx([0.3, 0.3]), "its mean, on both seeds"
    assert found["b"][:, 0].tolist() == pytest.approx([0.5, 0.5])
    assert found["c"][:, 0].tolist() == pytest.approx([0.8]), "the effect of its one seed is 0.2 below the other's"
    assert picture.equal_curves(["a", "b", "d"], found | {"d": found["a"]}) == [["a", "d"], ["b"]]
