"""The cache with room says what transformers' own says, and copies nothing as it grows."""

import torch
from transformers import DynamicCache

from grape_rl.model.cache import roomy


def filled(b: int, t: int) -> DynamicCache:
    cache = DynamicCache()
    generator = torch.Generator().manual_seed(0)
    for layer in range(2):
        cache.update(torch.randn(b, 2, t, 4, generator=generator), torch.randn(b, 2, t, 4, generator=generator), layer)
    return cache


def test_rows_are_chosen_and_tokens_added_as_in_transformers_own_cache() -> None:
    own, ours = filled(3, 5), filled(3, 5)
    rows, keep = torch.tensor([0, 0, 2, 1]), torch.tensor([3, 1])
    own.batch_select_indices(rows)
    ours = roomy(ours, rows, room=6)
    for step in range(6):
        if step == 3:
            own.batch_select_indices(keep)
            ours.batch_select_indices(keep)
        for layer in range(2):
            b = 4 if step < 3 else 2
            key, value = torch.full((b, 2, 1, 4), step + 0.5), torch.full((b, 2, 1, 4), layer - step * 1.0)
            expected, found = own.update(key, value, layer), ours.update(key, value, layer)
            assert torch.equal(expected[0], found[0]) and torch.equal(expected[1], found[1])
        assert ours.get_seq_length() == own.get_seq_length() == 6 + step


def test_a_token_is_written_into_the_room_that_is_there() -> None:
    cache = roomy(filled(2, 3), torch.arange(2), room=4)
    before = cache.layers[0].keys.data_ptr()
    for _ in range(4):
        cache.update(torch.zeros(2, 2, 1, 4), torch.zeros(2, 2, 1, 4), 0)
    assert cache.layers[0].keys.data_ptr() == before and cache.layers[0].keys.shape[2] == 7
