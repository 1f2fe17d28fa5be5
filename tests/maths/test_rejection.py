"""Rejection sampling: the best responses of each group, with and without deduplication, against loops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grape_rl.maths.rejection import accepted, best_of_group

NAN = math.nan
unhurried = settings(deadline=None)  # the first call loads things

numbers = st.one_of(st.integers(-5000, 5000).map(lambda i: i / 1000), st.sampled_from([0.1, 0.7]))
ids = st.sampled_from([-3, 0, 8, 100])
batches = st.lists(st.tuples(st.one_of(st.just(NAN), numbers), ids), min_size=1, max_size=12)

eighths = st.integers(0, 40).map(lambda i: i / 8)  # exact in binary, so that equal is equal
texts = st.lists(st.tuples(st.one_of(st.just(NAN), eighths), st.sampled_from([-3, 0]), st.integers(0, 3)), max_size=12)


def tensors(batch):
    return torch.tensor([r for r, _ in batch], dtype=torch.float64), torch.tensor([g for _, g in batch])


def close(actual, expected):
    torch.testing.assert_close(actual.tolist(), expected, rtol=0, atol=0, equal_nan=True)


@unhurried
@given(batches, st.integers(1, 3), st.one_of(st.just(-math.inf), numbers))
def test_best_of_group_against_a_loop(batch, keep, threshold):
    expected = [NAN] * len(batch)
    for g in {g for _, g in batch}:
        valid = [i for i, (r, other) in enumerate(batch) if other == g and not math.isnan(r)]
        valid.sort(key=lambda i: (-batch[i][0], i))
        for i in valid[:keep]:
            if batch[i][0] >= threshold:
                expected[i] = 1.0
    close(best_of_group(*tensors(batch), keep, threshold), expected)


def test_best_of_group_keeps_the_first_of_equal_rewards():
    """Enough of them to expose an unstable sort."""
    group = torch.arange(1000) % 3
    found = best_of_group(torch.full((1000,), 0.1), group, keep=2)
    assert (~found.isnan()).nonzero()[:, 0].tolist() == [0, 1, 2, 3, 4, 5]


def test_best_of_group_raises_if_nothing_would_be_kept():
    reward, group = torch.zeros(2), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="keep is 0"):
        best_of_group(reward, group, keep=0)
    with pytest.raises(ValueError, match="threshold is NaN"):
        best_of_group(reward, group, threshold=NAN)


@unhurried
@given(texts, st.integers(1, 3), st.one_of(st.just(-math.inf), eighths), st.booleans())
def test_accepted_against_a_loop(batch, keep, threshold, deduplicate):
    """One text may have several rewards, from a noisy grader: the first valid one counts."""
    expected = [NAN] * len(batch)
    for g in (-3, 0):
        candidates, seen = [], set()
        for i, (r, other, text) in enumerate(batch):
            if other == g and not math.isnan(r) and not (deduplicate and text in seen):
                candidates.append(i)
                seen.add(text)
        candidates.sort(key=lambda i: (-batch[i][0], i))
        for i in candidates[:keep]:
            if batch[i][0] >= threshold:
                expected[i] = 1.0
    reward = torch.tensor([r for r, *_ in batch], dtype=torch.float64)
    group = torch.tensor([g for _, g, _ in batch], dtype=torch.long)
    response = torch.tensor([10 * (g + 3) + t for _, g, t in batch], dtype=torch.long)
    close(accepted(reward, group, response, keep, threshold, deduplicate), expected)
