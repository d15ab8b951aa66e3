"""A run directory, opened: read lazily by sample, whole at any moment, resumable by its plan."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from entropy_probe.rollout import Provenance, Rollouts

from .chunks import read_about, read_chunk, read_samples
from .errors import DiskFull, NotARun, RunConflict, RunError
from .manifest import Manifest, read_manifest
from .parts import committed_chunks
from .plan import Plan
from .samples import SAMPLES_SCHEMA

__all__ = ["DiskFull", "NotARun", "Plan", "Run", "RunConflict", "RunError", "open_run"]


class Run:
    """A run directory: a sequence of samples, each read from disk when it is asked for.

    It shows the chunks that were there when it was opened; open it again to see later ones.
    """

    def __init__(self, path: Path, manifest: Manifest, chunks: Sequence[int]) -> None:
        """Hold what is known without reading a table."""
        self.path = path
        self.manifest = manifest
        self.chunks = list(chunks)

    @property
    def plan(self) -> Plan | None:
        """Give what the run computes; None where it was imported."""
        return self.manifest.plan

    @property
    def missing(self) -> list[int]:
        """List the planned chunks that are not there yet."""
        planned = range(self.plan.chunks) if self.plan else self.chunks
        return sorted(set(planned) - set(self.chunks))

    @property
    def complete(self) -> bool:
        """Tell whether every planned chunk is there."""
        return not self.missing

    @cached_property
    def provenance(self) -> Provenance | None:
        """Give where the numbers come from, near-ties counted over all chunks; None if empty."""
        found = [
            Provenance.from_dict(read_about(self.path, index)["provenance"])
            for index in self.chunks
        ]
        if not found:
            return None
        return dataclasses.replace(found[0], near_ties=sum(p.near_ties for p in found))

    @cached_property
    def sample_numbers(self) -> list[int]:
        """Give the number in the whole run of each sample that is there."""
        return [number for _, numbers in self._held for number in numbers]

    @cached_property
    def _held(self) -> list[tuple[int, Sequence[int]]]:
        """Give the samples of each chunk."""
        if self.plan is not None:
            return [(index, self.plan.samples_of(index)) for index in self.chunks]
        return [
            (index, read_samples(self.path, index, ["sample"])["sample"].to_pylist())
            for index in self.chunks
        ]

    def __len__(self) -> int:
        """Count the samples that are there."""
        return sum(len(numbers) for _, numbers in self._held)

    def __getitem__(self, rows: int | slice) -> Rollouts:
        """Read a sample, or a slice of them, as a record."""
        if isinstance(rows, slice):
            return self.rollouts(range(len(self))[rows])
        if not -len(self) <= rows < len(self):
            raise IndexError(f"the run holds samples 0 to {len(self) - 1}, got {rows}")
        return self.rollouts([rows % len(self)])

    def __iter__(self) -> Iterator[Rollouts]:
        """Go through the samples, a record each, reading one chunk at a time."""
        for record in self.records():
            yield from record

    def records(self, *, residuals: bool = True) -> Iterator[Rollouts]:
        """Go through the chunks, a record each; `residuals` as for `rollouts`."""
        for index, numbers in self._held:
            yield read_chunk(self.path, index, numbers, residuals=residuals)

    def rollouts(self, rows: Sequence[int] | None = None, *, residuals: bool = True) -> Rollouts:
        """Read samples as one record.

        Args:
            rows: which of the samples that are there, counted from 0, in the order wanted; None
                for all.
            residuals: whether to read the states as well.

        Raises:
            IndexError: a row that is not there.
            RunError: a damaged file, or a run without a single sample.
        """
        rows = list(range(len(self)) if rows is None else rows)
        if outside := [row for row in rows if not 0 <= row < len(self)]:
            raise IndexError(f"the run holds samples 0 to {len(self) - 1}, got {outside}")
        if not rows:
            raise RunError(
                f"no samples to read from {str(self.path)!r}",
                f"{len(self.chunks)} of its chunks are there, and none was asked for"
                if self.chunks
                else "none of its chunks has been computed",
                "go on with --resume, or ask for samples that are there",
            )
        wanted = set(rows)
        records, order, done = [], [], 0
        for index, numbers in self._held:
            here = [row for row in range(done, done + len(numbers)) if row in wanted]
            if here:
                names = [numbers[row - done] for row in here]
                records.append(read_chunk(self.path, index, names, residuals=residuals))
                order += here
            done += len(numbers)
        whole = Rollouts.concatenate(records)
        if order == rows:
            return whole
        place = {row: i for i, row in enumerate(order)}
        return whole[torch.tensor([place[row] for row in rows])]

    def samples(self) -> pa.Table:
        """Read the line of each sample: texts, lengths, reward, problem."""
        tables = (read_samples(self.path, index) for index in self.chunks)
        return pa.concat_tables(
            [SAMPLES_SCHEMA.empty_table(), *(t.replace_schema_metadata() for t in tables)]
        )

    def problems_of(self, index: int) -> list[Mapping[str, Any]]:
        """Give the problem of each sample of a chunk; empty where there is no task."""
        if self.plan is None or not self.plan.problems:
            return []
        each = self.plan.rows_per_input
        return [self.plan.problems[i] for i in self.plan.inputs_of(index) for _ in range(each)]

    def __repr__(self) -> str:
        """Say what is inside in one line."""
        planned = self.plan.samples if self.plan else len(self)
        return f"Run({str(self.path)!r}, {len(self)} of {planned} samples)"


def open_run(path: str | Path) -> Run:
    """Open a run directory; tables and tensors are read when they are asked for.

    Raises:
        NotARun: nothing there, or something else.
        RunError: `run.json` is damaged, or of a newer schema.

    >>> from entropy_probe import open_run
    >>> run = open_run("runs/mine")  # doctest: +SKIP
    >>> run[0], run.provenance.model, run.complete  # doctest: +SKIP
    """
    path = Path(path)
    manifest = read_manifest(path)
    planned = None if manifest.plan is None else manifest.plan.chunks
    chunks = [i for i in committed_chunks(path) if planned is None or i < planned]
    return Run(path, manifest, chunks)
