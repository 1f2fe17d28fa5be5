"""Token weights against loops, and their invariance to micro-batches."""

import pytest
import torch

from grape_rl.maths.reduction import token_weight

MASK = torch.tensor(
    [
        [1, 1, 0, 1, 0],  # a gap: a tool's answer between
        [1, 0, 0, 0, 0],
        [0, 0, 0, 0, 0],  # a row that is left out
        [1, 1, 1, 1, 1],
        [0, 0, 1, 1, 0],
    ]
).bool()
FIELD = torch.tensor([[(3 * i + 1) * (t - 1.7) for t in range(5)] for i in range(5)], dtype=torch.float64)
MAX_TOKENS = 7


def averaged(reduction):
    """Σ weight · field by loops over rows of Python numbers."""
    rows = [[FIELD[i, t].item() for t in range(5) if MASK[i, t]] for i in range(5)]
    rows = [row for row in rows if row]
    if reduction == "token":
        flat = [value for row in rows for value in row]
        return sum(flat) / len(flat)
    if reduction == "sequence":
        means = [sum(row) / len(row) for row in rows]
        return sum(means) / len(means)
    totals = [sum(row) / MAX_TOKENS for row in rows]
    return sum(totals) / len(totals)


@pytest.mark.parametrize("reduction", ["token", "sequence", "fixed_length"])
def test_weights_against_a_loop(reduction):
    weight = token_weight(MASK, reduction, MAX_TOKENS, torch.float64)
    assert weight.dtype == torch.float64
    assert (weight * FIELD).sum().item() == pytest.approx(averaged(reduction), rel=1e-14)  # float64, 11 numbers
    assert (weight[~MASK] == 0).all()
    assert (weight[MASK] > 0).all()


def test_three_reductions_differ():
    assert len({round(averaged(reduction), 6) for reduction in ("token", "sequence", "fixed_length")}) == 3


@pytest.mark.parametrize("reduction", ["token", "sequence"])
def test_a_mean_of_ones_is_one(reduction):
    assert token_weight(MASK, reduction, dtype=torch.float64).sum().item() == pytest.approx(1, rel=1e-15)


def test_fixed_length_is_a_mean_for_full_responses_and_less_for_shorter_ones():
    full = torch.ones(3, 4, dtype=torch.bool)
    assert torch.equal(token_weight(full, "fixed_length", 4), token_weight(full, "token"))
    weight = token_weight(MASK, "fixed_length", MAX_TOKENS)
    assert weight[MASK].unique().tolist() == pytest.approx([1 / (4 * MAX_TOKENS)])


@pytest.mark.parametrize("reduction", ["token", "sequence", "fixed_length"])
def test_rows_without_tokens_change_nothing(reduction):
    with_empty = token_weight(MASK, reduction, MAX_TOKENS)
    without = token_weight(MASK[[0, 1, 3, 4]], reduction, MAX_TOKENS)
    assert torch.equal(with_empty[[0, 1, 3, 4]], without)


@pytest.mark.parametrize("reduction", ["token", "sequence", "fixed_length"])
def test_an_empty_mask_has_zero_weights(reduction):
    assert torch.equal(token_weight(torch.zeros(2, 3, dtype=torch.bool), reduction, 5), torch.zeros(2, 3))


@pytest.mark.parametrize("reduction", ["token", "sequence", "fixed_length"])
def test_padding_changes_nothing(reduction):
    wide = torch.cat([MASK, torch.zeros(5, 4, dtype=torch.bool)], dim=1)
    assert torch.equal(token_weight(wide, reduction, MAX_TOKENS)[:, :5], token_weight(MASK, reduction, MAX_TOKENS))
