"""NEFTune: what is drawn, where it goes, and what may not change it."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grape_rl.data.order import derive_seed
from grape_rl.maths.noise import embedding_noise
from grape_rl.maths.surrogate import policy_gradient
from grape_rl.model.forward import ForwardContext
from grape_rl.rollout.experience import TokenExperience
from grape_rl.training.objective import Objective, Term
from grape_rl.training.update import UpdateSettings, gradient, noisy_gradient
from grape_rl.types import Sequences, TokenBatch
from precise import doubled

SETTINGS = UpdateSettings(ForwardContext(10_000, temperature=1.0), max_tokens=9, max_grad_norm=1e9, seed=3)
GOAL = Objective((Term(policy_gradient),), "token")


@pytest.fixture
def model(model):
    return doubled(model)


def experience():
    """Five demonstrations of different lengths, one with a gap."""
    generator = torch.Generator().manual_seed(5)
    mask = torch.arange(6) < torch.tensor([4, 1, 6, 3, 2])[:, None]
    mask[2, 1:3] = False
    prompts = tuple(torch.randint(4, 40, (n,), generator=generator) for n in (5, 2, 8, 1, 3))
    zeros = torch.zeros(mask.shape)
    tokens = torch.randint(4, 40, (5, 6), generator=generator)
    return TokenExperience(
        Sequences(prompts, tokens, mask, torch.arange(5)), TokenBatch(mask, zeros, zeros, mask.float()), {}
    )


def lost(model, update=noisy_gradient, settings=SETTINGS, step=0, **more):
    """What plain descent with rate 1 takes off the weights, as one vector, and what the update told."""
    before = [p.detach().clone() for p in model.parameters()]
    told = update(model, torch.optim.SGD(model.parameters(), lr=1.0), experience(), GOAL, settings, step=step, **more)
    with torch.no_grad():
        moved = torch.cat([(b - p).flatten() for b, p in zip(before, model.parameters(), strict=True)])
        for p, b in zip(model.parameters(), before, strict=True):
            p.copy_(b)
    return moved, told


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.floats(0.1, 50), st.integers(0, 2**62))
def test_noise_is_within_its_bounds_and_its_seed_s_alone(length, width, alpha, seed):
    noise = embedding_noise(length, width, alpha, seed)
    assert noise.shape == (length, width) and noise.abs().max() <= alpha / math.sqrt(length * width) * (1 + 1e-6)
    assert torch.equal(noise, embedding_noise(length, width, alpha, seed))


def test_noise_is_uniform_and_as_long_whatever_the_shape():
    """Mean 0, variance (α/√(Ld))²/3, a quarter of it in each quarter: within 5 standard errors of 10⁶ draws."""
    noise = embedding_noise(1000, 1000, 15.0, seed=1) / (15.0 / 1000)
    assert abs(float(noise.mean())) < 5 * math.sqrt(1 / 3) / 1000
    assert float(noise.square().mean()) == pytest.approx(1 / 3, abs=5 * math.sqrt(4 / 45) / 1000)
    assert torch.histc(noise, 4, -1, 1).tolist() == pytest.approx([250_000] * 4, abs=5 * math.sqrt(187_500))
    for shape in ((1000, 10), (10, 1000), (100, 100)):
        assert float(embedding_noise(*shape, 5.0, seed=2).norm()) == pytest.approx(5 / math.sqrt(3), rel=0.03)


def test_without_noise_nothing_changes_by_a_bit(model):
    plain, told = lost(model, gradient, epochs=2, minibatches=2)
    off, told_off = lost(model, neftune=0.0, epochs=2, minibatches=2)
    assert torch.equal(off, plain) and told_off == told
    on, told_on = lost(model, neftune=0.5, epochs=2, minibatches=2)
    assert not torch.allclose(on, plain) and told_on["loss"] != told["loss"]


def test_each_row_reads_its_own_noise_and_it_is_the_only_change(model):
    """A loop over rows, each by itself with its noise added to its embeddings by hand."""
    found, told = lost(model, neftune=2.0, step=4)
    what, total = experience(), torch.zeros((), dtype=torch.float64)
    table = model.get_input_embeddings().weight
    for row in range(5):
        own = what.batch.mask[row]
        last = max(t for t in range(6) if own[t])
        ids = torch.cat([what.sequences.prompts[row], what.sequences.tokens[row][:last]])
        generator = torch.Generator().manual_seed(derive_seed(3, 4, f"noise 0 {row}"))
        unit = 2 * torch.rand(len(ids), table.shape[1], generator=generator) - 1
        read = table[ids] + (2.0 / math.sqrt(len(ids) * table.shape[1]) * unit).double()
        logits = model(inputs_embeds=read[None]).logits[0].log_softmax(-1)
        start = len(what.sequences.prompts[row]) - 1
        total = total - sum(logits[start + t, what.sequences.tokens[row, t]] for t in range(last + 1) if own[t])
    loss = total / int(what.batch.mask.sum())
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
    assert told["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)  # told in float32
    # 1/14 is rounded to float32 as every weight of a token is; noise is drawn in float32 by both.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))


def test_micro_batches_change_nothing(model):
    whole, _ = lost(model, neftune=2.0, minibatches=2)
    assert whole.abs().max() > 0.1
    for tokens in (1, 20):
        found, _ = lost(model, settings=replace(SETTINGS, forward=ForwardContext(tokens)), neftune=2.0, minibatches=2)
        torch.testing.assert_close(found, whole, rtol=0, atol=1e-10 * float(whole.abs().max()))


def test_every_step_pass_and_seed_draws_its_own(model):
    def moved(settings=SETTINGS, **more):
        return lost(model, settings=settings, neftune=2.0, **more)[1]["loss"]

    assert moved() == moved()
    one = [moved(), moved(step=1), moved(replace(SETTINGS, seed=4))]
    assert len({round(x, 5) for x in one}) == 3
    still = torch.optim.SGD(model.parameters(), lr=0.0)
    told = noisy_gradient(model, still, experience(), GOAL, SETTINGS, 0, epochs=2, neftune=2.0)["loss"]
    assert told != pytest.approx(moved(), rel=1e-5), "the second pass has other noise than the first"
