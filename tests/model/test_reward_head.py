"""Reward models: equal scores alone, padded and with shared prompts, and loading by transformers."""

import pytest
import torch
import transformers as hf
from tiny import MODELS, apart, exactness, sequences, sharp
from transformers import AutoModelForSequenceClassification

from grape_rl.model.load import load
from grape_rl.model.reward_head import (
    build_reward_model,
    is_reward_model,
    load_reward_model,
    prepare_reward_model,
    sequence_scores,
    set_step_separator,
    step_separator,
    token_scores,
)
from grape_rl.model.scratch import character_tokenizer, random_llama
from grape_rl.types import Sequences
from precise import doubled

CPU = torch.device("cpu")
SCORING = ["qwen2", "qwen3", "llama", "mistral, window 4", "gemma2, soft caps", "gemma3", "gpt2, absolute", "phi3"]


def a_tokenizer():
    return character_tokenizer(["0123456789+-=. abc\n"])


def scalar(name, tokenizer=None):
    """A reward model on a tiny trunk of an architecture, in exact precision, with a large head."""
    model = build_reward_model(sharp(MODELS[name], torch.float32), tokenizer or a_tokenizer(), seed=0)
    dtype, tolerance = exactness(name)
    with torch.no_grad():
        model.score.weight.mul_(50)
    return model.to(dtype), tolerance


@pytest.mark.parametrize("name", SCORING)
def test_a_score_equals_the_models_own_pass_over_the_row_alone(name):
    model, tolerance = scalar(name)
    given = sequences([3, 7], [[1, 4, 6], [2, 5]])
    with torch.no_grad():
        found, every = sequence_scores(model, given), token_scores(model, given)
        other = sequence_scores(model, apart(given))
        for i, group in enumerate(given.group.tolist()):
            length = int(given.mask[i].sum())
            for t in range(length):
                row = torch.cat([given.prompts[group], given.tokens[i, : t + 1]])
                alone = model(input_ids=row[None]).logits[0, 0]
                assert abs(every[i, t] - alone) < tolerance, "at every token"
            assert abs(found[i] - alone) < tolerance and abs(other[i] - alone) < tolerance, "at the last one"
    assert found.std() > 0.01


def test_gradients_reach_the_trunk_through_a_shared_prompt():
    model = doubled(scalar("llama")[0])
    given = sequences([3, 7], [[1, 4, 6], [2, 5]])
    parameters = list(model.parameters())
    one = torch.autograd.grad((sequence_scores(model, given) ** 2).sum(), parameters)
    other = torch.autograd.grad((sequence_scores(model, apart(given)) ** 2).sum(), parameters)
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)
    assert all(bool(gradient.any()) for gradient in one)


def test_a_response_of_no_tokens_has_the_score_of_its_prompt():
    model, _ = scalar("llama")
    prompt = torch.tensor([5, 6, 7])
    empty = Sequences(
        (prompt,), torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 1, dtype=torch.bool), torch.tensor([0])
    )
    assert sequence_scores(model, empty).item() == pytest.approx(model(input_ids=prompt[None]).logits.item(), abs=1e-10)


def test_the_end_token_is_scored_even_if_the_language_model_pads_with_it():
    tokenizer = a_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    trunk = sharp(MODELS["llama"], torch.float32)
    trunk.config.pad_token_id = tokenizer.eos_token_id
    model = build_reward_model(trunk, tokenizer, seed=0)
    assert model.config.pad_token_id not in (None, tokenizer.eos_token_id)
    assert tokenizer.pad_token_id == model.config.pad_token_id
    ids = torch.tensor([[5, 6, 7, tokenizer.eos_token_id]])
    ended = Sequences((ids[0, :2],), ids[:, 2:], torch.ones(1, 2, dtype=torch.bool), torch.tensor([0]))
    open_ended = Sequences((ids[0, :2],), ids[:, 2:3], torch.ones(1, 1, dtype=torch.bool), torch.tensor([0]))
    assert sequence_scores(model, ended).item() == pytest.approx(model(input_ids=ids).logits.item(), abs=1e-6)
    assert sequence_scores(model, ended).item() != sequence_scores(model, open_ended).item()
    padded = torch.nn.functional.pad(ids, (0, 2), value=model.config.pad_token_id)
    mask = (torch.arange(6) < 4).long()[None]
    found = model(input_ids=padded, attention_mask=mask).logits.item()
    assert found == pytest.approx(sequence_scores(model, ended).item(), abs=1e-6)


