"""Room to grow: a key-value cache that a step writes in place, and whose rows come and go.

Columns are positions, aligned on the right: every row's newest state is in the last column, and
what a row does not fill, on the left, is hidden by the attention mask. So a row that ends can
leave and another take its slot, whatever their lengths, and the others stay where they are.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import cache_utils
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

_ROOM = 16
"""Columns added at least when a buffer is full: attention is slower where rows lie far apart."""

_DENSE = torch.contiguous_format

_NAMES = ("past_key_values", "cache", "cache_params")
"""What decoders call their cache: "cache" from transformers 5.24 on, the last once with Mamba."""

_ATTENDING = {"full_attention", "sliding_attention", "chunked_attention"}
"""Kinds of layers that every transformers keeps keys and values of."""


@dataclass(frozen=True)
class Moves:
    """Which slots get another row, when some have ended and others begin."""

    index: Int[Tensor, " slots"]
    """For each slot, the slot that its row had, or how many there were plus the new row's."""
    to: Int[Tensor, " moved"]
    """Slots that get the row of a slot given up."""
    source: Int[Tensor, " moved"]
    """The slots given up."""
    filled: Int[Tensor, " new"]
    """Slots that get a new row, in the order of the new rows."""

    @classmethod
    def fill(cls, alive: Bool[Tensor, " before"], new: int) -> "Moves":
        """Put rows of the last slots, and new rows, where rows are not alive."""
        before, total = len(alive), int(alive.sum()) + new
        places = torch.arange(max(before, total), device=alive.device)
        taken = torch.nn.functional.pad(alive, (0, len(places) - before))
        free, source = places[:total][~taken[:total]], places[total:][taken[total:]]
        index = places[:total].clone()
        index[free] = torch.cat([source, before + places[:new]])
        return cls(index, free[: len(source)], source, free[len(source) :])


