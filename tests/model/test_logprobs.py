"""The forward pass against one plain pass per row, on real architectures, and its invariances."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import MODELS, VOCABULARY, alone, apart, exactness, gradient, sequences, sharp

from grape_rl.model.logprobs import compute_logprobs, microbatches, row_lengths, select_rows
from grape_rl.types import Sequences

# Prompts and responses both shorter and longer than the sliding windows (4), a response of one token, a group of one.
MIXED = sequences([3, 9, 6], [[7, 2], [5, 9, 1], [4]])


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("layout", [lambda given: given, apart], ids=["shared", "unshared"])
@pytest.mark.parametrize("name", MODELS)
def test_both_layouts_equal_the_model_on_each_row_alone(name, layout, temperature):
    dtype, tolerance = exactness(name)
    model = sharp(MODELS[name], dtype)
    with torch.no_grad():
        found = compute_logprobs(model, layout(MIXED), temperature)
        logp, entropy = alone(model, MIXED, temperature)
    torch.testing.assert_close(found.logp, logp, rtol=0, atol=tolerance)
    torch.testing.assert_close(found.entropy, entropy, rtol=0, atol=tolerance)
    assert logp[MIXED.mask].std() > 0.2, "distributions so uniform that a mistake would not show"


@pytest.mark.parametrize("name", MODELS)
def test_both_layouts_give_all_parameters_the_plain_gradient(name):
    dtype, tolerance = exactness(name)
    if not name.startswith("gpt2"):  # GPT-2 is float64 throughout; the others' norms pass gradients through float32
        tolerance = 1e-5
    model = sharp(MODELS[name], dtype)
    weight = torch.linspace(-1, 2, MIXED.mask.numel(), dtype=dtype).reshape(MIXED.mask.shape)

    def gradient_of(logp, entropy):
        return gradient(model, (weight * logp + weight.flip(0) * entropy).sum())

    expected = gradient_of(*alone(model, MIXED, 0.7))
    largest = expected.abs().max().item()
    assert largest > 1
    for layout in (MIXED, apart(MIXED)):
        outputs = compute_logprobs(model, layout, 0.7)
        torch.testing.assert_close(
            gradient_of(outputs.logp, outputs.entropy), expected, rtol=0, atol=tolerance * largest
        )


def test_in_float32_the_difference_is_rounding():
    model = sharp(MODELS["qwen2"], torch.float32)
    with torch.no_grad():
        expected, _ = alone(model, MIXED, 1.0)
        for layout in (MIXED, apart(MIXED)):  # sums of tens of numbers of size 10 at 1e-7 each
            torch.testing.assert_close(compute_logprobs(model, layout).logp, expected, rtol=0, atol=2e-5)


def test_a_single_column_needs_no_second_pass():
    model, given = sharp(MODELS["qwen2"]), sequences([3, 5], [[1, 1], [1]])
    expected, _ = alone(model, given, 1.0)
    torch.testing.assert_close(compute_logprobs(model, given).logp, expected, rtol=0, atol=1e-10)


def test_unmasked_text_is_read_but_not_scored():
    model, mask = sharp(MODELS["qwen2"]), MIXED.mask.clone()
    mask[:, 1:3] = False
    given = Sequences(MIXED.prompts, MIXED.tokens, mask, MIXED.group)
    expected, _ = alone(model, given, 1.0)
    found = compute_logprobs(model, given).logp
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    assert torch.equal(found[~mask], torch.zeros(int((~mask).sum()), dtype=torch.float64))


def test_a_prompt_without_tokens_is_refused():
    empty = Sequences((torch.tensor([3]), torch.tensor([], dtype=torch.long)), *_rows(2))
    with pytest.raises(ValueError, match="prompt 1 of 2 has no tokens"):
        compute_logprobs(sharp(MODELS["qwen2"]), empty)


def _rows(n):
    return torch.full((n, 2), 5), torch.ones(n, 2, dtype=torch.bool), torch.arange(n)


# Invariances of a loss and its gradient -------------------------------------------------------------------------

POLICY = sharp(MODELS["gpt2, absolute"])  # float64 throughout, and its position embeddings are absolute
no_deadline = settings(deadline=None)
few = settings(max_examples=12, deadline=None)  # each example runs the model forward and backward


plans = st.tuples(
    st.lists(st.tuples(st.integers(1, 7), st.lists(st.integers(1, 6), min_size=1, max_size=3)), min_size=1, max_size=4),
    st.sampled_from([0.0, 0.4]),
    st.integers(0, 2**16),
)
"""Up to 4 prompts with up to 3 rows each; the fraction of tokens that the policy did not write; a seed."""


def planned(plan):
    groups, holes, seed = plan
    given = sequences([prompt for prompt, _ in groups], [responses for _, responses in groups], seed)
    written = torch.rand(given.mask.shape, generator=torch.Generator().manual_seed(seed)) >= holes
    return Sequences(given.prompts, given.tokens, given.mask & written, given.group)


def coefficients(given):
    """A different weight for each token, like advantages."""
    return torch.linspace(-1, 2, given.tokens.numel(), dtype=torch.float64).reshape(given.tokens.shape)


def loss(given, weight):
    outputs = compute_logprobs(POLICY, given, 0.7)
    return (weight * outputs.logp + 0.3 * weight.square() * outputs.entropy).sum()


def assert_same(actual, expected):
    """Loss and gradient are equal to 1e-10 of their size: float64 sums in another order."""
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    actual, expected = gradient(POLICY, actual), gradient(POLICY, expected)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10 * max(1.0, expected.abs().max().item()))


@few
@given(plans, st.integers(1, 5), st.integers(3, VOCABULARY - 1))
def test_padding_on_the_right_changes_nothing(plan, columns, junk):
    given = planned(plan)

    def wider(x, value):
        return torch.nn.functional.pad(x, (0, columns), value=value)

    padded = Sequences(given.prompts, wider(given.tokens, junk), wider(given.mask, False), given.group)
    weight = coefficients(given)
    assert_same(loss(padded, wider(weight, 7.0)), loss(given, weight))


@few
@given(plans, st.randoms(use_true_random=False))
def test_the_order_of_rows_and_prompts_changes_nothing(plan, random):
    given = planned(plan)
    rows, prompts = list(range(len(given.tokens))), list(range(len(given.prompts)))
    random.shuffle(rows)
    random.shuffle(prompts)
    place = torch.tensor(prompts).argsort()
    moved = Sequences(
        tuple(given.prompts[p] for p in prompts), given.tokens[rows], given.mask[rows], place[given.group[rows]]
    )
    weight = coefficients(given)
    assert_same(loss(moved, weight[rows]), loss(given, weight))


@few
@given(plans, st.randoms(use_true_random=False))
def test_sharing_a_prompt_or_repeating_it_changes_nothing(plan, random):
    given = planned(plan)
    twice = given.group + torch.tensor([random.choice([0, len(given.prompts)]) for _ in given.tokens])
    repeated = Sequences(given.prompts * 2, given.tokens, given.mask, twice)
    weight = coefficients(given)
    assert_same(loss(repeated, weight), loss(given, weight))
    assert_same(loss(apart(given), weight), loss(given, weight))


@few
@given(plans, st.integers(1, 80))
def test_microbatches_of_any_budget_add_up_to_the_whole(plan, budget):
    given = planned(plan)
    weight = coefficients(given)
    total = torch.zeros((), dtype=torch.float64)
    for rows in microbatches(given, budget):
        part = select_rows(given, rows)
        total = total + loss(part, weight[rows][:, : part.tokens.shape[1]])
    assert_same(total, loss(given, weight))


# Micro-batches without a model ----------------------------------------------------------------------------------------


def cost(given, rows):
    """Positions of the prompts and the responses, counted one by one."""
    prompts = [given.prompts[g] for g in {int(given.group[row]) for row in rows}]
    last = [max((t + 1 for t in range(given.mask.shape[1]) if given.mask[row, t]), default=0) for row in rows]
    return sum(len(p) for p in prompts) + sum(last)


@settings(max_examples=100, deadline=None)
@given(plans, st.integers(1, 80))
def test_microbatches_take_each_row_once_within_the_budget_and_split_only_groups_that_are_over_it(plan, budget):
    given = planned(plan)
    parts = [rows.tolist() for rows in microbatches(given, budget)]
    assert sorted(row for part in parts for row in part) == list(range(len(given.tokens)))
    for part in parts:
        assert len(part) == 1 or cost(given, part) <= budget
    for g in given.group.unique().tolist():
        members = (given.group == g).nonzero().flatten().tolist()
        if cost(given, members) <= budget:
            assert sum(bool(set(part) & set(members)) for part in parts) == 1


def test_microbatches_run_similar_lengths_together():
    given = sequences([2, 2, 2, 2], [[9, 9], [1, 1], [8, 8], [1, 1]])
    parts = [sorted(rows.tolist()) for rows in microbatches(given, 22)]
    assert parts == [[2, 3, 6, 7], [4, 5], [0, 1]]


def test_everything_within_the_budget_runs_at_once():
    assert len(list(microbatches(MIXED, cost(MIXED, range(6))))) == 1
    assert len(list(microbatches(MIXED, cost(MIXED, range(6)) - 1))) == 2


@no_deadline
@given(plans, st.data())
def test_selected_rows_are_the_same_rows_trimmed(plan, data):
    given = planned(plan)
    rows = data.draw(st.lists(st.sampled_from(range(len(given.tokens))), min_size=1, unique=True))
    found = select_rows(given, torch.tensor(rows))
    width = found.tokens.shape[1]
    assert width == max(1, *(row_lengths(given.mask)[row].item() for row in [*rows, rows[0]]))
    assert {tuple(p.tolist()) for p in found.prompts} == {tuple(given.prompts[given.group[r]].tolist()) for r in rows}
    assert len(found.prompts) == len({int(given.group[r]) for r in rows})
    for i, row in enumerate(rows):
        assert torch.equal(found.prompts[found.group[i]], given.prompts[given.group[row]])
        assert torch.equal(found.tokens[i], given.tokens[row, :width])
        assert torch.equal(found.mask[i], given.mask[row, :width])
        assert not given.mask[row, width:].any()


def test_lengths_run_to_the_last_masked_token():
    mask = torch.tensor([[True, False, True, False], [False, False, False, False], [True, True, True, True]])
    assert row_lengths(mask).tolist() == [3, 0, 4]
