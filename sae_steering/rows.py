"""Chosen rows of a tensor, in memory or in a file: read by number, never the whole of it.

A file is read with plain reads, not mapped: mapped pages count as the process's memory, and
touching scattered rows would bring in most of a store.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from entropy_probe.storage.errors import RunError

_TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Held:
    """States that are in memory."""

    states: Float[Tensor, "n d_model"]
    """All of them."""

    @property
    def shape(self) -> tuple[int, int]:
        """Give the number of states and their width."""
        return tuple(self.states.shape)

    def read(self, rows: np.ndarray) -> Tensor:
        """Give some rows, which ascend, as float32."""
        return self.states[torch.from_numpy(rows)].float().cpu()


@dataclass(frozen=True)
class Stored:
    """States that are one tensor of a safetensors file."""

    path: Path
    """The file."""
    offset: int
    """Where the tensor's bytes begin."""
    dtype: torch.dtype
    """Type of a number."""
    shape: tuple[int, int]
    """Number of states, and their width."""

    def read(self, rows: np.ndarray) -> Tensor:
        """Give some rows, which ascend, as float32; neighbours are read at once.

        Raises:
            RunError: the file cannot be read, or is too short.
        """
        width = self.shape[1] * self.dtype.itemsize
        out = bytearray(len(rows) * width)
        view, at = memoryview(out), 0
        try:
            handle = os.open(self.path, os.O_RDONLY)
            try:
                for first, count in _runs(rows):
                    part = view[at : at + count * width]
                    if os.preadv(handle, [part], self.offset + first * width) != len(part):
                        raise OSError(f"it ends before row {first + count}")
                    at += len(part)
            finally:
                os.close(handle)
        except OSError as error:
            raise _unreadable(self.path, error) from error
        states = torch.frombuffer(out, dtype=self.dtype) if out else torch.empty(0)
        return states.reshape(len(rows), self.shape[1]).float()


def stored_rows(path: Path, name: str) -> Stored:
    """Find a tensor in a safetensors file, reading the file's header alone.

    Raises:
        RunError: no such file or tensor, or numbers that are no floats.
    """
    try:
        with path.open("rb") as handle:
            size = int.from_bytes(handle.read(8), "little")
            if not 0 < size <= path.stat().st_size:
                raise ValueError("its header is longer than the file")
            header = json.loads(handle.read(size))
        entry = header[name]
        count, width = entry["shape"]
        return Stored(
            path, 8 + size + entry["data_offsets"][0], _TYPES[entry["dtype"]], (count, width)
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(path, error) from error


def _runs(rows: np.ndarray) -> list[tuple[int, int]]:
    """Give (first, count) of each run of neighbours among rows that ascend."""
    if not len(rows):
        return []
    starts = np.flatnonzero(np.diff(rows, prepend=rows[0] - 2) != 1)
    counts = np.diff(starts, append=len(rows))
    return list(zip(rows[starts].tolist(), counts.tolist(), strict=True))


def _unreadable(path: Path, error: Exception) -> RunError:
    return RunError(
        f"{str(path)!r} cannot be read",
        f"{type(error).__name__}: {error}",
        "capture it again with --resume, which computes damaged chunks anew",
    )
