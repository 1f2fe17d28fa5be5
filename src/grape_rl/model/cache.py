"""A key-value cache for sampling that has its room from the start, so that a new token copies nothing but itself."""

from typing import Any

from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class _RoomyLayer(DynamicLayer):
    """A layer's keys and values at the front of a longer buffer. transformers' own layer copies all of them a token."""

    def __init__(self, keys: Float[Tensor, "b h t d"], values: Float[Tensor, "b h t d"], room: int) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        b, h, t, _ = keys.shape
        self._keys = keys.new_empty(b, h, t + room, keys.shape[-1])
        self._values = values.new_empty(b, h, t + room, values.shape[-1])
        self._keys[:, :, :t], self._values[:, :, :t] = keys, values
        self._show(t)

    def _show(self, length: int) -> None:
        self.keys, self.values = self._keys[:, :, :length], self._values[:, :, :length]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        start = self.get_seq_length()
        stop = start + key_states.shape[-2]
        self._keys[:, :, start:stop], self._values[:, :, start:stop] = key_states, value_states
        self._show(stop)
        return self._keys[:, :, :stop], self._values[:, :, :stop]

    def batch_select_indices(self, indices: Int[Tensor, " n"]) -> None:
        self._keys, self._values = self._keys[indices], self._values[indices]
        self._show(self.get_seq_length())


def roomy(cache: Cache, rows: Int[Tensor, " n"], room: int) -> Cache:
    """The cache's ``rows``, each as often as it is named, with room for ``room`` more tokens.

    Layers that keep only a window, or something else than all keys and values, stay as they are. No gradient flows
    through a layer that was given room: it is written in place.
    """
    cache.batch_select_indices(rows)
    cache.layers = [
        _RoomyLayer(layer.keys, layer.values, room)  # pyright: ignore[reportArgumentType]
        if type(layer) is DynamicLayer
        else layer
        for layer in cache.layers
    ]
    return cache
