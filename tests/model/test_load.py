"""Loading models unchanged, one-line errors for unusable ones, and frozen copies."""

import json

import pytest
import torch
from tiny import MODELS, RECURRENT, sharp
from torch import nn

from grape_rl.model.load import frozen_copy, load, prepare_model
from grape_rl.model.scratch import bpe_tokenizer, character_tokenizer, random_llama

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path, model, tokenizer):
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def refusal(name):
    with pytest.raises(ValueError) as caught:
        load(str(name), CPU)
    message = str(caught.value)
    assert "\n" not in message and repr(str(name)) in message
    return message


def test_a_saved_model_comes_back_the_same(folder, model):
    found, _ = load(str(folder), CPU)
    ids = torch.tensor([[5, 9, 3, 17]])
    assert torch.equal(found(ids).logits, model(ids).logits)
    assert not found.training


TEXT = "What is 12 + 345?\n Éh, spell  backward: moon"


@pytest.mark.parametrize(
    "saved",
    [character_tokenizer(["What is 0123456789+?\n"], ["spell  backward: "]), bpe_tokenizer([TEXT] * 9, 300)],
    ids=["characters", "bpe"],
)
def test_a_saved_tokenizer_reads_and_writes_as_before(tmp_path, saved):
    """For some architectures, transformers replaces the saved tokenizer by the architecture's own."""
    random_llama(saved, 8, 1, 2, 16, seed=0).save_pretrained(tmp_path)
    saved.save_pretrained(tmp_path)
    _, found = load(str(tmp_path), CPU)
    assert found(TEXT).input_ids == saved(TEXT).input_ids
    assert found.decode(saved(TEXT).input_ids) == saved.decode(saved(TEXT).input_ids)
    assert [found.pad_token_id, found.eos_token_id, found.bos_token_id, found.unk_token_id] == [0, 1, 2, 3]


def test_weights_in_half_precision_are_loaded_in_single(folder, model):
    model.to(torch.bfloat16).save_pretrained(folder)
    assert {p.dtype for p in load(str(folder), CPU)[0].parameters()} == {torch.float32}


@pytest.mark.parametrize("name", ["nobody/has-this-model", "nothing-here", "not a name!", "/no/such/folder"])
def test_a_name_without_a_model_is_refused(name):
    assert "cannot be loaded from the Hub, and there is no such folder" in refusal(name)


def test_a_folder_without_a_model_is_refused(tmp_path):
    assert "cannot be loaded from this folder (" in refusal(tmp_path)


def rewritten(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / "config.json").unlink(), "Unrecognized model"),
        (lambda folder: (folder / "config.json").write_text("{"), "not a valid JSON file"),
        (lambda folder: rewritten(folder / "config.json", model_type="nonesuch"), "nonesuch"),
        (lambda folder: rewritten(folder / "config.json", hidden_size=32), "mismatched_sizes"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no file named model.safetensors"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"cut off"), "header"),
        (lambda folder: [file.unlink() for file in folder.glob("tokenizer*")], "tokenizer"),
    ],
    ids=["no config", "broken config", "unknown kind", "contradiction", "no weights", "broken weights", "no tokenizer"],
)
def test_a_damaged_folder_is_refused_with_its_reason(folder, damage, reason):
    damage(folder)
    assert reason in refusal(folder)


def test_a_missing_tokenizer_is_refused(tmp_path):
    MODELS["qwen2"]().save_pretrained(tmp_path)  # transformers would create a tokenizer without a vocabulary
    assert "its tokenizer has only special tokens" in refusal(tmp_path)


def test_missing_weights_are_refused(folder, model):
    rewritten(folder / "config.json", num_hidden_layers=3)
    assert "its files lack 9 of its parameters, such as model.layers.2." in refusal(folder)


# The probe ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_real_architectures_pass_the_probe(name):
    assert prepare_model(sharp(MODELS[name], torch.float32).train(), CPU).training is False


@pytest.mark.parametrize("name", RECURRENT)
def test_models_with_a_recurrent_state_are_refused(name):
    with pytest.raises(ValueError, match="ForCausalLM: does not support shared prompts"):
        prepare_model(sharp(RECURRENT[name], torch.float32), CPU)


class Shifted(nn.Module):
    """A scaling of the logits that logits_of does not support."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args, **kwargs):
        out = self.inner(*args, **kwargs)
        out.logits = out.logits * 1.01
        return out


def test_logits_with_an_unsupported_scaling_are_refused(model, monkeypatch):
    monkeypatch.setattr(model, "forward", Shifted(model.forward).forward)
    with pytest.raises(ValueError, match=r"LlamaForCausalLM: log-probabilities over a shared prompt differ by .* nats"):
        prepare_model(model, CPU)


def test_a_model_that_ignores_where_a_shared_prompt_ends_is_refused(model, monkeypatch):
    inner = model.base_model.forward

    def without_positions(**kwargs):
        return inner(**{k: v for k, v in kwargs.items() if k != "position_ids"})

    monkeypatch.setattr(model.base_model, "forward", without_positions)
    with pytest.raises(ValueError, match="over a shared prompt"):
        prepare_model(model, CPU)


def test_a_model_with_chunked_attention_is_refused(model):
    model.config.attention_chunk_size = 8
    with pytest.raises(ValueError, match="attention in chunks of 8 tokens"):
        prepare_model(model, CPU)


def test_a_model_with_nan_outputs_is_refused(model):
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="differ by nan nats"):
        prepare_model(model, CPU)


def test_a_frozen_copy_keeps_its_weights_when_the_original_is_trained(model):
    ids = torch.tensor([[5, 9, 3]])
    before = model(ids).logits.detach()
    reference = frozen_copy(model)
    assert not any(p.requires_grad for p in reference.parameters()) and all(p.requires_grad for p in model.parameters())
    model(ids).logits.square().sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert not torch.equal(model(ids).logits, before)
    assert torch.equal(reference(ids).logits, before)


def test_loaded_weights_are_aligned_as_a_new_model_s_are(model, tokenizer, tmp_path):
    """Rounding depends on alignment: a run resumed from weights in a mapped file would not be bit-identical."""
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, _ = load(str(tmp_path), CPU)
    assert {p.data_ptr() % 64 for p in loaded.parameters()} == {0}
    assert loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight, "still tied"
