"""A key-value cache whose buffers neither move nor grow, for a step that is compiled once.

Rows and columns are planned. A step writes the column that a tensor says, and sees all columns,
so that nothing in it changes from step to step but the contents of tensors; what is not held is
hidden by the attention mask. Rows come and go between steps as in any roomy cache.
"""

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from .kvcache import Columns, RoomyLayer

_SPARE = 32
"""Columns at least beyond the longest row's: when they are used up, what is held moves back."""

_MULTIPLE = 64
"""Columns are a multiple of it: few lengths, so that few steps have to be compiled."""


class FixedColumns(Columns):
    """Columns in one buffer, as large as planned from the first on."""

    def __init__(self, rows: int, columns: int) -> None:
        """Plan the buffer."""
        super().__init__()
        self.planned = (rows, columns)

    def next_column(self) -> int:
        """Give where a step writes; what is held moves back first if there is no room."""
        if self._end == self.planned[1]:
            self._make_room(self._buffer, self._rows, self.length, 1)
        return self._end

    def write(self, states: Tensor, at: Tensor) -> Tensor:
        """Write a column; give the whole buffer. `wrote` says afterwards that it is held."""
        return self._buffer.index_copy_(-2, at, states)

    def wrote(self) -> None:
        """Count the column that a step has written as held."""
        self._end += 1

    def clear(self) -> None:
        """Hold nothing, in the same buffer."""
        self._rows = self._start = self._end = 0

    def _make_room(self, like: Tensor, rows: int, end: int, more: int) -> None:
        """Put the newest of what is held before column `end`, in the same buffer."""
        kept = min(self.length, end)
        if self._buffer is None:
            shape = (self.planned[0], *like.shape[1:-2], self.planned[1], like.shape[-1])
            # What nothing was written to must be finite: the mask hides it, but 0 * NaN is NaN.
            self._buffer = like.new_zeros(shape)
            torch._dynamo.mark_static_address(self._buffer, guard=False)
        elif kept:
            held = self._buffer[: self._rows, ..., self._end - kept : self._end, :].clone()
            self._buffer[: self._rows, ..., end - kept : end, :] = held
        self._start, self._end = end - kept, end


class FixedLayer(RoomyLayer):
    """Keys and values of one layer, in buffers that stay where they are."""

    is_compileable = True

    def __init__(self, rows: int, columns: int, at: Tensor, *, is_sliding: bool) -> None:
        """Plan the buffers; `at` holds the column that a step writes, the same for all layers."""
        super().__init__(is_sliding=is_sliding)
        self.parts = (FixedColumns(rows, columns), FixedColumns(rows, columns))
        self.columns, self.at = columns, at

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs):  # noqa: ANN201
        """Write a column; give all columns."""
        keys, values = self.parts
        return keys.write(key_states, self.at), values.write(value_states, self.at)

    def get_seq_length(self) -> Tensor:
        """Give the column that a step writes: from the mask's side, so many came before it."""
        return self.at[0]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Give the width of the mask, and where it begins."""
        return self.columns, 0


class FixedCache(Cache):
    """The layers of a model, and the column that the next step writes in all of them."""

    def __init__(self, like: Cache, *, rows: int, longest: int, device: torch.device) -> None:
        """Plan buffers for some rows of some tokens at most, for the layers of a roomy cache."""
        self.rows = rows
        self.columns = -(-(longest + _SPARE) // _MULTIPLE) * _MULTIPLE
        self.at = torch.zeros(1, dtype=torch.long, device=device)
        torch._dynamo.mark_static_address(self.at, guard=False)
        layers = [
            FixedLayer(rows, self.columns, self.at, is_sliding=layer.is_sliding)
            for layer in like.layers
        ]
        super().__init__(layers=layers)

    def clear(self) -> "FixedCache":
        """Hold nothing, in the same buffers."""
        for part in self._parts():
            part.clear()
        return self

    def next_column(self) -> int:
        """Make room for a step, let it write where there is room, and give where."""
        (column,) = {part.next_column() for part in self._parts()}
        self.at.fill_(column)
        return column

    def wrote(self) -> None:
        """Count the column that a step has written as held."""
        for part in self._parts():
            part.wrote()

    def _parts(self) -> list[FixedColumns]:
        return [part for layer in self.layers for part in layer.parts]
