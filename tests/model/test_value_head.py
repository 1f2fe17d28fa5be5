"""Value functions, on a shared trunk or in a separate model, against a plain forward pass per row."""

import copy

import pytest
import torch
from tiny import MODELS, apart, exactness, sequences, sharp
from transformers import AutoModelForSequenceClassification

from grape_rl.model.load import load_value_model
from grape_rl.model.logprobs import compute_logprobs, compute_values
from grape_rl.model.value_head import (
    PolicyWithValue,
    load_value_head,
    save_value,
    separate_value_model,
    shared_value_head,
)

GIVEN = sequences([3, 5], [[4, 2, 6], [1, 5]])
CPU = torch.device("cpu")
SOME = ["llama", "qwen2", "gpt2, absolute", "gemma2, soft caps"]


def random_head(head, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return head


def valued(policy, trunk):
    if trunk == "shared":
        return PolicyWithValue(policy, random_head(shared_value_head(policy)))
    value = separate_value_model(policy)
    with torch.no_grad():
        for parameter in value.base_model.parameters():
            parameter.mul_(0.9)  # it is no longer the policy's trunk
    random_head(value.score)
    return PolicyWithValue(policy, value)


def value_alone(model, given, trunk):
    """The value before each masked token, by one unpadded forward pass per token: of the trunk, or of all."""
    rows = []
    for tokens, mask, group in zip(given.tokens, given.mask, given.group.tolist(), strict=True):
        prompt, found = given.prompts[group], []
        for t in range(len(tokens)):
            ids = torch.cat([prompt, tokens[:t]])[None]
            if trunk == "own":
                found.append(model.value(input_ids=ids).logits[0, 0])
            else:
                hidden = model.policy.base_model(input_ids=ids).last_hidden_state[0, -1]
                found.append(hidden @ model.value.weight[0] + model.value.bias[0])
        rows.append(torch.stack(found).masked_fill(~mask, 0))
    return torch.stack(rows)


@pytest.mark.parametrize("trunk", ["shared", "own"])
@pytest.mark.parametrize("name", SOME)
def test_the_value_equals_that_of_each_row_alone(name, trunk):
    dtype, apart_by = exactness(name)
    model = valued(sharp(MODELS[name], dtype), trunk)
    with torch.no_grad():
        expected = value_alone(model, GIVEN, trunk)
        assert expected[GIVEN.mask].std() > 0.1
        for given in (GIVEN, apart(GIVEN)):
            found = compute_logprobs(model, given, 0.7)
            plain = compute_logprobs(model.policy, given, 0.7)
            for value in (found.value, compute_values(model, given)):
                torch.testing.assert_close(
                    value, expected, rtol=1e-5 if "gemma2" in name else 1e-9, atol=100 * apart_by
                )
            assert torch.equal(found.logp, plain.logp) and torch.equal(found.entropy, plain.entropy)
            assert plain.value is None


@pytest.mark.parametrize("trunk", ["shared", "own"])
def test_a_shared_trunk_runs_once_and_gets_the_value_s_gradient_and_a_separate_one_does_not(trunk):
    model = valued(sharp(MODELS["llama"]), trunk)
    runs = []
    model.policy.base_model.register_forward_hook(lambda *_: runs.append("policy"))
    value = compute_logprobs(model, apart(GIVEN)).value
    assert runs == ["policy"]
    assert value is not None
    value[GIVEN.mask].square().sum().backward()
    touched = [p.grad is not None and bool(p.grad.any()) for p in model.policy.base_model.parameters()]
    assert all(touched) if trunk == "shared" else not any(touched)
    assert all(p.grad is not None and p.grad.any() for p in model.value.parameters())


@pytest.mark.parametrize("trunk", ["shared", "own"])
def test_a_new_value_function_is_zero_everywhere_and_the_policy_is_unchanged(trunk):
    policy = sharp(MODELS["qwen2"])
    before, state = copy.deepcopy(policy.state_dict()), torch.random.get_rng_state()
    value = shared_value_head(policy) if trunk == "shared" else separate_value_model(policy)
    assert torch.equal(torch.random.get_rng_state(), state), "no random number is drawn"
    assert not compute_values(PolicyWithValue(policy, value), GIVEN).any()
    assert all(torch.equal(before[key], tensor) for key, tensor in policy.state_dict().items())
    if trunk == "own":
        ours, theirs = value.base_model.state_dict(), policy.base_model.state_dict()
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
        assert not {p.data_ptr() for p in value.parameters()} & {p.data_ptr() for p in policy.parameters()}


def test_under_bf16_autocast_the_head_runs_in_float32():
    model = valued(sharp(MODELS["llama"], torch.float32), "shared")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert compute_values(model, GIVEN).dtype == torch.float32


def test_saved_and_loaded_value_functions_are_bit_identical(tmp_path):
    policy = sharp(MODELS["llama"], torch.float32)
    head, own = valued(policy, "shared").value, valued(policy, "own").value
    save_value(head, tmp_path / "head")
    again = shared_value_head(policy)
    load_value_head(again, tmp_path / "head")
    assert torch.equal(again.weight, head.weight) and torch.equal(again.bias, head.bias)
    save_value(own, tmp_path / "own")
    loaded = load_value_model(str(tmp_path / "own"), CPU)
    assert all(torch.equal(tensor, loaded.state_dict()[key]) for key, tensor in own.state_dict().items())
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "own")
    assert theirs.config.num_labels == 1 and torch.equal(theirs.score.weight, own.score.weight)


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("nowhere", "cannot be loaded"),
        ("a policy", "its files lack 1 of its parameters, such as score.weight"),
        ("two labels", "is a LlamaForSequenceClassification with labels: 2; use .* that has one label"),
    ],
)
def test_an_invalid_value_model_is_refused(folder, message, tmp_path):
    policy = sharp(MODELS["llama"], torch.float32)
    if folder == "a policy":
        policy.config.num_labels = 1
        policy.save_pretrained(tmp_path / folder)
    if folder == "two labels":
        own = separate_value_model(policy)
        own.config.num_labels = 2
        own.score = torch.nn.Linear(16, 2, bias=False)
        own.save_pretrained(tmp_path / folder)
    with pytest.raises(ValueError, match=message) as error:
        load_value_model(str(tmp_path / folder), CPU)
    assert "\n" not in str(error.value)
