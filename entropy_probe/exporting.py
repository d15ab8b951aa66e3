"""A run as files that other tools read: Parquet, CSV, JSON lines, or a folder for `datasets`."""

import csv
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .storage.chunks import read_samples, read_tokens
from .storage.errors import RunConflict, RunError
from .storage.files import is_full, replacing
from .storage.run import Run

EXPORTS = ("parquet", "csv", "jsonl", "datasets")
"""What a run can be exported to."""

# What makes a spreadsheet take a cell for a formula, full-width forms included.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_CARD = """---
configs:
- config_name: samples
  default: true
  data_files: samples.parquet
- config_name: tokens
  data_files: tokens.parquet
---

Exported by entropy-probe: one line a sample, and one line a token. Entropies and
log-probabilities are in nats; provenance.json says of which distribution.
"""


def export_run(run: Run, out: str | Path, to: str = "parquet", *, overwrite: bool = False) -> Path:
    """Write a run's samples and tokens for other tools; states stay in the run directory.

    ``parquet`` and ``csv`` give a folder with ``samples``, ``tokens`` and ``provenance.json``;
    ``datasets`` the Parquet ones with a card, so that ``load_dataset(folder, "tokens")`` reads
    it; ``jsonl`` one file, one line a sample with its tokens. Cells of a CSV file that a
    spreadsheet would run as a formula get a quote in front.

    Args:
        run: what to export.
        out: the folder, or for ``jsonl`` the file.
        to: one of `EXPORTS`.
        overwrite: replace the files of an earlier export.

    Raises:
        RunConflict: something is there.
        RunError: a run without samples or a damaged one, or a place that cannot be written.

    >>> from entropy_probe import open_run
    >>> export_run(open_run("runs/mine"), "mine-csv", to="csv")  # doctest: +SKIP
    """
    out = Path(out)
    if to not in EXPORTS:
        raise ValueError(f"to must be one of {EXPORTS}, got {to!r}")
    if not run.chunks:
        raise RunError(
            f"no samples to export from {str(run.path)!r}",
            "none of its chunks has been computed",
            "go on with --resume first",
        )
    writers = _writers(run, out, to)
    try:
        _refuse_taken(out, writers, to, overwrite)
        with _folder(out if to != "jsonl" else out.parent), ExitStack() as whole:
            for path, write in writers.items():
                write(whole.enter_context(replacing(path)))
    except OSError as error:
        why = "no space left on device" if is_full(error) else error.strerror or str(error)
        raise RunError(
            f"cannot write to {str(out)!r}", why, "free some space, or pass another -o"
        ) from error
    return out


@contextmanager
def _folder(path: Path) -> Iterator[None]:
    """Make a folder, and remove it again if it stays empty."""
    made = not path.exists()
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        if made and not any(path.iterdir()):
            path.rmdir()


def _writers(run: Run, out: Path, to: str) -> Mapping[Path, Callable[[Path], None]]:
    """Give each file of an export, with what writes it."""
    if to == "jsonl":
        return {out: lambda path: _write_lines(path, run)}
    write, suffix = (_write_csv, "csv") if to == "csv" else (_write_parquet, "parquet")
    writers: dict[Path, Callable[[Path], None]] = {
        out / f"samples.{suffix}": lambda path: write(path, _samples(run)),
        out / f"tokens.{suffix}": lambda path: write(path, _tokens(run)),
        out / "provenance.json": lambda path: _write_text(path, _about(run)),
    }
    if to == "datasets":
        writers[out / "README.md"] = lambda path: _write_text(path, _CARD)
    return writers


def _refuse_taken(
    out: Path, writers: Mapping[Path, Callable[[Path], None]], to: str, overwrite: bool
) -> None:
    """Raise where something is in the way: other files, or an export that is not to go."""
    odd = out.is_dir() if to == "jsonl" else out.exists() and not out.is_dir()
    if odd:
        raise RunConflict(
            f"{str(out)!r} is in the way",
            f"--to {to} writes a {'file' if to == 'jsonl' else 'folder'} of that name",
            "pass another -o",
        )
    if taken := [path for path in writers if path.exists() and not overwrite]:
        raise RunConflict(
            f"{str(taken[0])!r} is already there",
            "nothing was exported",
            "replace it with --overwrite, or pass another -o",
        )


def _samples(run: Run) -> Iterator[pa.Table]:
    return (read_samples(run.path, i).replace_schema_metadata() for i in run.chunks)


def _tokens(run: Run) -> Iterator[pa.Table]:
    return (read_tokens(run.path, index) for index in run.chunks)


def _about(run: Run) -> str:
    return json.dumps(run.provenance.to_dict(), indent=1) + "\n"


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _write_parquet(path: Path, tables: Iterator[pa.Table]) -> None:
    first = next(tables)
    with path.open("wb") as handle, pq.ParquetWriter(handle, first.schema) as writer:
        writer.write_table(first)
        for table in tables:
            writer.write_table(table)


def _write_csv(path: Path, tables: Iterator[pa.Table]) -> None:
    with path.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle)
        for number, table in enumerate(tables):
            if number == 0:
                writer.writerow(table.column_names)
            columns = (table[name].to_pylist() for name in table.column_names)
            writer.writerows([_cell(value) for value in row] for row in zip(*columns, strict=True))


def _cell(value: object) -> object:
    """Give what a cell holds: numbers as they are, bytes in hexadecimal, lists as JSON."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, list):
        return json.dumps([v.hex() if isinstance(v, bytes) else v for v in value])
    if isinstance(value, str) and value.startswith(_FORMULA):
        return "'" + value
    return value


def _write_lines(path: Path, run: Run) -> None:
    """Write a line a sample, its tokens column by column."""
    with path.open("w", encoding="utf-8") as handle:
        for samples, tokens in zip(_samples(run), _tokens(run), strict=True):
            for line in samples.to_pylist():
                mine = tokens.filter(pc.equal(tokens["sample"], line["sample"]))
                columns = {
                    name: _plain(mine[name].to_pylist())
                    for name in mine.column_names
                    if name not in ("sample", "position", "token_bytes", "top_bytes")
                }
                texts = [_texts(pieces) for pieces in mine["top_bytes"].to_pylist()]
                facts = None if line["facts"] is None else json.loads(line["facts"])
                record = _plain(line | {"facts": facts, **columns, "top_texts": texts})
                text = json.dumps(record, ensure_ascii=False, allow_nan=False)
                handle.write(_encodable(text) + "\n")


def _encodable(text: str) -> str:
    """Give a text with U+FFFD for halves of surrogate pairs, which no other tool would read."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _texts(pieces: list[bytes | None] | None) -> list[str | None] | None:
    """Give the texts of a position's alternatives."""
    if pieces is None:
        return None
    return [None if piece is None else piece.decode("utf-8", "replace") for piece in pieces]


def _plain(value: Any) -> Any:
    """Give a value without what JSON lacks: numbers that are none become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return {k: _plain(v) for k, v in value.items()} if isinstance(value, dict) else value
