"""Checkpoints: whole or not there, found in order, and enough to go on as if nothing had happened."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from grape_rl.model.load import load
from grape_rl.training.checkpoint import TRAINER_FILE, TrainingState, checkpoints, restore_trainer, save_checkpoint
from grape_rl.training.optimizer import adamw, set_learning_rate


def stepped(model, optimizer, times):
    """The model after some steps towards a fixed sentence."""
    ids = torch.arange(4, 16)[None]
    set_learning_rate(optimizer, 1e-2)
    for _ in range(times):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()


def test_training_goes_on_to_the_same_bits(model, tokenizer, tmp_path):
    optimizer = adamw(model, 0.1, (0.9, 0.95))
    stepped(model, optimizer, 2)
    path = save_checkpoint(tmp_path, 2, TrainingState(model, tokenizer, optimizer), keep=2)
    stepped(model, optimizer, 2)

    again, _ = load(str(path), torch.device("cpu"))
    fresh = adamw(again, 0.1, (0.9, 0.95))
    assert restore_trainer(path, fresh, {}) == 2
    stepped(again, fresh, 2)
    for (name, a), (other, b) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert name == other and torch.equal(a, b), name
    for a, b in zip(optimizer.state.values(), fresh.state.values(), strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_transformers_loads_it(model, tokenizer, tmp_path):
    save_checkpoint(tmp_path, 1, TrainingState(model, tokenizer, adamw(model, 0.0, (0.9, 0.95))), keep=1)
    loaded, words = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "last"),
        AutoTokenizer.from_pretrained(tmp_path / "last"),
    )
    ids = torch.tensor([words("1 + 1 = 2")["input_ids"]])
    # Its linear layers may multiply by another library than the run's, which rounds in another order.
    torch.testing.assert_close(loaded(input_ids=ids).logits, model(input_ids=ids).logits, rtol=0, atol=1e-5)
    assert words.eos_token_id == tokenizer.eos_token_id
    assert words.decode(ids[0], skip_special_tokens=True) == "1 + 1 = 2"


def test_the_newest_are_kept_and_last_is_the_newest(model, tokenizer, tmp_path):
    optimizer = adamw(model, 0.0, (0.9, 0.95))
    for step in (2, 9, 10):
        save_checkpoint(tmp_path, step, TrainingState(model, tokenizer, optimizer), keep=2)
        assert (tmp_path / "last").resolve().name == f"step-{step}"
    assert [path.name for path in checkpoints(tmp_path)] == ["step-9", "step-10"]
    assert {path.name for path in tmp_path.iterdir()} == {"step-9", "step-10", "last"}


def test_a_checkpoint_that_a_kill_broke_off_is_none(model, tokenizer, tmp_path, monkeypatch):
    optimizer = adamw(model, 0.0, (0.9, 0.95))
    save_checkpoint(tmp_path, 1, TrainingState(model, tokenizer, optimizer), keep=5)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(tmp_path, 2, TrainingState(model, tokenizer, optimizer), keep=5)
        assert [path.name for path in checkpoints(tmp_path)] == ["step-1"]
        assert (tmp_path / "last").resolve().name == "step-1"
    save_checkpoint(tmp_path, 2, TrainingState(model, tokenizer, optimizer), keep=5)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-1", "step-2"]
    assert not list(tmp_path.glob(".*"))


def test_a_folder_without_the_trainer_s_state_is_no_checkpoint(tmp_path):
    for name in ("step-1", "step-10", "step-2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / TRAINER_FILE).touch()
    (tmp_path / "step-3").mkdir()
    assert [path.name for path in checkpoints(tmp_path)] == ["step-1", "step-2", "step-10"]
    assert checkpoints(tmp_path / "nowhere") == []


def test_what_a_method_remembers_comes_back_in_place(model, tokenizer, tmp_path):
    """Numbers by their names; a tensor that is there already (a reference's weight) gets its values in place."""
    optimizer = adamw(model, 0.0, (0.9, 0.95))
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    state = TrainingState(model, tokenizer, optimizer, {"reference.w": weight, "average": 0.25})
    save_checkpoint(tmp_path / "run", 1, state, keep=2)
    with torch.no_grad():
        weight.zero_()
    memory = {"reference.w": weight, "average": float("nan")}
    assert restore_trainer(tmp_path / "run" / "step-1", optimizer, memory) == 1
    assert weight.tolist() == [1.0, 2.0] and memory["reference.w"] is weight
    assert memory["average"] == 0.25
