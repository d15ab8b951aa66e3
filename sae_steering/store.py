"""States of runs as a stream that is really shuffled, in bounded memory, and can be gone on with.

Each pass over the states follows one uniform permutation of all of them, across chunks and runs,
drawn anew for each pass: there is no buffer that mixes neighbours only. States are read in
windows of a few megabytes; within a window the disk is read in its own order. What stays in
memory is a window, eight bytes a state for the permutation, and eight more a state where only
some positions take part.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from entropy_probe.forking import forking_mask
from entropy_probe.rollout import Rollouts
from entropy_probe.storage.chunks import read_about, read_tokens
from entropy_probe.storage.parts import parts
from entropy_probe.storage.run import Run, open_run

from .rows import Held, Stored, stored_rows

Source = Rollouts | Run | str | Path
"""Where states come from: a record, or a run directory."""

POSITIONS = ("all", "forks", "others")
"""Names of the states that may take part: those at forks, those elsewhere, or both."""

WINDOW_BYTES = 64 * 2**20
"""Memory of a window of states, as float32."""


@dataclass(frozen=True)
class _Part:
    """Some states of one tensor."""

    rows: Held | Stored
    """The tensor."""
    chosen: np.ndarray | None
    """Which of its rows take part, ascending; None for all."""

    @property
    def count(self) -> int:
        """Count the states that take part."""
        return self.rows.shape[0] if self.chosen is None else len(self.chosen)

    def read(self, rows: np.ndarray) -> Tensor:
        """Give some of them, numbered among those that take part, ascending."""
        return self.rows.read(rows if self.chosen is None else self.chosen[rows])


class StateStore:
    """States of one layer, from records and run directories, in a shuffled order."""

    def __init__(
        self,
        sources: Source | Iterable[Source],
        layer: int | None = None,
        *,
        positions: str | Mapping[str, float] = "all",
        fraction: float = 0.2,
    ) -> None:
        """Find the states; none is read yet.

        Args:
            sources: records and run directories, of one model.
            layer: whose states; may be left out where only one layer was captured.
            positions: "all" captured states, those at "forks", the "others", or shares of forks
                and others in every batch, like ``{"forks": 0.5, "others": 0.5}``.
            fraction: share of each chunk's tokens that are forks, where a run kept all states
                and its forks are chosen now.

        Raises:
            ValueError: no such states, or shares that make no sense.
        """
        self.shares = _shares(positions)
        self.positions, self.fraction = positions, fraction
        single = isinstance(sources, Rollouts | Run | str | Path)
        opened = [
            source if isinstance(source, Rollouts | Run) else open_run(source)
            for source in ([sources] if single else sources)
        ]
        self.layer = _one_layer(opened, layer)
        self.model, self.weights = _origin(opened)
        self._parts: dict[str, list[_Part]] = {kind: [] for kind in self.shares}
        for source in opened:
            self._add(source)
        for kind, found in self._parts.items():
            if not sum(part.count for part in found):
                raise ValueError(
                    f"there are no states at positions {kind!r}, of {len(opened)} runs"
                )
        widths = {part.rows.shape[1] for found in self._parts.values() for part in found}
        if len(widths) != 1:
            raise ValueError(f"states of widths {sorted(widths)}: they are of different models")
        (self.d_model,) = widths
        self.counts = {kind: sum(p.count for p in found) for kind, found in self._parts.items()}

    def __len__(self) -> int:
        """Count the states that take part."""
        return sum(self.counts.values())

    def batches(
        self, size: int, *, seed: int = 0, start: int = 0
    ) -> Iterator[Float[Tensor, "size d_model"]]:
        """Give shuffled batches without end, float32; each pass is shuffled anew.

        Args:
            size: states a batch.
            seed: of the permutations.
            start: how many batches to leave out, without reading them: to go on from there.
        """
        sizes = _split(size, self.shares)
        streams = [
            _stream(found, sizes[kind], [seed, i], start)
            for i, (kind, found) in enumerate(self._parts.items())
            if sizes[kind]
        ]
        for pieces in zip(*streams, strict=True):
            yield pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def _add(self, source: Rollouts | Run) -> None:
        """Add a record's, or a run's, states."""
        if isinstance(source, Rollouts):
            r = source
            forks = self._needs_forks and captured_forks(
                r.entropy, r.valid, r.captured, r.controls, fraction=self.fraction
            )
            self._choose(Held(r.residuals[self.layer]), forks)
            return
        for index in source.chunks:
            rows = stored_rows(parts(source.path, index)["states"], f"layer.{self.layer}")
            forks = self._needs_forks and _forks_of_chunk(source, index, self.fraction)
            self._choose(rows, forks)

    def _choose(self, rows: Held | Stored, forks: Tensor | bool) -> None:
        """Sort a tensor's rows into the kinds that are wanted."""
        for kind, found in self._parts.items():
            chosen = None
            if kind != "all":
                chosen = torch.where(forks if kind == "forks" else ~forks)[0].numpy()
            found.append(_Part(rows, chosen))

    @property
    def _needs_forks(self) -> bool:
        return "all" not in self.shares


