"""A method of the user's own, from a file or a module: trained, resumed, explained and refused."""

import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml

from grape_rl import train
from grape_rl.algorithms import method_named
from grape_rl.cli import main
from grape_rl.cli.explain import explanation
from grape_rl.cli.train import demo_config
from grape_rl.config.files import merge
from grape_rl.validation import load_config
from small_runs import killed_and_resumed, settings, weights, written

EXAMPLE = Path(__file__).parents[1] / "examples" / "own_method"
SAPO = f"{EXAMPLE / 'sapo.py'}:SAPO"

PAIRS = """
from grape_rl.methods import LossTerm, Method
from grape_rl.sources.preferences import Preferences
from grape_rl.training.pairs import pair_gradient


def gap(chosen_logp, rejected_logp):
    return rejected_logp - chosen_logp


GAP = Method(
    "gap", "The plain difference of log-probs.", "L = p_l − p_w", "", Preferences(), (LossTerm(gap),), None,
    update=pair_gradient, derivation="J = E[p_w − p_l], without a bound.",
)
"""


OWN_PARTS = """
from dataclasses import replace

from torch.nn.functional import logsigmoid

from grape_rl.algorithms import ALGORITHMS
from grape_rl.methods import LossTerm

SEEN = []


def likely(response_logp, reference_response_logp, desirable):
    return -logsigmoid((2.0 * desirable - 1) * (response_logp - reference_response_logp))


def near_reference(reward, behavior_logp, reference_logp, mask):
    SEEN.append(float((behavior_logp - reference_logp).masked_fill(~mask, 0).abs().sum()))
    return reward.float() - (behavior_logp - reference_logp).masked_fill(~mask, 0).sum(1)


def kl_off(reward, behavior_logp, reference_logp, mask, strength: float = 0.5):
    return -strength * (behavior_logp - reference_logp).masked_fill(~mask, 0)


def targeted(logp, advantage, kl_target: float = 1.0):
    return -kl_target * logp * advantage


KTO, GRPO, RLOO = (ALGORITHMS[name] for name in ("kto", "grpo", "rloo"))
LIKELY = replace(KTO, name="likely", terms=(LossTerm(likely),))
NEAR = replace(GRPO, name="near", source=replace(GRPO.source, advantage=near_reference))
OFF = replace(RLOO, name="off", source=replace(RLOO.source, token_reward=kl_off))
TARGETED = replace(GRPO, name="targeted", terms=(LossTerm(targeted),))
"""


@pytest.fixture
def grape(capsys):
    """Runs a command line: its exit code, output and error output."""

    def run(*arguments):
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


def test_training_by_a_method_from_a_file(grape, tmp_path, monkeypatch):
    shutil.copy(EXAMPLE / "sapo.py", tmp_path)
    config = settings(tmp_path, "grpo")
    del config["method"], config["output"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)
    command = ("train", "sapo.py:SAPO", "--config", "config.yaml", "--options.tau_negative", "2")
    code, output, errors = grape(*command)
    assert code == 0, errors
    assert output.startswith("sapo: 2 steps of 3 prompts x 4 responses = 12 responses")
    assert output.endswith("run: runs/sapo\nmodel: runs/sapo/checkpoints/last\n")
    saved = yaml.safe_load((tmp_path / "runs" / "sapo" / "config.yaml").read_text())
    assert saved["method"] == "sapo.py:SAPO"
    assert (saved["options"]["tau_negative"], saved["options"]["tau_positive"]) == (2, 1), "with the defaults"
    code, output, errors = grape(*command, "--steps", "3", "--resume")
    assert code == 0, errors
    assert "sapo  3/3  reward" in output
    edited = Path("sapo.py").read_text().replace("tau_positive: Positive = 1.0", "tau_positive: Positive = 0.5")
    Path("sapo.py").write_text(edited)
    code, _, errors = grape(*command, "--steps", "4", "--resume")
    assert (code, "was run with another options.tau_positive" in errors) == (2, True), "a default was edited"
    code, _, errors = grape(*command, "--options.tau_positive", "0")
    assert (code, errors) == (2, "error: config.yaml: options of sapo: tau_positive: Input should be greater than 0\n")


