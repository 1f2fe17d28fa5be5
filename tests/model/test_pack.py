"""Packed rows: what goes into one, and that every sequence in it is read as if it stood alone."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import MODELS, alone, exactness, gradient, sequences, sharp

from grape_rl.model.load import frozen, readied
from grape_rl.model.logprobs import lengths, logprobs, microbatches, selected
from grape_rl.model.pack import PACKS, first_fit, laid_out, packed_batches, packs
from grape_rl.types import Sequences

ALONE = {"input_ids", "position_ids", "use_cache"}
CPU = torch.device("cpu")
# Whole sequences of 9, 13, 7, 8, 3, 3 and 2 positions, longer and shorter than the sliding windows (4): 4 rows of 13.
APART = sequences([3, 9, 6, 5, 1, 2, 2], [[7], [5], [2], [4], [3], [2], [1]])
everything = settings(max_examples=100, deadline=None, derandomize=True)
few = settings(max_examples=6, deadline=None, derandomize=True)
sizes = st.lists(st.integers(1, 30), min_size=1, max_size=40)


def packing(model):
    """The model, packing whether it was proved to or not."""
    setattr(model, PACKS, True)
    return model


def widths(model, monkeypatch):
    """The shape of what the trunk reads, call by call."""
    seen = []
    run = model.base_model.forward

    def counted(*given, **named):
        ids = named["input_ids"] if "input_ids" in named else given[0]
        seen.append(tuple(ids.shape))
        return run(*given, **named)

    monkeypatch.setattr(model.base_model, "forward", counted)
    return seen


@everything
@given(sizes, st.integers(1, 40))
def test_bins_hold_each_length_once_and_no_more_than_their_capacity_unless_it_is_alone(found, capacity):
    bins = first_fit(found, capacity)
    assert sorted(i for members in bins for i in members) == list(range(len(found)))
    for members in bins:
        assert sum(found[i] for i in members) <= capacity or len(members) == 1
    for later in range(1, len(bins)):
        first = found[bins[later][0]]
        before = [sum(found[i] for i in bins[b] if found[i] >= first) for b in range(later)]
        assert all(held + first > capacity for held in before), "a new bin, and there was room"


@everything
@given(sizes, st.integers(1, 120))
def test_packed_batches_hold_each_length_once_within_the_budget(found, budget):
    batches = packed_batches(found, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(found)))
    for batch in batches:
        own = [found[i] for i in batch]
        assert len(batch) == 1 or len(first_fit(own, max(own))) * max(own) <= budget
    assert all(found[a[-1]] >= found[b[0]] for a, b in itertools.pairwise(batches)), "similar lengths"
    for batch, following in itertools.pairwise(batches):
        more = [found[i] for i in [*batch, following[0]]]
        assert len(first_fit(more, more[0])) * more[0] > budget, "one more would have fit"


def test_rows_and_places_spelled_out():
    found = laid_out([torch.tensor([5, 6]), torch.tensor([7]), torch.tensor([8, 9, 4])], [[2], [0, 1]])
    tokens, places, row, start = (part.tolist() for part in found)
    assert tokens == [[8, 9, 4], [5, 6, 7]]
    assert places == [[0, 1, 2], [0, 1, 0]]
    assert (row, start) == ([1, 1, 0], [0, 2, 0])


@pytest.mark.parametrize("attention", ["its own", "eager"])
@pytest.mark.parametrize("name", MODELS)
def test_each_sequence_of_a_row_is_read_alone(name, attention, monkeypatch):
    dtype, tolerance = exactness(name)
    model = packing(sharp(MODELS[name], dtype))

    if attention == "eager":
        model.set_attn_implementation(attention)
        tolerance = 2e-5  # its softmax is float32
    seen = widths(model, monkeypatch)
    with torch.no_grad():
        found = logprobs(model, APART, 0.7)
        assert seen == [(4, 13)], "seven sequences in four rows"
        logp, entropy = alone(model, APART, 0.7)
    torch.testing.assert_close(found.logp, logp, rtol=0, atol=tolerance)
    torch.testing.assert_close(found.entropy, entropy, rtol=0, atol=tolerance)
    assert logp[APART.mask].std() > 0.2


@pytest.mark.parametrize("name", MODELS)
def test_packing_changes_no_gradient(name):
    dtype, tolerance = exactness(name)
    model = sharp(MODELS[name], dtype)
    weight = torch.linspace(-1, 2, APART.mask.numel(), dtype=dtype).reshape(APART.mask.shape)

    def found():
        outputs = logprobs(model, APART, 0.7)
        loss = (weight * outputs.logp + weight.flip(0) * outputs.entropy).sum()
        return loss.detach(), gradient(model, loss)

    loss, expected = found()
    packing(model)
    packed_loss, packed = found()
    torch.testing.assert_close(packed_loss, loss, rtol=1e-10 if dtype == torch.float64 else 1e-6, atol=0)
    if not name.startswith("gpt2"):  # the others' norms pass gradients through float32
        tolerance = 1e-6
    torch.testing.assert_close(packed, expected, rtol=0, atol=tolerance * expected.abs().max().item())


@few
@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=6),
    st.sampled_from([0.0, 0.5]),
    st.integers(1, 60),
    st.integers(0, 2**16),
)
def test_packed_micro_batches_of_any_budget_add_up_to_the_whole(shape, holes, budget, seed):
    """With gaps in what is learned: a conversation's other turns."""
    plain = sequences([p for p, _ in shape], [[t] for _, t in shape], seed)
    written = torch.rand(plain.mask.shape, generator=torch.Generator().manual_seed(seed)) >= holes
    what = Sequences(plain.prompts, plain.tokens, plain.mask & written, plain.group)
    weight = torch.linspace(-1, 2, what.mask.numel(), dtype=torch.float64).reshape(what.mask.shape)
    model = POLICY

    def loss(part, weight):
        outputs = logprobs(model, part, 0.7)
        return (weight * outputs.logp + 0.3 * weight.square() * outputs.entropy).sum()

    setattr(model, PACKS, False)
    expected = loss(what, weight)
    setattr(model, PACKS, True)
    total = torch.zeros((), dtype=torch.float64)
    for rows in microbatches(what, budget, packed=True):
        part = selected(what, rows)
        prompts = [part.prompts[g] for g in part.group.tolist()]
        spans = [len(p) + max(1, n) - 1 for p, n in zip(prompts, lengths(part.mask).tolist(), strict=True)]
        assert len(rows) == 1 or len(first_fit(spans, max(spans))) * max(spans) <= budget
        total = total + loss(part, weight[rows][:, : part.tokens.shape[1]])
    torch.testing.assert_close(total, expected, rtol=1e-10, atol=1e-10)
    found, wanted = gradient(model, total), gradient(model, expected)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10 * max(1.0, wanted.abs().max().item()))