def captured_forks(
    entropy: Float[Tensor, "*batch"],
    valid: Bool[Tensor, "*batch"],
    captured: Bool[Tensor, "*batch"],
    controls: Bool[Tensor, "*batch"],
    *,
    fraction: float = 0.2,
) -> Bool[Tensor, " states"]:
    """Tell of each captured state, in row-major order, whether it is at a fork.

    Where every valid position was captured, the forks are the ``fraction`` of them with the
    highest entropy; where only forks were, with others to compare, they are what is no control.
    """
    if bool(controls.any()) or not torch.equal(captured, valid):
        return ~controls[captured]
    forks = forking_mask(entropy.reshape(1, -1), valid.reshape(1, -1), fraction=fraction)
    return forks.reshape(valid.shape)[captured]


def _forks_of_chunk(run: Run, index: int, fraction: float) -> Tensor:
    """Tell of each state of a chunk whether it is at a fork."""
    table = read_tokens(run.path, index)
    entropy = torch.from_numpy(table["entropy"].fill_null(0).to_numpy().copy())
    masks = (torch.from_numpy(table[n].to_numpy().copy()) for n in ("valid", "captured", "control"))
    return captured_forks(entropy, *masks, fraction=fraction)


def _one_layer(sources: list[Rollouts | Run], layer: int | None) -> int:
    """Give the layer that is meant, which all sources hold."""
    if not sources:
        raise ValueError("there is nothing to read states from: pass a record or a run directory")
    held = [
        set(s.residuals)
        if isinstance(s, Rollouts)
        else {k for i in s.chunks[:1] for k in read_about(s.path, i)["layers"]}
        for s in sources
    ]
    common = sorted(set.intersection(*held))
    if layer is None and len(common) == 1:
        return common[0]
    if layer not in common:
        fix = "pass layer=" if common else "capture with residual_layers= (--layers)"
        raise ValueError(f"the runs hold states of layers {common}, not of {layer}: {fix}")
    return layer


def _origin(sources: list[Rollouts | Run]) -> tuple[str | None, str | None]:
    """Give the reference of the model that all states come from, and its weights' fingerprint."""
    found = [source.provenance for source in sources if source.provenance is not None]
    weights = {provenance.weights for provenance in found}
    if len(weights) > 1:
        names = sorted({f"{p.model} ({p.weights})" for p in found})
        raise ValueError(f"the states are of different weights: {', '.join(names)}")
    return (found[0].model, found[0].weights) if found else (None, None)


def _shares(positions: str | Mapping[str, float]) -> dict[str, float]:
    """Give kind of position -> share of a batch."""
    if isinstance(positions, str) and positions in POSITIONS:
        return {positions: 1.0}
    if isinstance(positions, Mapping) and set(positions) == {"forks", "others"}:
        shares = {kind: float(share) for kind, share in sorted(positions.items())}
        if min(shares.values()) > 0 and abs(sum(shares.values()) - 1) < 1e-9:
            return shares
    raise ValueError(
        f"positions must be one of {POSITIONS}, or shares of forks and others that are above 0 "
        f"and sum to 1, got {positions!r}"
    )


def _split(size: int, shares: Mapping[str, float]) -> dict[str, int]:
    """Give how many states of each kind a batch holds."""
    if size < len(shares):
        raise ValueError(f"a batch must hold at least {len(shares)} states, got {size}")
    sizes = {kind: min(max(1, round(size * share)), size - 1) for kind, share in shares.items()}
    if len(sizes) == 1:
        return dict.fromkeys(shares, size)
    first, second = sizes
    return {first: sizes[first], second: size - sizes[first]}


def _stream(found: list[_Part], size: int, seed: list[int], start: int) -> Iterator[Tensor]:
    """Give shuffled batches of some parts' states without end."""
    width = found[0].rows.shape[1]
    bounds = np.cumsum([0, *(part.count for part in found)])
    total = int(bounds[-1])
    window = size * max(1, min(total, WINDOW_BYTES // (4 * width)) // size)
    at, order, drawn = start * size, np.empty(0, np.int64), -1
    while True:
        wanted = []
        missing = window
        while missing:
            turn, place = divmod(at, total)
            if turn != drawn:
                order, drawn = np.random.default_rng([*seed, turn]).permutation(total), turn
            wanted.append(order[place : place + missing])
            missing -= len(wanted[-1])
            at += len(wanted[-1])
        yield from _read(found, bounds, np.concatenate(wanted)).split(size)


def _read(found: list[_Part], bounds: np.ndarray, wanted: np.ndarray) -> Tensor:
    """Give states by their numbers over all parts, in the order wanted."""
    distinct, places = np.unique(wanted, return_inverse=True)
    ends = np.searchsorted(distinct, bounds)
    pieces = [
        part.read(distinct[a:b] - first)
        for part, a, b, first in zip(found, ends, ends[1:], bounds, strict=False)
        if b > a
    ]
    return torch.cat(pieces)[torch.from_numpy(places)]
