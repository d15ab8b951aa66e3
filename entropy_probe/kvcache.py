"""Room to grow: a key-value cache that a step writes in place, and whose rows come and go.

Columns are positions, aligned on the right: every row's newest state is in the last column, and
what a row does not fill, on the left, is hidden by the attention mask. So a row that ends can
leave and another take its slot, whatever their lengths.
"""

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

_ROOM = 64
"""Columns added at least when a buffer is full."""


class Columns:
    """A growing tensor ``[rows, ..., columns, d]``: appends in place, right-aligned."""

    def __init__(self) -> None:
        """Start empty."""
        self.length = 0
        self._buffer: Tensor | None = None

    def append(self, states: Tensor) -> Tensor:
        """Add columns at the end; give all of them, as a view."""
        end = self.length + states.shape[-2]
        if self._buffer is None or end > self._buffer.shape[-2]:
            old = None if self._buffer is None else self.view()
            self._buffer = _room_for(states, states.shape[0], end)
            if old is not None:
                self._buffer[..., : self.length, :] = old
        self._buffer[..., self.length : end, :] = states
        self.length = end
        return self.view()

    def view(self) -> Tensor:
        """Give what is held."""
        return self._buffer[..., : self.length, :]

    def splice(self, rows: Tensor, columns: int, other: "Columns | None", others: Tensor) -> None:
        """Keep some rows and the newest columns, and take rows of another, right-aligned.

        Args:
            rows: rows kept, in order.
            columns: columns kept at most, the newest.
            other: where further rows come from, None for none.
            others: its rows taken (repeats allowed), behind the rows kept.
        """
        parts = [(self.view()[..., -min(columns, self.length) :, :], rows)] if self.length else []
        parts += [(other.view(), others)] if other is not None and other.length else []
        width = max((part.shape[-2] for part, _ in parts), default=0)
        if not parts:
            return
        total = len(rows) + len(others)
        buffer = _room_for(parts[0][0], total, width)
        buffer[..., :width, :] = 0  # hidden by the mask, but 0 * NaN would not be
        start = 0 if self.length else len(rows)
        for part, wanted in parts:
            end = start + len(wanted)
            buffer[start:end, ..., width - part.shape[-2] : width, :] = part[wanted]
            start = end
        self._buffer, self.length = buffer, width


class RoomyLayer(DynamicLayer):
    """Keys and values of one layer, in buffers with room.

    A sliding-window layer keeps its full history here: the model's mask hides what lies outside
    the window.
    """

    def __init__(self, *, is_sliding: bool = False) -> None:
        """Start empty."""
        super().__init__()
        self.is_sliding = is_sliding
        self.parts = (Columns(), Columns())

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs):  # noqa: ANN201
        """Append states; give all of them, as views of the buffers."""
        self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
        self.keys, self.values = (
            part.append(states)
            for part, states in zip(self.parts, (key_states, value_states), strict=True)
        )
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Count the positions held."""
        return self.parts[0].length

    def splice(
        self, rows: Tensor, columns: int, other: "RoomyLayer | None", others: Tensor
    ) -> None:
        """Keep some rows and the newest columns, and take rows of another layer."""
        for i, part in enumerate(self.parts):
            part.splice(rows, columns, None if other is None else other.parts[i], others)
        self.is_initialized = True
        self.keys, self.values = (part.view() for part in self.parts)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows (or repeat them), in the order given."""
        self.splice(indices, self.get_seq_length(), None, indices[:0])


def make_cache(model) -> Cache:
    """Give an empty cache for a model: roomy where its layers are plain attention."""
    usual = DynamicCache(config=model.config.get_text_config())
    plain = (DynamicLayer, DynamicSlidingWindowLayer)
    if not usual.layers or any(type(layer) not in plain for layer in usual.layers):
        return usual
    return Cache(layers=[RoomyLayer(is_sliding=layer.is_sliding) for layer in usual.layers])


def is_roomy(cache: Cache) -> bool:
    """Tell whether rows may join a cache in the middle of decoding."""
    return all(isinstance(layer, RoomyLayer) for layer in cache.layers)


def splice(cache: Cache, rows: Tensor, columns: int, other: Cache | None, others: Tensor) -> None:
    """Keep some rows of a cache and its newest columns, and take rows of another cache."""
    for i, layer in enumerate(cache.layers):
        if isinstance(layer, RoomyLayer):
            layer.splice(rows, columns, None if other is None else other.layers[i], others)
        else:
            layer.batch_select_indices(rows)


def _room_for(like: Tensor, rows: int, needed: int) -> Tensor:
    """Give an empty buffer with room for half as much again, at least `_ROOM` columns more."""
    room = needed + max(_ROOM, needed // 2)
    return torch.empty(
        rows, *like.shape[1:-2], room, like.shape[-1], dtype=like.dtype, device=like.device
    )
