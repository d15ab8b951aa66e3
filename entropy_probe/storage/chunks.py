"""One chunk of a run on disk: its parts written, committed by the last rename, and read back."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from entropy_probe.rollout import Provenance, Rollouts

from .errors import RunError
from .files import remove_leftovers, replacing
from .parts import parts
from .samples import SAMPLES_SCHEMA, about_of, samples_table, texts_table
from .tables import (
    INDEX_SCHEMA,
    TOKENS_SCHEMA,
    index_table,
    rollouts_from_tables,
    tokens_table,
)

# Lines a row group: small enough that reading one sample skips most of a chunk.
_ROW_GROUP = 16384

# What reading raises where a file opens but does not hold what it should.
_NONSENSE = (LookupError, ValueError, TypeError, RuntimeError)


def write_chunk(
    path: Path,
    index: int,
    rollouts: Rollouts,
    *,
    first: int,
    problems: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write a chunk; it exists from the moment when its samples part does.

    Args:
        path: the run directory.
        index: which chunk.
        rollouts: its rows.
        first: number of its first row in the whole run.
        problems: id, answer and facts of each row's problem, where there is a task.
    """
    files = parts(path, index)
    for file in files.values():
        remove_leftovers(file)
    if rollouts.residuals:
        tensors = {f"layer.{k}": v.contiguous() for k, v in rollouts.residuals.items()}
        with replacing(files["states"]) as temporary:
            save_file(tensors, temporary)
        states = index_table(rollouts, first=first, file=files["states"].name)
        _write_table(files["index"], states)
    _write_table(files["tokens"], tokens_table(rollouts, first=first))
    _write_table(
        files["samples"], samples_table(rollouts, first=first, chunk=index, problems=problems)
    )


def write_texts(
    path: Path,
    index: int,
    rows: Sequence[Mapping[str, Any]],
    *,
    first: int,
    provenance: Provenance,
) -> None:
    """Write a chunk of samples of which only the texts are known.

    Args:
        path: the run directory.
        index: which chunk.
        rows: prompt, completion, group, reward and facts of each sample.
        first: number of its first row in the whole run.
        provenance: where they come from.
    """
    files = parts(path, index)
    _write_table(files["tokens"], TOKENS_SCHEMA.empty_table())
    _write_table(
        files["samples"], texts_table(rows, first=first, chunk=index, provenance=provenance)
    )


def remove_chunk(path: Path, index: int) -> None:
    """Remove a chunk, what commits it first."""
    for file in reversed(parts(path, index).values()):
        remove_leftovers(file)
        file.unlink(missing_ok=True)


def is_intact(path: Path, index: int, samples: Sequence[int]) -> bool:
    """Tell whether a chunk can be read: its tables whole, its states as long as they should be."""
    try:
        read_chunk(path, index, samples, residuals=False)
        _read_states(path, index, pa.array([], pa.int64()))
    except RunError:
        return False
    return True


def read_about(path: Path, index: int) -> dict[str, Any]:
    """Read what a chunk says of itself: provenance, layers, number of alternatives."""
    file = parts(path, index)["samples"]
    with _explaining(file):
        return about_of(pq.read_schema(file))


def read_samples(path: Path, index: int, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a chunk's line of each sample."""
    return _read_table(parts(path, index)["samples"], SAMPLES_SCHEMA, columns=columns)


def read_tokens(path: Path, index: int) -> pa.Table:
    """Read a chunk's line of each token."""
    return _read_table(parts(path, index)["tokens"], TOKENS_SCHEMA)


def read_chunk(
    path: Path, index: int, samples: Sequence[int], *, residuals: bool = True
) -> Rollouts:
    """Read some samples of a chunk, in ascending order of their numbers.

    Args:
        path: the run directory.
        index: which chunk.
        samples: numbers in the whole run.
        residuals: whether to read the states; without, the record says which there are.
    """
    files = parts(path, index)
    wanted = pa.array(sorted(set(samples)), pa.int64())
    table = read_samples(path, index)
    table = table.filter(pc.is_in(table["sample"], wanted))
    with _explaining(files["samples"]):
        if len(table) != len(wanted):
            raise ValueError(f"it holds {len(table)} of {len(wanted)} samples")
        if about_of(table.schema)["provenance"]["source"] == "text":
            raise _text_only(path)
    span = [("sample", ">=", wanted[0].as_py()), ("sample", "<=", wanted[-1].as_py())]
    tokens = _read_table(files["tokens"], TOKENS_SCHEMA, filters=span)
    if len(wanted) <= wanted[-1].as_py() - wanted[0].as_py():
        tokens = tokens.filter(pc.is_in(tokens["sample"], wanted))
    states = _read_states(path, index, wanted) if residuals else {}
    with _explaining(files["tokens"]):
        return rollouts_from_tables(table, tokens, states)


def _read_states(path: Path, index: int, wanted: pa.Array) -> dict[int, Tensor]:
    """Read the states of some samples, one stretch of a tensor for each run of neighbours."""
    layers = read_about(path, index)["layers"]
    if not layers:
        return {}
    files = parts(path, index)
    lines = _read_table(files["index"], INDEX_SCHEMA, columns=["sample", "state"])
    rows = lines.filter(pc.is_in(lines["sample"], wanted))["state"].to_numpy()
    bounds = [0, *(i for i in range(1, len(rows)) if rows[i] != rows[i - 1] + 1), len(rows)]
    spans = [
        (int(rows[a]), int(rows[b - 1]) + 1)
        for a, b in zip(bounds, bounds[1:], strict=False)
        if b > a
    ]
    with _explaining(files["states"]), safe_open(files["states"], "pt") as stored:
        found = {}
        for layer in layers:
            tensor = stored.get_slice(f"layer.{layer}")
            if tensor.get_shape()[0] != len(lines):
                raise ValueError(f"it holds {tensor.get_shape()[0]} states, not {len(lines)}")
            pieces = [tensor[a:b] for a, b in spans] or [tensor[0:0]]
            found[layer] = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
        return found


def _text_only(path: Path) -> RunError:
    return RunError(
        f"{str(path)!r} holds texts only: no tokens and no entropies",
        "it was imported from a file without them",
        f"compute them: probe score {path} --model MODEL -o OUT",
    )


def _write_table(file: Path, table: pa.Table) -> None:
    with replacing(file) as temporary, temporary.open("wb") as handle:
        pq.write_table(
            table, handle, compression="zstd", row_group_size=_ROW_GROUP, write_page_checksum=True
        )


def _read_table(file: Path, schema: pa.Schema, *, columns=None, filters=None) -> pa.Table:
    """Read a table, which must have the columns that it was written with."""
    with _explaining(file):
        table = pq.read_table(
            file, columns=columns, filters=filters, partitioning=None,
            page_checksum_verification=True,
        )  # fmt: skip
        expected = schema if columns is None else pa.schema([schema.field(c) for c in columns])
        if not table.schema.equals(expected):
            raise ValueError(f"its columns are {table.schema.names}")
        table.validate()
        return table


@contextmanager
def _explaining(file: Path) -> Iterator[None]:
    """Turn what readers raise about a damaged file into a sentence."""
    try:
        yield
    except RunError:
        raise
    except (OSError, pa.ArrowException, SafetensorError, *_NONSENSE) as error:
        first = str(error).splitlines()[0] if str(error) else "empty"
        raise RunError(
            f"{str(file)!r} cannot be read",
            f"{type(error).__name__}: {first}",
            "go on with --resume, which computes damaged chunks again, or restore the file",
        ) from error
