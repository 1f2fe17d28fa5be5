"""The command line: what it prints, where complaints go, its exit codes, and that help waits for nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import yaml

from grape_rl import ALGORITHMS
from grape_rl.cli import COMMANDS, demo, main
from grape_rl.cli.arguments import parsed_arguments
from grape_rl.cli.results import print_held_out
from grape_rl.cli.settings import text_settings
from grape_rl.cli.train import demo_config
from grape_rl.config.config import Config
from grape_rl.config.files import merge
from grape_rl.reward.scores import ItemSummary
from grape_rl.rollout.evaluation import HeldOut
from grape_rl.sources.labels import Labels
from grape_rl.validation import load_config
from small_runs import RUBRIC, lines, settings, sums, written

DEMO_RUBRIC = str(demo_config("grape").with_name("rubric.yaml"))


@pytest.fixture
def grape(capsys):
    """Runs a command line: its exit code, what it said and its complaint."""

    def run(*arguments):
        capsys.readouterr()
        code = main([str(a) for a in arguments])
        said, complaint = capsys.readouterr()
        return code, said, complaint

    return run


def bare(*arguments):
    """The same in a process of its own, where nothing is imported yet."""
    return subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, timeout=60)


LOADED = """
import sys
from grape_rl.cli import main
code = main(sys.argv[1:])
heavy = [name for name in ("torch", "transformers", "pydantic", "numpy", "yaml", "rich") if name in sys.modules]
print("loaded:", *heavy)
sys.exit(code)
"""


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), ([], 2), (["demoo"], 2)])
def test_help_waits_for_nothing_heavy(arguments, code):
    done = bare("-c", LOADED, *arguments)
    assert done.returncode == code, done.stderr
    assert done.stdout.splitlines()[-1].strip() == "loaded:"
    if arguments != ["demoo"]:
        assert all(f"  {name}" in done.stdout for name in COMMANDS)


def test_the_command_from_outside():
    command = Path(sys.executable).with_name("grape")
    start = (
        [str(command)] if command.exists() else [sys.executable, "-c", "from grape_rl.cli import main; exit(main())"]
    )
    done = subprocess.run([*start, "trian"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: unknown command 'trian'; did you mean 'train'?\n"


def test_the_version(grape):
    code, said, _ = grape("--version")
    assert code == 0 and said[0].isdigit()


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_command_has_help(grape, name, flag):
    code, said, complaint = grape(name, flag)
    assert (code, complaint) == (0, "")
    assert said.startswith(f"usage: grape {name}")
    if name not in ("demo", "algorithms"):  # those need nothing
        assert grape(name)[1] == said


def test_help_of_train_names_every_setting(grape):
    _, said, _ = grape("train", "--help")
    for setting in ("--steps (100)", "--optimizer.learning_rate (1e-06)", "--model.scratch.hidden (128)", "--seed (0)"):
        assert setting in said
    top = {name for name, field in Config.model_fields.items() if f"--{name}" in said}
    assert top == Config.model_fields.keys() - {"method"}, "the method is the word before the settings"


CALIBRATE = ["calibrate", "--rubric", "r", "--data", "d.jsonl", "--critics", "c"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["zzz"], "unknown command 'zzz'; commands: demo, train, algorithms, explain, lint, convert"),
        (["algorithms", "grpo"], "grape algorithms takes no METHOD, got 'grpo'; try grape explain grpo"),
        (["algorithms", "--all"], "unknown flag '--all'; known: markdown"),
        (["explain", "grpo", "--all"], "unknown flag '--all'; known: none"),
        (["explain", "grppo"], "unknown method 'grppo'; did you mean 'grpo'?"),
        (["explain", "grpo", "sft"], "grape explain takes one METHOD, got grpo, sft"),
        (["lint", "--dta", "x", "r.yaml"], "unknown flag '--dta'; did you mean 'data'?"),
        (["lint", "a", "b"], "grape lint needs one rubric file, not ['a', 'b']"),
        (["lint", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
        (["score", "--rubric", "r.yaml"], "grape score needs --rubric FILE and --data FILE"),
        (["score", "--rubric"], "--rubric needs a value"),
        (["score", "--rubric", "r", "--data", "d", "--table", "t.txt"], "--table t.txt: should end in .json or .csv"),
        (
            ["score", "--rubric", "r", "--data", "d", "--plot", "p.png"],
            "--plot needs human labels: name their",
        ),
        (["score", "--rubric", "r", "--data", "d", "--output", "d"], "--output d: is the data itself"),
        (["score", "--rubric", "r", "--data", "d", "--failure_limit", "2"], "--failure_limit 2: should be a share"),
        (["calibrate", "--rubric", "r"], "grape calibrate needs --rubric, --data, --critics and --output"),
        ([*CALIBRATE, "--output", "d.jsonl"], "--output d.jsonl: should be a .json file, and not the data"),
        ([*CALIBRATE, "--output", "o.json", "--method", "x"], "--method x: should be isotonic or platt"),
        ([*CALIBRATE, "--output", "o.json", "--fewest", "1"], "--fewest 1: should be an integer of at least 2"),
        (["train", "grop"], "unknown method 'grop'; did you mean 'grpo'?"),
        (["train", "--steps", "2"], "grape train takes one METHOD, got none; see grape algorithms"),
        (["train", "sft", "--config", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
        (["train", "sft", "--config", "demo", "--stepz", "2"], "unknown key 'stepz'; did you mean 'steps'?"),
        (["train", "sft", "--config", "demo", "--dryrun", "--steps", "2"], "--dryrun needs a value"),
        (
            ["train", "sft", "--data.source", "x", "--data.source.y", "z"],
            "--data.source.y: source already has a value of its own",
        ),
        (["train", "sft"], "data: set exactly one of source"),
        (["demo", "3"], "grape demo takes no words, got '3'"),
        (["demo", "--seed", "a,b"], "--seed a,b: should be whole numbers"),
        (["demo", "--sede", "1"], "unknown flag '--sede'; did you mean 'seed'?"),
    ],
)
def test_bad_command_lines(grape, arguments, complaint):
    code, said, told = grape(*arguments)
    assert (code, said) == (2, "")
    assert told.startswith("error: ") and complaint in told
    assert told.count("\n") == 1


def test_a_traceback_for_who_asks_for_it(monkeypatch):
    monkeypatch.setenv("GRAPE_TRACEBACK", "1")
    with pytest.raises(ValueError, match="unknown method"):
        main(["explain", "nothing"])


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (RuntimeError("too many verdicts are missing"), 1, "error: too many verdicts are missing\n"),
        (PermissionError(13, "Permission denied", "/x"), 1, "error: [Errno 13] Permission denied: '/x'\n"),
        (ValueError("no"), 2, "error: no\n"),
        (KeyboardInterrupt(), 130, "stopped\n"),
        (BrokenPipeError(), 1, ""),
    ],
)
def test_exit_codes(grape, monkeypatch, error, code, told):
    def fails(arguments):
        raise error

    monkeypatch.setattr("grape_rl.cli.explain.main", fails)
    assert grape("explain", "grpo") == (code, "", told)


def test_lint_of_the_demo_s_rubric(grape, tmp_path):
    code, said, _ = grape("lint", DEMO_RUBRIC)
    assert code == 0 and said.endswith("no problems found\n")
    assert all(word in said for word in ("arithmetic", "spelling", "ordering", "correct", "brevity"))


def test_lint_counts_the_rows_of_each_category(grape, tmp_path):
    (tmp_path / "r.yaml").write_text(RUBRIC)
    code, said, _ = grape("lint", tmp_path / "r.yaml", "--data", written(tmp_path / "d.jsonl", sums(7)))
    assert code == 0
    assert [line.split()[-1] for line in said.splitlines() if line.startswith("sums")] == ["7", "7"]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("weight", "wieght"), "r.yaml: categories.sums.items[even]: unknown key 'wieght'; did you mean 'weight'?"),
        (("type: regex", "type: regexp"), "unknown type 'regexp'; did you mean 'regex'?"),
        (("[02468]", "[02468"), "bad pattern '[02468'"),
        (("id: brief", "id: even"), "duplicate item 'even'"),
        (("weight: 3", "weight: 0"), "weight 0 has no effect"),
        (("grape-rubric/1", "grape-rubric/2"), "schema: Input should be 'grape-rubric/1'"),
    ],
)
def test_lint_of_broken_rubrics(grape, tmp_path, change, complaint):
    assert change[0] in RUBRIC
    (tmp_path / "r.yaml").write_text(RUBRIC.replace(*change))
    code, said, told = grape("lint", tmp_path / "r.yaml")
    assert (code, said) == (2, "")
    assert complaint in told and told.count("\n") == 1


def test_lint_of_a_category_that_no_row_has(grape, tmp_path):
    (tmp_path / "r.yaml").write_text(RUBRIC + "    when: {kind: sum}\n  rest:\n    when: {kind: other}\n" + "    items: [{id: a, check: {type: length, max_tokens: 3}}]\n")  # fmt: skip  # noqa: E501
    data = written(tmp_path / "d.jsonl", [{"prompt": "p", "kind": "sum"}])
    code, said, told = grape("lint", tmp_path / "r.yaml", "--data", data)
    assert code == 1 and "category 'rest': never matches: 0 of 1 rows" in said and "1 problem found" in told


def test_score(grape, tmp_path):
    (tmp_path / "r.yaml").write_text(RUBRIC)
    texts = ["2", "13", "1 2 3 4 5 6", "none of it is even or brief"]
    data = written(tmp_path / "d.jsonl", [{"q": f"p{i}", "a": text} for i, text in enumerate(texts)])
    given = ("score", "--rubric", tmp_path / "r.yaml", "--data", data, "--response", "a", "--prompt=q")
    code, said, _ = grape(*given, "--output", tmp_path / "out.jsonl")
    assert code == 0
    # even: 1 0 1 0 of weight 3; brief (up to 4 words): 1 1 0 0 of weight 1
    rewards = [1.0, 0.25, 0.75, 0.0]
    assert f"mean reward {sum(rewards) / 4:.3f}" in said
    rows = [line.split() for line in said.splitlines() if line.startswith("sums")]
    assert rows == [["sums", item, "4", "0.500", "-", "-", "1.00", "±", "0.00", "-", "-"] for item in ("even", "brief")]
    assert "no prompt has them" in said and "no flags: they need 10 graded responses or more" in said
    records = lines(tmp_path / "out.jsonl")
    assert [record["reward"] for record in records] == pytest.approx(rewards)
    assert [record["response"] for record in records] == texts
    assert records[0]["verdicts"][0]["item"] == "even"

    code, _, told = grape("score", "--rubric", tmp_path / "r.yaml", "--data", data)
    assert code == 2 and "row 0 has no column 'response'; it has 'q', 'a'" in told
    code, _, told = grape(*given, "--output", tmp_path / "no" / "folder.jsonl")
    assert code == 2 and "there is no folder" in told and told.count("\n") == 1  # before anything is graded


def test_score_counts_what_could_not_be_graded(grape, tmp_path):
    (tmp_path / "r.yaml").write_text(
        "schema: grape-rubric/1\ncategories:\n  all:\n    items:\n"
        "      - {id: right, check: {type: numeric, gold: '${row.gold}'}}\n"
    )
    rows = [{"prompt": "p", "response": "1", "gold": gold} for gold in ("1", "one", "2", "two")]
    given = ("score", "--rubric", tmp_path / "r.yaml", "--data", written(tmp_path / "d.jsonl", rows))
    code, said, told = grape(*given)
    (row,) = [line.split() for line in said.splitlines() if line.startswith("all ")]
    assert row[2:4] == ["2", "0.500"] and row[-2:] == ["infrastructure", "2"]
    assert code == 1 and told.startswith(
        "error: 2 of 4 verdicts (50%) are missing, above the limit of 10%; 2 of them of"
    )
    assert grape(*given, "--failure_limit", "0.5") == (0, said, "")


def test_a_dry_run_prints_settings_that_are_a_config_and_leaves_nothing(grape, tmp_path):
    given = ("--steps", "7", "--output", tmp_path / "run", "--options.epochs=2", "--options.minibatches", "3")
    code, said, _ = grape("train", "grpo", "--config", "demo", "--dry-run", *given)
    assert code == 0
    text, summary, estimate = said.rstrip().rsplit("\n", 2)
    config = load_config(yaml.safe_load(text))
    assert estimate == f"estimate: none, since it needs the model's files, and {config.model.name} has none here"
    assert (config.method, config.steps, config.options["epochs"]) == ("grpo", 7, 2)
    assert summary.startswith(f"grpo: 7 steps of {config.prompts_per_step} prompts x {config.group_size} responses = ")
    assert "; 6 optimizer steps each, in micro-batches of up to" in summary
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name", [name for name, row in ALGORITHMS.items() if row.reduction is None and row.online_of in ("", "dpo")]
)
def test_a_dry_run_of_a_method_of_pairs_says_what_a_step_is(grape, name):
    code, said, _ = grape("train", name, "--config", "demo", "--dry-run", "--prompts_per_step", "5")
    kind = "solutions" if name == "process_reward_model" else "pairs"
    kind = "labeled responses" if isinstance(ALGORITHMS[name].source, Labels) else kind
    drawn = "5 prompts x 8 responses = 40 responses, up to 1600 tokens"
    step = drawn if ALGORITHMS[name].online_of else f"5 {kind}"
    assert code == 0 and f" steps of {step}; 1 optimizer step each, in micro-batches of up to" in said


def small_yaml(folder, method, **more):
    """A configuration file for a small run."""
    wanted = merge(settings(folder, method), more)
    del wanted["method"]
    (folder / "config.yaml").write_text(yaml.safe_dump(wanted))
    return folder / "config.yaml"


def test_training_from_the_command_line(grape, tmp_path):
    config = small_yaml(tmp_path, "sft", data={"held_out_rows": 3})
    again = ("train", "sft", "--config", config, "--optimizer.learning_rate", "1e-3")
    code, said, told = grape(*again, "--steps", "1", "--seed=5")
    assert code == 0, told
    assert said.startswith("sft: 1 step of 3 demonstrations; 1 optimizer step each, in micro-batches of up to")
    assert f"run: {tmp_path / 'run'}\nmodel: {tmp_path / 'run' / 'checkpoints' / 'last'}\n" in said
    assert "held-out: mean scores of 3 responses" in said and "step 0" in said and "change" in said
    settled = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (settled["seed"], settled["optimizer"]["learning_rate"]) == (5, 1e-3)

    code, _, told = grape(*again, "--seed", "5")
    assert code == 2 and "contains another run; name a new folder with --output, or --resume that run" in told
    code, _, told = grape(*again, "--seed", "6", "--resume")
    assert code == 2 and "was run with another seed;" in told
    code, said, told = grape(*again, "--seed", "5", "--steps", "3", "--resume")
    assert code == 0, told
    assert [line["step"] for line in lines(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3]
    assert "step 0" in said and "step 1" in said and "step 3" in said


def test_training_from_parquet(grape, tmp_path):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(sums(9)), tmp_path / "rows.parquet")
    config = small_yaml(tmp_path, "grape", data={"source": str(tmp_path / "rows.parquet")})
    code, said, told = grape("train", "grape", "--config", config)
    assert code == 0, told
    assert "grape: 2 steps of 3 prompts x 4 responses = 12 responses, up to 120 tokens" in said
    assert "grape  2/2  reward" in said


def test_a_run_that_has_to_stop(grape, tmp_path):
    (tmp_path / "rewards.py").write_text("def never(completions):\n    raise OSError('the judge is out')\n")
    config = small_yaml(tmp_path, "grpo", reward={"rubric": None, "function": f"{tmp_path}/rewards.py:never"})
    code, _, told = grape("train", "grpo", "--config", config)
    assert code == 1
    (last,) = [line for line in told.splitlines() if line.startswith("error: ")]
    assert "are missing" in last and "OSError: the judge is out" in last


def test_the_demo(grape, tmp_path, monkeypatch):
    """From the first step to the last, with everything as small as it gets."""
    tiny = {"steps": 2, "data": {"rows": 9, "held_out_rows": 6}, "evaluation": {"samples": 1}}
    scratch = {"scratch": {"hidden": 32, "layers": 2, "heads": 2}}
    sft = {**tiny, "model": scratch, "prompts_per_step": 4}
    monkeypatch.setattr(demo, "SMALL_SETTINGS", {"sft": sft, "grape": {**tiny, "prompts_per_step": 2, "group_size": 2}})
    code, said, told = grape("demo", "--small", "--seed", "1", "--output", tmp_path / "demo")
    assert code == 0, told
    assert "held-out accuracy" in said and "SFT" in said and "GRAPE" in said
    first, explain, compare = said.splitlines()[-3:]
    assert f"run: {tmp_path / 'demo'}\n\n{first}\n" in said and first.startswith("next, ")
    assert explain.split()[1:] == ["explain", "grape"]
    code, settings, complaint = grape(*compare.split()[1:], "--dry-run")
    assert (code, complaint) == (0, "") and f"name: {tmp_path / 'demo' / 'seed-1' / 'sft'}" in settings
    assert "estimate: none" not in settings, "the model that the command names exists"
    results = json.loads((tmp_path / "demo" / "seed-1" / "results.json").read_text())
    assert results["accuracy"].keys() == {"sft", "grape"}
    assert results["held_out"]["sft"]["responses"] == 6
    code, _, told = grape("demo", "--output", tmp_path / "demo")
    assert code == 2 and "already exists" in told


def test_held_out_results_of_several_steps_show_the_change(capsys):
    def at(mean, missing):
        return HeldOut(8, mean, 2.5, 0.0, (ItemSummary("sums", "right", 8 - missing, mean, {"timeout": missing}),))

    print_held_out({10: at(0.75, 1), 0: at(0.5, 0)}, {0: "before"})
    said = capsys.readouterr().out
    title, head = "held-out: mean scores of 8 responses, 1 missing", "category item before step 10 change"
    assert " ".join(said.split()).startswith(f"{title} {head}")
    assert ["sums", "right", "0.500", "0.750", "+0.250"] in [line.split() for line in said.splitlines()]
    print_held_out({})
    assert capsys.readouterr().out == ""
    words = HeldOut(8, 0.5, 2.5, 0.0, (ItemSummary("words", "kind", 8, 0.25, {}),))
    print_held_out({0: at(0.5, 0), 2: words})  # a critic that classifies may fail at one time and not at another
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["words", "kind", "-", "0.250", "-"] in lines and ["sums", "right", "0.500", "-", "-"] in lines


def test_arguments_are_words_flags_and_settings():
    given = [
        "w",
        "--resume",
        "--a.b",
        "1e-5",
        "--c",
        "[1, x]",
        "--d=",
        "--e-f",
        "no",
        "--config",
        "f.yaml",
        "--g",
        "-3",
    ]
    words, own, found = parsed_arguments(given, ["resume"], settings=True, known=["config"])
    assert words == ["w"]
    assert own == {"resume": True, "config": "f.yaml"}
    assert found == {"a": {"b": 1e-5}, "c": [1, "x"], "d": "", "e_f": "no", "g": -3}
    assert parsed_arguments(["--a", "x: ["], settings=True)[2] == {"a": "x: ["}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10),
        ("1:30", "1:30"),
        ("true", True),
        ("null", None),
        ("{a: 1}", {"a": 1}),
        ("# no comment", "# no comment"),
    ],
)
def test_a_value_is_what_it_looks_like(text, value):
    assert parsed_arguments(["--s", text], settings=True)[2] == {"s": value}
    assert parsed_arguments(["--s", text], settings=True, texts=["s"])[2] == {"s": text}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--resume=false"], "--resume takes no value"),
        (["--seed", "1", "--seed", "2"], "--seed is given twice"),
        (["--resume", "--resume"], "--resume is given twice"),
        (["--c", "[1, "], r"\[1, "),
    ],
)
def test_a_flag_that_says_nothing_clear_is_refused(arguments, complaint):
    with pytest.raises(ValueError, match=complaint):
        parsed_arguments(arguments, ["resume"], settings=True)


def test_text_settings_are_the_ones_whose_value_is_text():
    found = text_settings()
    assert {"data.system", "output", "model.name", "device"} <= found
    assert not {"steps", "data.rows", "sampling.temperature", "model.scratch", "data.tasks", "log_kl"} & found


def test_score_refuses_what_is_not_text_and_will_not_overwrite_its_data(grape, tmp_path):
    (tmp_path / "r.yaml").write_text(
        "schema: grape-rubric/1\ncategories: {a: {items: [{id: x, weight: 1, check: {type: regex, pattern: None}}]}}"
    )
    rows = tmp_path / "d.jsonl"
    rows.write_text('{"prompt": "p", "response": "None"}\n{"prompt": "p", "response": null}\n')
    code, _, complaint = grape("score", "--rubric", str(tmp_path / "r.yaml"), "--data", str(rows))
    assert code == 2 and "row 1: 'response' should be text but is None" in complaint
    rows.write_text('{"prompt": "p", "response": "None"}\n')
    before = rows.read_text()
    code, _, complaint = grape(
        "score", "--rubric", str(tmp_path / "r.yaml"), "--data", str(rows), "--output", str(rows)
    )
    assert code == 2 and "is the data itself" in complaint and rows.read_text() == before


def test_the_settings_in_the_help_are_those_there_are():
    from importlib.resources import files

    from grape_rl.cli.settings import settings_help

    kept = (files("grape_rl.cli") / "settings.txt").read_text(encoding="utf-8")
    assert kept == settings_help() + "\n", "python -m grape_rl.cli.settings > src/grape_rl/cli/settings.txt"