POLICY = sharp(MODELS["gpt2, absolute"])  # float64 throughout


def test_rows_that_share_a_prompt_still_share_it():
    model, what = packing(sharp(MODELS["qwen2"])), sequences([3, 9], [[7, 2], [5]])
    expected, _ = alone(model, what, 1.0)
    torch.testing.assert_close(logprobs(model, what).logp, expected, rtol=0, atol=1e-10)
    assert [r.tolist() for r in microbatches(what, 1000, packed=True)] == [r.tolist() for r in microbatches(what, 1000)]


def test_equal_lengths_need_no_places(monkeypatch):
    model = packing(sharp(MODELS["qwen2"]))
    seen = widths(model, monkeypatch)
    logprobs(model, sequences([3, 3], [[4], [4]]))
    assert seen == [(2, 6)]


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_reads_packed_rows_apart_is_found_out(name):
    model = sharp(MODELS[name], torch.float32)
    assert not packs(model), "unproved"
    assert packs(readied(model, CPU)) and packs(frozen(model))


def test_a_model_that_does_not_runs_padded(monkeypatch):
    model = sharp(MODELS["gpt2, absolute"], torch.float32)
    run = model.base_model.forward

    def deaf(*given, **named):
        """Takes places where it is told of padding too, but no places by themselves."""
        return run(*given, **{k: v for k, v in named.items() if k != "position_ids" or not named.keys() <= ALONE})

    monkeypatch.setattr(model.base_model, "forward", deaf)
    assert not packs(readied(model, CPU))
    seen = widths(model, monkeypatch)
    expected, _ = alone(model, APART, 1.0)
    seen.clear()
    torch.testing.assert_close(logprobs(model, APART).logp, expected, rtol=0, atol=2e-5)
    assert seen == [(7, 13)]


def test_a_model_that_attends_by_chunks_runs_padded():
    model = sharp(MODELS["llama"], torch.float32)
    model.config.attention_chunk_size = 8
    assert not packs(readied(model, CPU))