class Columns:
    """A growing tensor ``[rows, ..., columns, d]``: appends in place, right-aligned."""

    def __init__(self) -> None:
        """Start empty."""
        self._rows = self._start = self._end = 0
        self._buffer: Tensor | None = None

    @property
    def length(self) -> int:
        """Count the columns held."""
        return self._end - self._start

    def append(self, states: Tensor) -> Tensor:
        """Add columns at the end; give all of them, as a view."""
        width = states.shape[-2]
        if self._buffer is None:  # what is appended once, and then moved, needs no room
            self._buffer, self._rows = torch.empty_like(states, memory_format=_DENSE), len(states)
        elif self._end + width > self._buffer.shape[-2]:
            self._make_room(states, len(states), self.length, width)
            self._rows = len(states)
        self._buffer[: self._rows, ..., self._end : self._end + width, :] = states
        self._end += width
        return self.view()

    def view(self) -> Tensor:
        """Give what is held."""
        return self._buffer[: self._rows, ..., self._start : self._end, :]

    def drop(self) -> None:
        """Forget the newest column; what is appended next takes its place."""
        self._end -= 1

    def move(self, moves: Moves, columns: int, other: "Columns | None", others: Tensor) -> None:
        """Move rows, keep the newest columns, and take rows of another, right-aligned.

        Args:
            moves: which rows go where.
            columns: columns kept at most of what is held, the newest.
            other: where new rows come from, None for nowhere.
            others: its rows taken (repeats allowed).
        """
        new = 0 if other is None else other.length
        width, rows = max(min(columns, self.length), new), len(moves.index)
        if width > self._end or (new and rows > len(self._buffer)):
            self._make_room(other.view(), rows, width, 0)
        start = self._end - width
        if self._buffer is not None and width:
            held = self._buffer[..., start : self._end, :]
            # What a row does not fill is hidden by the mask, but 0 * NaN would not be.
            if start < self._start:
                held[: self._rows, ..., : self._start - start, :] = 0
            held[moves.to] = held[moves.source]
            if new:
                held[..., : width - new, :][moves.filled] = 0
                held[..., width - new :, :][moves.filled] = other.view()[others]
        self._rows, self._start = rows, start

    def _make_room(self, like: Tensor, rows: int, end: int, more: int) -> None:
        """Put the newest of what is held before column `end`, with room for more behind it."""
        buffer, kept = self._buffer, min(self.length, end)
        old = None if buffer is None else buffer[..., self._end - kept : self._end, :]
        fits = buffer is not None and len(buffer) >= rows and buffer.shape[-2] >= end + more
        if not fits or self._start < end:  # the latter: it would be written over while read
            rows = rows if buffer is None else max(rows, len(buffer))
            shape = (rows, *like.shape[1:-2], end + more + max(_ROOM, (end + more) // 8))
            buffer = torch.empty((*shape, like.shape[-1]), dtype=like.dtype, device=like.device)
        if old is not None:
            buffer[: self._rows, ..., end - kept : end, :] = old[: self._rows]
        self._buffer, self._start, self._end = buffer, end - kept, end


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

    def move(self, moves: Moves, columns: int, other: "RoomyLayer | None", others: Tensor) -> None:
        """Move rows, keep the newest columns, and take rows of another layer."""
        for i, part in enumerate(self.parts):
            part.move(moves, columns, None if other is None else other.parts[i], others)


def make_cache(model) -> Cache:
    """Give an empty cache for a model: roomy where its layers are plain attention.

    Raises:
        ValueError: a model of recurrent states, with a transformers that keeps them elsewhere.
    """
    config = model.config.get_text_config()
    odd = set(getattr(config, "layer_types", None) or ()) - _ATTENDING
    recurrent = odd or getattr(model, "_is_stateful", False)
    if recurrent and not hasattr(cache_utils, "LinearAttentionLayer"):
        raise ValueError(
            f"{type(model).__name__} keeps recurrent states, which its cache holds from "
            "transformers 5.5 on: pip install -U transformers"
        )
    usual = DynamicCache(config=config)
    plain = (DynamicLayer, DynamicSlidingWindowLayer)
    if not usual.layers or any(type(layer) not in plain for layer in usual.layers):
        return usual
    return Cache(layers=[RoomyLayer(is_sliding=layer.is_sliding) for layer in usual.layers])


def empty_like(cache: Cache) -> Cache:
    """Give an empty cache for rows of another, which is roomy."""
    return Cache(layers=[RoomyLayer(is_sliding=layer.is_sliding) for layer in cache.layers])


def is_roomy(cache: Cache) -> bool:
    """Tell whether rows may join a cache in the middle of decoding."""
    return all(isinstance(layer, RoomyLayer) for layer in cache.layers)


def cache_inputs(names: Collection[str], cache: Cache, ids: Tensor, mask: Tensor) -> dict:
    """Give a cache, and the mask over it, by the names that a model takes.

    Args:
        names: arguments of the model.
        cache: made by `make_cache`. What holds recurrent states alone (Mamba's) goes with a mask
            of what is about to run.
        ids: what is about to run.
        mask: over all columns, those about to run included.
    """
    attends = not cache.layers or any(isinstance(layer, DynamicLayer) for layer in cache.layers)
    # Where a Mamba takes both, it ignores the usual one.
    order = _NAMES[:2] if attends else reversed(_NAMES)
    name = next((each for each in order if each in names), _NAMES[0])
    return {name: cache, "attention_mask": mask if attends else mask[:, -ids.shape[1] :]}


def columns_held(arguments: Mapping[str, object]) -> int | None:
    """Count the columns in the cache that a decoder is given, from the names of its arguments.

    Gives None without a cache, and -1 where one holds states that do not say of how many columns.
    """
    given = (arguments.get(name) for name in _NAMES)
    cache = next((each for each in given if hasattr(each, "get_seq_length")), None)
    if cache is None:
        return None
    try:
        return int(cache.get_seq_length())
    except ValueError:  # recurrent states alone
        return -1 if any(map(_filled, cache.layers)) else 0


def check_filled(cache: Cache, model) -> None:
    """Raise unless a model has left what it has read in a cache, layer by layer.

    Raises:
        ValueError: it keeps that elsewhere, where rows cannot be moved, or nowhere.
    """
    # By its name: transformers has that class from 5.23 on; before, such layers had none.
    layers = [layer for layer in cache.layers if type(layer).__name__ != "DummyLayer"]
    empty = sum(not _filled(layer) for layer in layers)
    # Of models without recurrent states, some layers may not attend at all.
    if empty and (empty == len(layers) or getattr(model, "_is_stateful", False)):
        raise ValueError(
            f"{type(model).__name__} left nothing in {empty} of {len(layers)} layers of its cache: "
            "what it has read is kept elsewhere, where rows cannot be told apart; generate with "
            "its own library, and pass the tokens to score()"
        )


def _filled(layer) -> bool:
    """Tell whether a layer, which has seen some tokens or none, holds keys or states."""
    held = [getattr(layer, name, None) for name in ("keys", "conv_states", "recurrent_states")]
    held += [state for each in held if isinstance(each, dict) for state in each.values()]
    return any(isinstance(each, Tensor) for each in held)


def drop_newest(cache: Cache) -> None:
    """Forget the newest column of a roomy cache.

    Raises:
        ValueError: a cache of another kind, which cannot be rolled back.
    """
    if not is_roomy(cache):
        kinds = sorted({type(layer).__name__ for layer in cache.layers})
        raise ValueError(
            f"the model's cache cannot be rolled back by a step: its layers are {', '.join(kinds)}"
        )
    for layer in cache.layers:
        for part in layer.parts:
            part.drop()


def move(
    cache: Cache,
    moves: Moves,
    columns: int,
    other: Cache | None,
    others: Tensor,
    *,
    forget: bool = False,
) -> None:
    """Move rows of a roomy cache, keep its newest columns, and take rows of another cache.

    Args:
        cache: whose rows move.
        moves: which rows go where.
        columns: columns kept at most of what is held.
        other: where new rows come from, None for nowhere.
        others: its rows taken.
        forget: give up each layer of the other cache once its rows are taken.
    """
    for i, layer in enumerate(cache.layers):
        layer.move(moves, columns, None if other is None else other.layers[i], others)
        if forget and other is not None:
            other.layers[i] = RoomyLayer(is_sliding=layer.is_sliding)
