"""Statistics within groups against loops."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grape_rl.maths.groups import group_count, group_mean, group_rank

NAN = math.nan
unhurried = settings(deadline=None)  # the first call loads things

numbers = st.one_of(st.integers(-5000, 5000).map(lambda i: i / 1000), st.sampled_from([0.1, 0.7]))
ids = st.sampled_from([-3, 0, 8, 100])
batches = st.lists(st.tuples(st.one_of(st.just(NAN), numbers), ids), min_size=1, max_size=12)


@unhurried
@given(batches)
def test_group_rank_against_a_loop(batch):
    expected = []
    keys = [(-math.inf if math.isnan(r) else r, -j) for j, (r, _) in enumerate(batch)]
    for i, (_, g) in enumerate(batch):
        expected.append(sum(keys[j] > keys[i] for j in range(len(batch)) if batch[j][1] == g))
    assert group_rank(torch.tensor([r for r, _ in batch]), torch.tensor([g for _, g in batch])).tolist() == expected


def test_group_mean_and_count_work_column_by_column():
    value = torch.tensor([[0.1, NAN], [0.1, 2.0], [0.1, NAN], [7.0, NAN]], dtype=torch.float64)
    group = torch.tensor([4, 4, 4, 2])
    found = group_mean(value, group).tolist()
    assert found[:3] == [[0.1, 2.0]] * 3  # exactly: the mean of equal numbers is that number
    assert found[3][0] == 7.0 and math.isnan(found[3][1])
    assert group_count(value, group).tolist() == [[3, 1], [3, 1], [3, 1], [1, 0]]
