"""The sampler against plain loops: exact log-probabilities, exact distributions, and independence of batching."""

import itertools
import math
from bisect import bisect_right
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from tiny import MODELS, SHAPE, VOCABULARY, exactness, sharp
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Qwen2Config, Qwen2ForCausalLM

from grape_rl.model.decode import generate_tokens
from grape_rl.model.logprobs import compute_logprobs
from grape_rl.model.sampler import SamplingParams, _locate, sample, sample_inverse_cdf, sampling_probabilities

PROMPTS = [torch.tensor(ids) for ids in ([5, 9, 3, 17], [4], [8, 8, 21, 3, 6, 12, 7], [11, 2])]
END = (3, 7, 11)
CUTS = [
    SamplingParams(6),
    SamplingParams(6, temperature=0.7),
    SamplingParams(6, top_k=5),
    SamplingParams(6, top_p=0.8),
    SamplingParams(6, temperature=1.5, top_k=5, top_p=0.8),
]


def probabilities(logits, sampling):
    """Each token's probability by sorting in Python: {token: probability} of the tokens that are not cut."""
    z = [value / sampling.temperature for value in logits]
    allowed = sorted(range(len(z)), key=lambda v: -z[v])[: sampling.top_k or None]

    def normal(tokens):
        weights = {v: math.exp(z[v] - max(z)) for v in tokens}
        return {v: w / math.fsum(weights.values()) for v, w in weights.items()}

    if sampling.top_p < 1:
        share, held, nucleus = normal(allowed), 0.0, []
        for v in allowed:
            nucleus.append(v)
            held += share[v]
            if held >= sampling.top_p:
                break
        allowed = nucleus
    return normal(allowed)


def logits_before(model, prompt, tokens):
    """The model's own logits before each token, from one unpadded forward pass over the row."""
    with torch.no_grad():
        return model(input_ids=torch.cat([prompt, tokens])[None]).logits[0, len(prompt) - 1 : -1].tolist()


def rows(rollout):
    """Each row's prompt, tokens and behavior log-probabilities, without padding."""
    for i, group in enumerate(rollout.group.tolist()):
        n = int(rollout.mask[i].sum())
        yield rollout.prompts[group], rollout.tokens[i, :n], rollout.behavior_logp[i, :n].tolist()


@pytest.mark.parametrize("sampling", CUTS, ids=str)
@pytest.mark.parametrize("name", ["qwen2", "mistral, window 4", "gemma3", "gemma2, soft caps", "gpt2, absolute"])
def test_behavior_logp_equals_a_plain_loop_and_no_cut_token_is_sampled(name, sampling):
    model = sharp(MODELS[name], exactness(name)[0])
    cut = 0
    for prompt, tokens, found in rows(sample(model, PROMPTS, 6, sampling, END, seed=1)):
        for token, logits, logp in zip(tokens.tolist(), logits_before(model, prompt, tokens), found, strict=True):
            allowed = probabilities(logits, sampling)
            assert token in allowed
            assert logp == pytest.approx(math.log(allowed[token]), abs=2e-5)  # the sampler's choices are in float32
            cut += VOCABULARY - len(allowed)
    assert (cut > 0) == (sampling.top_k > 0 or sampling.top_p < 1)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_training_pass_equals_the_behavior_logp(temperature):
    model = sharp(MODELS["qwen2"], torch.float32)
    rollout = sample(model, PROMPTS, 6, SamplingParams(6, temperature), END, seed=1)
    with torch.no_grad():
        found = compute_logprobs(model, rollout, temperature).logp
    torch.testing.assert_close(found, rollout.behavior_logp, rtol=0, atol=2e-5)  # float32, two orders of summation


def test_temperature_0_takes_the_likeliest_token_with_probability_1():
    model = sharp(MODELS["qwen2"])
    rollout = sample(model, PROMPTS, 2, SamplingParams(6, temperature=0.0), END, seed=1)
    assert torch.equal(rollout.behavior_logp, torch.zeros_like(rollout.behavior_logp))
    for prompt, tokens, _ in rows(rollout):
        assert tokens.tolist() == [
            max(range(VOCABULARY), key=z.__getitem__) for z in logits_before(model, prompt, tokens)
        ]


