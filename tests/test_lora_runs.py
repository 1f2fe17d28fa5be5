"""Runs that train adapters: what moves, what is left in the folder, and that a resumed run is the same to the bit."""

import math
import sys

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

import grape_rl.run
from grape_rl import train
from grape_rl.model.load import load
from grape_rl.model.logprobs import compute_logprobs
from grape_rl.types import Sequences
from small_runs import settings, weights, written

LORA = {"rank": 2, "alpha": 4.0}
METHODS = {
    "sft": {},
    "grpo": {"options": {"kl": 0.05, "epochs": 2}},
    "dpo": {"options": {"beta": 0.3}},
    "trpo": {"options": {"delta": 0.02, "baseline": "leave_one_out", "cg_iterations": 2}},
}
"""One of each kind of source and of update."""


def run_of(folder, method, **more):
    """A run of ``method`` with adapters on an SFT model of its own, so that the base lies in a folder."""
    base = folder / "base"
    if not base.exists():
        train({**settings(folder, "sft"), "steps": 1, "output": str(base)})
    wanted = settings(folder, method) | METHODS[method]
    if method == "dpo":
        rows = [{"prompt": f"{i}+1=", "chosen": str(i + 1), "rejected": str(i)} for i in range(8)]
        wanted["data"] = {"source": str(written(folder / "pairs.jsonl", rows)), "max_length": 64}
    wanted["model"] = {"name": str(base / "checkpoints" / "last"), "lora": LORA}
    return wanted | more


def said(model):
    tokens = torch.arange(4, 12)[None]
    return compute_logprobs(
        model, Sequences((torch.arange(4, 7),), tokens, torch.ones_like(tokens, dtype=torch.bool), torch.tensor([0]))
    ).logp.detach()


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft asks for it
@pytest.mark.parametrize("method", METHODS)
def test_adapters_alone_are_trained_and_a_whole_model_is_left(method, tmp_path, monkeypatch):
    wanted, held = run_of(tmp_path, method), []
    begin = grape_rl.run.start_policy

    def watched(*given):
        start = begin(*given)
        held.extend((start.model, {key: p.detach().clone() for key, p in start.model.named_parameters()}))
        return start

    monkeypatch.setattr(grape_rl.run, "start_policy", watched)
    run = train(wanted)
    model, before = held
    for key, p in model.named_parameters():
        assert torch.equal(p, before[key]) != ("lora_" in key), key
        assert p.requires_grad == ("lora_" in key)
    assert all(math.isfinite(told["loss"]) and told["grad_norm"] > 0 for told in run.metrics)
    assert method == "sft" or run.metrics[0].get("kl", 0) == pytest.approx(0, abs=1e-6), "the reference is the base"

    start = weights(tmp_path / "base" / "checkpoints" / "last")
    end = weights(run.model)
    assert start.keys() == end.keys()
    assert {key for key in end if not torch.equal(end[key], start[key])} == {
        key for key in end if key.rpartition(".")[0].rpartition(".")[2].endswith("_proj")
    }
    plain, found = AutoModelForCausalLM.from_pretrained(run.model, output_loading_info=True, dtype=torch.float32)
    assert not found["missing_keys"] and not found["unexpected_keys"] and not hasattr(plain, "peft_config")
    torch.testing.assert_close(said(plain), said(model), rtol=1e-4, atol=1e-5)  # float32: W + sBA is rounded once
    moved, _ = load(str(tmp_path / "base" / "checkpoints" / "last"), torch.device("cpu"))
    assert (said(moved) - said(model)).abs().max() > 1e-3
    beside = peft.PeftModel.from_pretrained(moved, run.model / "adapter")
    torch.testing.assert_close(said(beside.base_model.model), said(model), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_comes_to_the_same_bits(method, tmp_path):
    wanted = run_of(tmp_path, method)
    straight = train({**wanted, "steps": 4, "output": str(tmp_path / "straight")})
    train({**wanted, "steps": 2})
    whole = train({**wanted, "steps": 4}, resume=True)
    for name in ("model.safetensors", "adapter/adapter_model.safetensors"):
        one, two = (run.model / name for run in (straight, whole))
        assert one.read_bytes() == two.read_bytes()
    assert (straight.model / "adapter" / "adapter_config.json").is_file()
    for a, b in zip(straight.metrics, whole.metrics, strict=True):
        assert all(a[key] == b[key] for key in ("step", "loss", "grad_norm", "entropy"))


def test_trpo_on_the_adapters_of_a_larger_model_keeps_its_promises(tmp_path):
    """Some 2.7 million weights, of which 1% are trained: KL ≤ δ, measured again, and a better surrogate, each step."""
    wanted = settings(tmp_path, "trpo") | {
        "model": {"scratch": {"hidden": 192, "layers": 6, "heads": 4, "context": 64}, "lora": {"rank": 2, "alpha": 16}},
        "options": {"delta": 0.01, "cg_iterations": 3, "baseline": "leave_one_out"},
        "prompts_per_step": 2,
        "steps": 2,
    }
    run = train(wanted)
    assert [told["step_accepted"] for told in run.metrics] == [1, 1]
    for told in run.metrics:
        assert 0.002 < told["approx_kl"] <= 0.01
        assert told["loss_after"] < told["loss"]
    assert run.metrics[1]["kl"] > 1e-3, "measured by the next step's samples, against the weights of the start"


def test_what_is_wrong_is_said_in_a_line(tmp_path, monkeypatch):
    wanted = settings(tmp_path, "sft")
    scratch = wanted["model"]
    wrong = [
        ({"rank": 0}, "model.lora.rank: Input should be greater than 0"),
        ({"alpha": -1.0}, "model.lora.alpha: Input should be greater than 0"),
        ({"ranks": 2}, "model.lora: unknown key 'ranks'; did you mean 'rank'?"),
        ({"targets": ["q"]}, "model.lora.targets: no linear layer is named 'q'; choose from q_proj, k_proj"),
    ]
    for lora, message in wrong:
        with pytest.raises(ValueError) as told:
            train({**wanted, "model": {**scratch, "lora": lora}})
        assert message in str(told.value) and "\n" not in str(told.value)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r"^model.lora needs peft: pip install 'grape-rl\[lora\]'$"):
        train({**wanted, "model": {**scratch, "lora": {}}})


def test_a_run_with_adapters_goes_on_only_with_the_same(tmp_path):
    wanted = settings(tmp_path, "sft")
    with_adapters = {**wanted, "model": {**wanted["model"], "lora": LORA}}
    train({**with_adapters, "steps": 1})
    with pytest.raises(ValueError, match=r"was run with another model\.lora"):
        train(wanted, resume=True)
    with pytest.raises(ValueError, match=r"was run with another model\.lora\.rank"):
        train({**wanted, "model": {**wanted["model"], "lora": {**LORA, "rank": 3}}}, resume=True)