def test_training_by_a_method_from_a_module(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLE))
    by_module = train({**settings(tmp_path, "sapo:SAPO"), "output": str(tmp_path / "{method}")})
    assert by_module.folder == tmp_path / "sapo"
    by_file = train({**settings(tmp_path, SAPO), "output": str(tmp_path / "by_file")})
    one, other = weights(by_module.model), weights(by_file.model)
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert all(metrics["phase"] == "sapo" and metrics["grad_norm"] > 0 for metrics in by_module.metrics)


def test_on_policy_it_is_grpo_and_off_policy_it_is_not(tmp_path):
    """At ρ = 1 the gate's slope is 1, so one optimizer step per batch changes the weights as GRPO's does."""
    (tmp_path / "once").mkdir()
    (tmp_path / "twice").mkdir()

    def trained(folder, method, **options):
        wanted = {**settings(folder, method), "steps": 1, "options": options, "output": str(folder / method[-4:])}
        return weights(train(wanted).model)

    one, other = (trained(tmp_path / "once", method) for method in (SAPO, "grpo"))
    for key in one:
        torch.testing.assert_close(
            one[key], other[key], rtol=0, atol=1e-5
        )  # float32, and Adam divides by small numbers
    one, other = (trained(tmp_path / "twice", method, epochs=4) for method in (SAPO, "grpo"))
    assert any((one[key] - other[key]).abs().max() > 1e-4 for key in one)


def test_a_killed_run_continues_to_the_same_bits(tmp_path, monkeypatch):
    killed_and_resumed({**settings(tmp_path, SAPO), "steps": 5, "checkpoint_every": 1}, tmp_path, monkeypatch)


def test_a_method_of_pairs_with_a_derivation(grape, tmp_path):
    (tmp_path / "pairs.py").write_text(PAIRS)
    name = f"{tmp_path / 'pairs.py'}:GAP"
    text = explanation(name)
    assert text.startswith("gap: The plain difference of log-probs.\n\n  L = p_l − p_w\n\nneeds: pairs")
    assert "\n\nJ = E[p_w − p_l], without a bound.\n\n(" in text and "paper" not in text
    code, output, errors = grape("train", name, "--config", "demo", "--dry-run", "--output", tmp_path / "run")
    assert code == 0, errors
    assert "gap: 150 steps of 32 pairs; 1 optimizer step each" in output


def test_own_parts_need_no_option_of_the_built_in_ones(tmp_path):
    """Nor does the log's setting log_kl decide whether an advantage or a penalty sees the reference."""
    (tmp_path / "parts.py").write_text(OWN_PARTS)
    for name in ("NEAR", "OFF", "TARGETED"):
        config = settings(tmp_path, f"{tmp_path / 'parts.py'}:{name}")
        run = train({**config, "output": str(tmp_path / name), "log_kl": False})
        assert ("kl" in run.metrics[-1]) == (name != "TARGETED"), name
    assert sys.modules[method_named(f"{tmp_path / 'parts.py'}:NEAR").source.advantage.__module__].SEEN[1] > 0
    assert run.metrics[-1].keys().isdisjoint({"kl_penalty", "response_kl"})
    rows = [{"prompt": f"{i}+1=", "completion": str(i + i % 2), "label": i % 2 == 1} for i in range(9)]
    config = settings(tmp_path, f"{tmp_path / 'parts.py'}:LIKELY")
    config["data"]["source"] = str(written(tmp_path / "labels.jsonl", rows))
    run = train({**config, "output": str(tmp_path / "labels")})
    assert run.metrics[-1]["grad_norm"] > 0 and not (tmp_path / "labels" / "warnings.jsonl").exists()


def test_names_that_are_nearly_a_file_s(grape, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "gap.py").write_text(PAIRS)
    code, _, errors = grape("explain", "methods/gap.py")
    assert (code, errors) == (2, "error: method 'methods/gap.py': name the Method in the file: methods/gap.py:NAME\n")
    code, _, errors = grape("explain", "methods.gap:GAP")
    assert code == 2 and errors.endswith("; for the file write methods/gap.py:GAP\n")


