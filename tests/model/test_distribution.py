"""Statistics of full distributions against plain forward passes of each sequence, for every tile size."""

import pytest
import torch
from tiny import MODELS, VOCABULARY, exactness, gradient, sequences, sharp

from grape_rl.model.distribution import logprobs_with_stats
from grape_rl.model.logprobs import compute_logprobs

NAMES = ("qwen2", "gemma3", "cohere, scaled")
"""Tied and untied heads, scaled logits; test_logprobs.py covers the shared code on all models."""


def given():
    return sequences([3, 5, 2], [[4, 2], [3], [1, 5]])


def reference_of(name):
    """A model of the same architecture with other weights."""
    model = sharp(MODELS[name])
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1 + torch.rand(weight.shape, generator=generator, dtype=torch.float64))
    return model.requires_grad_(False)


def plain(model, reference, what, temperature):
    """Each field of each token from the models' own forward passes, token by token."""
    found = {name: torch.zeros(what.mask.shape, dtype=torch.float64) for name in ("logp", "entropy", "collision", "kl")}
    for i, group in enumerate(what.group.tolist()):
        prompt, count = what.prompts[group], int(what.mask[i].sum())
        ids = torch.cat([prompt, what.tokens[i, :count]])[None]
        ours, theirs = (
            (m(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1] / temperature).softmax(-1)
            for m in (model, reference)
        )
        for t in range(count):
            p, q = ours[t], theirs[t]
            found["logp"][i, t] = p[what.tokens[i, t]].log()
            found["entropy"][i, t] = -sum(x * x.log() for x in p)
            found["collision"][i, t] = sum(x * x for x in p).log()
            found["kl"][i, t] = sum(y * (y / x).log() for x, y in zip(p, q, strict=True))
    return found


def fields(outputs, whole):
    return {"logp": outputs.logp, "entropy": outputs.entropy, "collision": whole.collision, "kl": whole.kl}


def weighted(found):
    """A scalar that depends on every field of every token."""
    return sum(
        (i + 1) * (torch.arange(f.numel()).double().reshape(f.shape).cos() * f).sum()
        for i, f in enumerate(found.values())
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tile", [10**9, 4 * VOCABULARY, 1])
def test_values_and_gradients_are_those_of_plain_forward_passes(name, tile):
    model, reference, what = sharp(MODELS[name]), reference_of(name), given()
    _, near = exactness(name)
    expected = plain(model, reference, what, 0.8)
    found = fields(*logprobs_with_stats(model, what, reference, 0.8, tile))
    for field in expected:
        torch.testing.assert_close(found[field], expected[field], rtol=near, atol=near, msg=field)
    assert (found["kl"][what.mask] > 0).all() and found["kl"][what.mask].max() > 0.01
    slope = gradient(model, weighted(expected))  # through norms that round to float32, whatever the weights are
    torch.testing.assert_close(gradient(model, weighted(found)), slope, rtol=1e-5, atol=1e-6 * float(slope.abs().max()))


def test_log_probabilities_equal_compute_logprobs_and_the_kl_of_a_model_to_itself_is_0():
    model, what = sharp(MODELS["qwen2"]), given()
    outputs, whole = logprobs_with_stats(model, what, model)
    expected = compute_logprobs(model, what)
    assert torch.equal(outputs.logp, expected.logp), "to the bit"
    torch.testing.assert_close(outputs.entropy, expected.entropy, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(whole.kl, torch.zeros_like(whole.kl), rtol=0, atol=1e-12)
    _, alone = logprobs_with_stats(model, what, None)
    assert not alone.kl.any() and torch.equal(alone.collision, whole.collision)
    assert all(not field[~what.mask].any() for field in (outputs.logp, outputs.entropy, whole.collision))


def test_no_more_logits_exist_at_once_than_the_tile(monkeypatch):
    model, what = sharp(MODELS["qwen2"]), given()
    seen = []
    model.lm_head.register_forward_hook(lambda module, args, out: seen.append(out.numel()))
    logprobs_with_stats(model, what, model, tile=4 * VOCABULARY)
    assert max(seen) == 4 * VOCABULARY and len(seen) > 4


def test_a_token_that_both_models_rule_out_contributes_nothing():
    model, what = sharp(MODELS["qwen2"]), given()
    what.tokens[what.tokens == 7] = 8

    def ruled(module, args, out):
        return torch.where(torch.arange(VOCABULARY) == 7, -torch.inf, out)

    model.lm_head.register_forward_hook(ruled)
    found = fields(*logprobs_with_stats(model, what, model))
    assert all(field.isfinite().all() for field in found.values())
    assert gradient(model, weighted(found)).isfinite().all()
