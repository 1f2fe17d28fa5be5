"""The order of data rows over steps, and derived seeds."""

import pytest

from grape_rl.data.order import derive_seed, rows_of_step


@pytest.mark.parametrize(("count", "per_step"), [(7, 3), (4, 4), (3, 7), (1, 2)])
def test_every_row_comes_once_before_any_comes_again(count, per_step):
    drawn = [row for step in range(3 * count) for row in rows_of_step(count, per_step, step, seed=1)]
    epochs = [drawn[i : i + count] for i in range(0, len(drawn), count)]
    assert len(epochs) == 3 * per_step
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    if count > 3:
        assert len({tuple(epoch) for epoch in epochs}) > 1, "each epoch has an order of its own"


def test_a_step_draws_the_same_whenever_it_is_asked():
    assert rows_of_step(50, 8, 9, seed=2) == rows_of_step(50, 8, 9, seed=2)
    assert rows_of_step(50, 8, 9, seed=2) != rows_of_step(50, 8, 9, seed=3)


def test_seeds_of_purposes_steps_and_runs_are_all_different_and_fit_torch():
    found = {derive_seed(seed, step, p) for seed in range(5) for step in range(20) for p in ("order", "sample", "x")}
    assert len(found) == 300
    assert all(0 <= seed < 2**63 for seed in found)
    assert derive_seed(1, 11, "x") != derive_seed(11, 1, "x")
