"""A key-value cache with room to grow: a step writes in place instead of copying the whole."""

from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

_ROOM = 64
"""Columns added at least when the buffer is full."""


class RoomyLayer(DynamicLayer):
    """Keys and values of one layer in a buffer larger than what it holds.

    A sliding-window layer keeps its full history here: the model's mask hides what lies outside
    the window.
    """

    def __init__(self, *, is_sliding: bool = False) -> None:
        """Start empty."""
        super().__init__()
        self.is_sliding = is_sliding
        self.length = 0
        self._buffers: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs):  # noqa: ANN201
        """Append states; give all of them, as views of the buffers."""
        end = self.length + key_states.shape[-2]
        if not self._buffers or end > self._buffers[0].shape[-2]:
            self._grow(key_states, value_states, end)
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, self.length : end] = states
        self.length = end
        return self._views()

    def _grow(self, keys: Tensor, values: Tensor, needed: int) -> None:
        """Make room for as much again as there is, at least `_ROOM` columns."""
        room = needed + max(_ROOM, needed // 2)
        old = self._views() if self._buffers else None
        self._buffers = [s.new_empty(*s.shape[:2], room, s.shape[3]) for s in (keys, values)]
        if old is not None:
            for buffer, states in zip(self._buffers, old, strict=True):
                buffer[:, :, : self.length] = states
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    def _views(self) -> tuple[Tensor, Tensor]:
        self.keys, self.values = (buffer[:, :, : self.length] for buffer in self._buffers)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Count the positions held."""
        return self.length

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows (or repeat them), in the order given."""
        held = [buffer[:, :, : self.length] for buffer in self._buffers]
        rows = len(indices)
        self._buffers = [b.new_empty(rows, *b.shape[1:]) for b in self._buffers]
        for buffer, states in zip(self._buffers, held, strict=True):
            buffer[:, :, : self.length] = states[indices]
        self._views()


def make_cache(model) -> Cache:
    """Give an empty cache for a model: roomy where its layers are plain attention."""
    usual = DynamicCache(config=model.config.get_text_config())
    plain = (DynamicLayer, DynamicSlidingWindowLayer)
    if not usual.layers or any(type(layer) not in plain for layer in usual.layers):
        return usual
    return Cache(layers=[RoomyLayer(is_sliding=layer.is_sliding) for layer in usual.layers])


def select_rows(cache: Cache, rows: Tensor) -> None:
    """Keep some rows of a cache (or repeat them), in the order given."""
    for layer in cache.layers:
        layer.batch_select_indices(rows)