def test_explain(monkeypatch):
    monkeypatch.chdir(EXAMPLE)
    text = explanation("sapo.py:SAPO")
    number = (EXAMPLE / "sapo.py").read_text().split("\n").index("def soft_gated(") + 1
    assert f"\n  soft_gated  sapo.py:{number}\n    SAPO's loss per token: " in text
    assert (
        "\n      tau_positive = 1.0  (float > 0)\n      tau_negative = 1.05  (float > 0)\n          tau_positive is"
        in text
    )
    assert "\n  group_relative  grape_rl/maths/advantage.py:" in text
    assert text.endswith("  grape train sft --config demo && grape train sapo.py:SAPO --config demo")
    assert max(map(len, text.split("\n"))) <= 100
    assert "Maximized" not in text, "it has no derivation"


def test_help_lists_the_method_s_options_last(grape):
    for name, option in ((SAPO, "tau_positive = 1.0  (float > 0)"), ("grpo", "clip_low = 0.2  (0 ≤ float ≤ 1)")):
        code, output, errors = grape("train", name, "--help")
        assert (code, errors) == (0, "")
        settings_text, options = output.split("\noptions of ")
        assert settings_text.startswith("usage: grape train") and "\n  --keep_checkpoints (2)" in settings_text
        assert f"\n  --options.{option}\n" in options and options.count("--options.reduction") == 1
    code, output, errors = grape("train", "grppo", "--help")
    assert code == 2 and output and errors == "error: unknown method 'grppo'; did you mean 'grpo'?\n"


def test_the_demo_of_a_method_of_one_s_own(grape, tmp_path):
    assert demo_config(SAPO).name == "tasks.yaml"
    code, output, errors = grape("train", SAPO, "--config", "demo", "--dry-run", "--output", tmp_path / "run")
    assert code == 0, errors
    assert f"method: {SAPO}\n" in output and "sapo: 200 steps of 48 prompts x 8 responses" in output


def test_the_example_s_configuration_fits_it(monkeypatch):
    from grape_rl.config.files import from_file

    config = load_config(merge(from_file(EXAMPLE / "config.yaml", SAPO), {}))
    assert config.output == "runs/sapo" and config.reward.rubric == str(EXAMPLE / "rubric.yaml")


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("raise OSError('no')", "cannot be loaded: OSError: no"),
        ("OTHER = 1", "has no 'SAPO'"),
        ("SAPO = 1", "SAPO is of type int, not Method"),
        ("raise OSError('one line\\nand another')", "cannot be loaded: OSError: one line and another"),
        ("raise SystemExit(3)", "cannot be loaded: SystemExit: 3"),
        ("def f(:", "mine.py, line 1)"),
    ],
)
def test_a_file_without_the_method(grape, tmp_path, source, error):
    (tmp_path / "mine.py").write_text(source)
    code, output, errors = grape("explain", f"{tmp_path / 'mine.py'}:SAPO")
    assert (code, output) == (2, "") and error in errors and errors.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (("advantage: Float", "advantge: Float"), "sapo: soft_gated: parameter 'advantge' is not an input"),
        (("tau_positive: Positive = 1.0", "tau_positive=1.0"), "sapo: soft_gated: option 'tau_positive' has no type"),
        (("= 1.05", "= -1.0"), "sapo: soft_gated: option 'tau_negative' has the default -1.0: Input should be greater"),
        (("else τ_neg", "else τ_neg" + "x" * 90), "sapo: equation: a part has 1"),
    ],
)
def test_an_error_in_the_file_is_reported_before_anything_runs(grape, tmp_path, change, error):
    source = (EXAMPLE / "sapo.py").read_text()
    assert change[0] in source
    (tmp_path / "mine.py").write_text(source.replace(*change))
    code, output, errors = grape("train", f"{tmp_path / 'mine.py'}:SAPO", "--config", "demo")
    assert (code, output) == (2, "") and error in errors and errors.count("\n") == 1
    with pytest.raises(ValueError, match="cannot be loaded"):
        method_named(f"{tmp_path / 'mine.py'}:SAPO")