# The exact distribution ------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", [s for s in CUTS if s.top_k or s.top_p < 1], ids=str)
def test_the_cut_distribution_by_sorting_in_python(sampling):
    logits = 2.0 * torch.randn(40, 17, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for row, found in zip(logits.tolist(), sampling_probabilities(logits, sampling).tolist(), strict=True):
        allowed = probabilities(row, sampling)
        assert found == pytest.approx([allowed.get(v, 0.0) for v in range(17)], abs=1e-12)
        assert [p > 0 for p in found] == [v in allowed for v in range(17)]


def test_the_nucleus_always_has_a_token_and_a_large_top_k_all_of_them():
    logits = torch.tensor([[0.0, 3.0, 1.0]])
    assert sampling_probabilities(logits, SamplingParams(1, top_p=1e-9)).tolist() == [[0.0, 1.0, 0.0]]
    assert torch.equal(sampling_probabilities(logits, SamplingParams(1, top_k=9)), logits.softmax(-1))


def test_a_fine_grid_of_quantiles_draws_each_token_in_its_share():
    shares = [0.0, 0.1, 0.25, 0.0, 0.0, 0.0004, 0.6496, 0.0]
    points = 100_000
    grid = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    tokens, _ = sample_inverse_cdf(torch.tensor(shares, dtype=torch.float64).expand(points, -1), grid)
    counts = tokens.bincount(minlength=8).tolist()
    for share, count in zip(shares, counts, strict=True):
        assert abs(count - share * points) <= 1 and (count > 0) == (share > 0)


def test_the_ends_of_the_unit_interval_draw_no_impossible_token():
    share = torch.tensor([0.0, 0.3, 0.0, 0.7, 0.0], dtype=torch.float64).expand(2, -1)
    assert sample_inverse_cdf(share, torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64))[0].tolist() == [1, 3]


def exact(shares, quantile):
    """The token at the quantile by a running sum in Python floats, and the quantile's distance from another token."""
    below = list(itertools.accumulate(shares, initial=0.0))
    token = min(bisect_right(below, quantile * below[-1]) - 1, max(v for v, share in enumerate(shares) if share > 0))
    return token, min(quantile * below[-1] - below[token], below[token + 1] - quantile * below[-1])