def test_a_foreign_model_that_pads_with_its_end_token_is_scored_as_in_its_training():
    """transformers takes the last token that is not padding, in training too."""
    model, _ = scalar("qwen2")
    model.config.pad_token_id = 2
    ids = torch.tensor([[5, 6, 7, 2]])
    ended = Sequences((ids[0, :2],), ids[:, 2:], torch.ones(1, 2, dtype=torch.bool), torch.tensor([0]))
    assert sequence_scores(model, ended).item() == pytest.approx(model(input_ids=ids).logits.item(), abs=1e-10)


def test_the_trunk_is_the_language_model_s_and_the_seed_determines_the_head():
    trunk = sharp(MODELS["llama"], torch.float32)
    one, same, other = (build_reward_model(trunk, a_tokenizer(), seed) for seed in (0, 0, 1))
    for key, value in trunk.base_model.state_dict().items():
        assert torch.equal(one.base_model.state_dict()[key], value), key
    assert torch.equal(one.score.weight, same.score.weight) and not torch.equal(one.score.weight, other.score.weight)
    one.score.weight.data.zero_()
    assert trunk.lm_head.weight.abs().min() > 0, "the language model is unchanged"


def saved(folder, separator=None):
    tokenizer = a_tokenizer()
    model = build_reward_model(random_llama(tokenizer, 16, 1, 2, 32, seed=3), tokenizer, seed=3)
    set_step_separator(model, separator)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def test_saved_models_load_here_and_in_transformers(tmp_path):
    model = saved(tmp_path, "\n\n")
    assert is_reward_model(str(tmp_path)) and not is_reward_model(str(tmp_path / "none"))
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    ours, tokenizer = load_reward_model(str(tmp_path), CPU)
    ids = torch.tensor([tokenizer("12+3=")["input_ids"]])
    assert theirs(input_ids=ids).logits.shape == (1, 1)
    assert torch.equal(theirs(input_ids=ids).logits, ours(input_ids=ids).logits)
    assert all(torch.equal(value, ours.state_dict()[key]) for key, value in model.state_dict().items())
    assert step_separator(ours) == "\n\n" and not ours.training


def test_an_invalid_reward_model_gives_a_one_line_error(tmp_path):
    tokenizer = a_tokenizer()
    causal = random_llama(tokenizer, 16, 1, 2, 32, seed=3)
    for name, model in (("causal", causal), ("two", None), ("scalar", None)):
        if name == "two":
            config = hf.LlamaConfig(**(causal.config.to_dict() | {"num_labels": 2}))
            model = hf.LlamaForSequenceClassification(config)
        if name == "scalar":
            saved(tmp_path / name)
        else:
            model.save_pretrained(tmp_path / name)
            tokenizer.save_pretrained(tmp_path / name)
    for name, message in (
        ("causal", "its files lack score.weight, so it is not a reward model; train one with grape train reward_model"),
        ("two", "it has 2 labels, but a reward model has one"),
        ("none", "cannot be loaded from the Hub, and there is no such folder"),
    ):
        with pytest.raises(ValueError) as error:
            load_reward_model(str(tmp_path / name), CPU)
        assert message in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"has the head score\.weight of a reward model; use a language model"):
        load(str(tmp_path / "scalar"), CPU)


def test_an_architecture_without_sequence_classification_is_refused():
    with pytest.raises(
        ValueError, match="GraniteForCausalLM: transformers has no sequence classification for this arch"
    ):
        build_reward_model(sharp(MODELS["granite, scaled"], torch.float32), a_tokenizer(), seed=0)


def test_a_model_whose_own_forward_pass_differs_fails_the_probe(monkeypatch):
    model, _ = scalar("llama")
    forward = type(model).forward

    def other(self, **given):
        out = forward(self, **given)
        out.logits = out.logits * 1.01 + 0.01
        return out

    monkeypatch.setattr(type(model), "forward", other)
    with pytest.raises(ValueError, match=r"scores of a padded batch differ by .* from its own forward pass"):
        prepare_reward_model(model, CPU)