@pytest.mark.parametrize("size", [1, 2, 127, 128, 129, 256, 1000, 5003])
@pytest.mark.parametrize("scale", [0.1, 3.0, 12.0])
def test_blocks_sample_the_same_tokens_as_a_running_sum(size, scale):
    """A neighbor may be sampled only if the quantile is within float32 rounding (1e-6 of the sum) of a boundary."""
    generator = torch.Generator().manual_seed(size)
    logits = scale * torch.randn(40, size, generator=generator)
    logits = logits.masked_fill(torch.rand(40, size, generator=generator) < 0.3, -torch.inf)
    logits[:, size // 2] = 0.0  # so that no row is all −inf
    logits[:8] = logits[0]
    uniform = torch.rand(40, dtype=torch.float64, generator=generator)
    uniform[:8] = torch.tensor([0.0, 5e-324, 1e-12, 0.5, 1 - 1e-7, 1 - 1e-12, 1 - 2**-53, 2**-30], dtype=torch.float64)
    tokens, logp = sample_inverse_cdf(logits.softmax(-1), uniform)
    near = 0
    for z, token, quantile, logits_before in zip(logits, tokens.tolist(), uniform.tolist(), logp.tolist(), strict=True):
        shares = z.double().softmax(-1).tolist()
        assert shares[token] > 0 and logits_before == pytest.approx(math.log(shares[token]), abs=1e-5)
        expected, margin = exact(shares, quantile)
        assert token == expected or margin < 1e-6
        near += token != expected
    assert near <= 2, "differences by rounding should be rare"


@given(
    shares=st.lists(st.one_of(st.just(0.0), st.floats(2**-100, 1.0, width=32)), min_size=1, max_size=400),
    quantile=st.floats(0.0, 1.0, exclude_max=True),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_no_quantile_samples_a_token_of_weight_0_or_one_far_from_its_place(shares, quantile, dtype):
    assume(any(shares))
    field = torch.tensor([shares], dtype=dtype)
    token, logp = sample_inverse_cdf(field, torch.tensor([quantile], dtype=torch.float64))
    assert shares[token] > 0
    total = math.fsum(shares)
    assert logp.item() == pytest.approx(math.log(shares[token] / total), abs=1e-5)
    before = math.fsum(shares[:token])
    assert before / total - 1e-6 <= quantile <= (before + shares[token]) / total + 1e-6


def test_weights_too_small_to_change_their_block_sum_are_handled():
    """A block's sum rounds up in float32, so that the last quantiles lie beyond the exact sum of its tokens."""
    field = torch.full((1, 300), 2.0**-30)
    field[0, 0], field[0, 127:] = 1.0, 0.0
    field[0, 200] = 1.0
    ends = torch.tensor([0.0, 0.4999999999, 0.5, 0.5000001, 1 - 2**-53], dtype=torch.float64)
    tokens, _ = sample_inverse_cdf(field.expand(5, -1), ends)
    assert tokens.tolist()[0] == 0 and tokens.tolist()[3:] == [200, 200] and all(t < 127 for t in tokens.tolist()[:2])


@pytest.mark.parametrize(
    "sampling", [SamplingParams(3), SamplingParams(3, temperature=0.7, top_k=4, top_p=0.9)], ids=str
)
def test_all_sequences_come_in_their_exact_proportion(sampling):
    """A vocabulary of 5 and 3 tokens at most: 85 sequences, and a grid of 32³ uniform numbers in place of random ones.

    Grid points that draw a sequence fill a box whose sides, one for each token, are its probabilities. An interval of
    length p covers 32 p points, give or take one, so the share found is between Π(p − 1/32) and Π(p + 1/32).
    """
    size, end, points = 5, 4, 32
    shape = SHAPE | dict(vocab_size=size, hidden_size=8)
    model, prompt = sharp(lambda: Qwen2ForCausalLM(Qwen2Config(**shape)), torch.float32), torch.tensor([1, 3])
    marks = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    tokens, logp, length = generate_tokens(
        model,
        [prompt],
        torch.cartesian_prod(marks, marks, marks),
        lambda logits, uniform: sample_inverse_cdf(sampling_probabilities(logits, sampling), uniform),
        torch.tensor([end]),
    )
    drawn_rows = [tuple(row[:n]) for row, n in zip(tokens.tolist(), length.tolist(), strict=True)]
    counts = {row: 0 for row in drawn_rows}
    for row in drawn_rows:
        counts[row] += 1

    total, seen = 0.0, 0
    for row in itertools.chain.from_iterable(itertools.product(range(size), repeat=n) for n in (1, 2, 3)):
        if end in row[:-1] or (len(row) < 3 and row[-1] != end):
            continue
        steps = logits_before(model, prompt, torch.tensor(row))
        each = [probabilities(logits, sampling).get(token, 0.0) for token, logits in zip(row, steps, strict=True)]
        share = counts.pop(row, 0) / points**3
        assert math.prod(max(0.0, p - 1 / points) for p in each) <= share + 1e-12
        assert share <= (math.prod(p + 1 / points for p in each) + 1e-12 if min(each) > 0 else 0)
        total, seen = total + math.prod(each), seen + 1
    assert seen == 85 and total == pytest.approx(1.0, abs=1e-5)
    assert not counts, "something was sampled that is not a sequence"
    expected = torch.tensor([sum(row) for row in logp.tolist()]).exp().unique()
    assert len(expected) > 20, "sequences so similar that a mistake would not show"


# Ends, masks and batches ----------------------------------------------------------------------------------------------


def rollout_of(model, prompts=PROMPTS, n=16, seed=1, **changes):
    return sample(model, prompts, n, replace(SamplingParams(4), **changes), END, seed)


def test_a_row_ends_at_any_end_token_with_the_right_reason():
    rollout = rollout_of(sharp(MODELS["qwen2"]))
    met = set()
    for i, finish in enumerate(rollout.finish):
        tokens, mask = rollout.tokens[i].tolist(), rollout.mask[i].tolist()
        length = next((t + 1 for t, token in enumerate(tokens) if token in END and mask[t]), 4)
        assert mask == [t < length for t in range(4)]
        assert finish == ("stop" if tokens[length - 1] in END else "length")
        assert tokens[length:] == [0] * (4 - length)
        assert rollout.behavior_logp[i, length:].tolist() == [0.0] * (4 - length)
        met |= {(length, finish), tokens[length - 1]}
    assert met > {*END, (1, "stop"), (2, "stop"), (4, "stop"), (4, "length")}, "the seed leaves a case untried"


def test_on_response_is_called_once_for_each_response_as_it_ends():
    model, reported = sharp(MODELS["qwen2"]), []
    params = SamplingParams(6, generation_batch_size=16)
    rollout = sample(model, PROMPTS, 8, params, END, seed=1, on_response=lambda *row: reported.append(row))
    assert sorted(row for row, _, _ in reported) == list(range(32))
    for row, tokens, finish in reported:
        assert torch.equal(tokens, rollout.tokens[row][rollout.mask[row]]) and finish == rollout.finish[row]
    of_batch = [[len(tokens) for row, tokens, _ in reported if row // 16 == half] for half in (0, 1)]
    assert [row // 16 for row, _, _ in reported] == [0] * 16 + [1] * 16
    assert all(lengths == sorted(lengths) and len(set(lengths)) > 2 for lengths in of_batch), "not reported as they end"


def test_the_rollout_is_as_wide_as_its_longest_row_and_contains_its_prompts():
    model = sharp(MODELS["qwen2"])
    rollout = sample(model, PROMPTS, 3, SamplingParams(5), tuple(range(VOCABULARY)), seed=0)
    assert rollout.tokens.shape == (12, 1) and set(rollout.finish) == {"stop"}
    assert rollout.group.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert rollout.version == 0
    assert all(torch.equal(a, b) for a, b in zip(rollout.prompts, PROMPTS, strict=True))


def test_without_end_tokens_every_row_runs_to_the_limit():
    rollout = sample(sharp(MODELS["qwen2"]), PROMPTS, 3, SamplingParams(5), (), seed=0)
    assert rollout.mask.all() and rollout.mask.shape == (12, 5) and set(rollout.finish) == {"length"}


@pytest.mark.parametrize("generation_batch_size", [1, 16, 35, 512])
def test_the_seed_determines_the_rollout_for_every_batch_size(generation_batch_size):
    """In float64, where batching moves a logit by 1e-15: the few hundred uniform numbers of this seed would have to lie
    that near to a boundary between tokens for one to change. The recorded float32 may round the other way."""
    model = sharp(MODELS["qwen2"])
    whole, params = rollout_of(model, max_tokens=8), SamplingParams(8, generation_batch_size=generation_batch_size)
    other = sample(model, PROMPTS, 16, params, END, seed=1)
    fewer = sample(model, PROMPTS[:2], 16, params, END, seed=1)
    for found in (other, fewer):
        n, width = found.tokens.shape
        assert torch.equal(found.tokens, whole.tokens[:n, :width])
        assert torch.equal(found.mask, whole.mask[:n, :width]) and not whole.mask[:n, width:].any()
        assert found.finish == whole.finish[:n]
        torch.testing.assert_close(found.behavior_logp, whole.behavior_logp[:n, :width], rtol=0, atol=1e-6)


def test_another_seed_gives_another_rollout_and_the_global_generator_is_left_alone():
    model = sharp(MODELS["qwen2"])
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, again, other = (rollout_of(model, seed=seed).tokens for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    "changes", [{"max_tokens": 0}, {"temperature": -0.1}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}]
)
def test_invalid_sampling_params_are_refused(changes):
    with pytest.raises(ValueError, match="needs max_tokens ≥ 1, temperature ≥ 0, top_k ≥ 0 and 0 < top_p ≤ 1"):
        replace(SamplingParams(4), **changes)


def test_a_prompt_without_tokens_is_refused():
    with pytest.raises(ValueError, match="prompt 1 of 2 has no tokens"):
        sample(sharp(MODELS["qwen2"]), [PROMPTS[0], PROMPTS[0][:0]], 2, SamplingParams(4), END, seed=0)


@pytest.mark.parametrize("trained", [True, False])
def test_autocast_casts_each_weight_once_whether_it_is_trained_or_not(trained):
    model, cast = sharp(MODELS["qwen2"], torch.float32).requires_grad_(trained), []
    weights = {p.data_ptr(): name for name, p in model.named_parameters()}

    class Casts(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten._to_copy.default:
                cast.append(weights.get(args[0].data_ptr()))
            return function(*args, **(kwargs or {}))

    with torch.autocast("cpu", torch.bfloat16), Casts():
        sample(model, PROMPTS, 2, SamplingParams(5), (), seed=0)
    found = [name for name in cast if name]
    assert len(found) == len(set(found)) == 2 * (4 + 3 + 3) + 1  # matrices and biases of two layers, and the head
    assert all(p.requires_grad == trained for p in model.parameters())


def test_in_bfloat16_the_sampler_nearly_equals_the_whole_model():
    """Everything is rounded to 8 bits, in another order: a few hundredths of a nat on logits of a few units."""
    model = sharp(MODELS["qwen2"], torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.4 if parameter.dim() >= 2 else 1.0)
    with torch.autocast("cpu", torch.bfloat16):
        rollout = sample(model, PROMPTS, 8, SamplingParams(6), END, seed=1)
        for prompt, tokens, found in rows(rollout):
            z = torch.tensor(logits_before(model, prompt, tokens)).log_softmax(-1)
            assert found == pytest.approx(z[range(len(tokens)), tokens].tolist(), abs=0.1)


def test_a_quantile_that_rounds_to_the_total_is_in_the_last_part_with_a_positive_sum():
    below = torch.tensor([[0.0, 0.5, 2.0, 2.0, 2.0]], dtype=torch.float64)
    part, within = _locate(below, torch.tensor([1.0], dtype=torch.float64))
    assert part.tolist() == [2] and within.tolist() == [1.0]
