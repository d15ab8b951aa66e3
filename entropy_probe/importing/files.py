"""A file of another tool becomes a run directory: recognised, read, written whole or not at all."""

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from entropy_probe.models.fingerprint import library_versions
from entropy_probe.models.vocabulary import special_ids, token_bytes
from entropy_probe.storage.chunks import write_chunk, write_texts
from entropy_probe.storage.manifest import COMPLETE, MANIFEST, Manifest, write_manifest
from entropy_probe.storage.run import Run, open_run
from entropy_probe.storage.saving import CHUNK_ROWS, put_in_place, require_free

from .openai import read_openai
from .prime import is_prime, read_prime
from .reading import read_objects
from .responses import is_openai
from .rows import Imported, TextRow, TokenRow, record_of, unreadable
from .trl import read_trl

FORMATS = ("openai", "trl", "prime-rl")
"""Names of the formats that can be read."""

_SUFFIXES = {"trl": ".parquet", "prime-rl": ".jsonl"}


def import_file(
    path: str | Path,
    out: str | Path,
    *,
    format: str | None = None,
    tokenizer=None,
    overwrite: bool = False,
    on_skipped: Callable[[int], None] | None = None,
) -> Run:
    """Read what another tool left behind into a run directory.

    ``openai`` are logprobs as OpenAI's API and vLLM give them: the entropy is a lower bound from
    the most probable tokens, and the provenance has the mass that it misses. ``trl`` are the
    completions that TRL logs: text only, which `capture_scores` can fill in. ``prime-rl`` are
    token exports: exact entropies of token ids.

    Args:
        path: the file, or for ``trl`` and ``prime-rl`` a folder of such files.
        out: the run directory.
        format: one of `FORMATS`; by default it is recognised by its content.
        tokenizer: gives the texts of token ids that the file has no text of, those of
            ``prime-rl`` and of vLLM's ``token_id:N``.
        overwrite: replace the run that is there; other files in the folder stay.
        on_skipped: called with how many answers or sequences of the file were left out, because
            they are errors or have no numbers; the run's origin says it as well.

    Raises:
        RunError: a file that cannot be read as that, or a directory that cannot be written;
            nothing has been written then.
        RunConflict: the directory is taken, or another process is writing to it.

    >>> from entropy_probe.importing import import_file
    >>> import_file("logprobs.json", "runs/theirs")  # doctest: +SKIP
    """
    path, out = Path(path), Path(out)
    if format not in (None, *FORMATS):
        raise ValueError(f"format must be one of {FORMATS}, got {format!r}")
    require_free(out, overwrite=overwrite)
    _refuse_odd(path)
    files = _files(path, format)
    format = format or _recognised(files[0])
    readers: dict[str, Callable[[], Imported]] = {
        "openai": lambda: read_openai(_only(files)),
        "trl": lambda: read_trl(files),
        "prime-rl": lambda: read_prime(files),
    }
    source = readers[format]()
    run = _write(source, out, path, tokenizer, overwrite)
    if on_skipped is not None:
        on_skipped(source.skipped)
    return run


def _refuse_odd(path: Path) -> None:
    """Raise where there is nothing to import, or nothing that needs to be."""
    try:
        there, run = path.exists(), (path / MANIFEST).exists()
    except OSError as error:
        raise unreadable(path, error.strerror or str(error), "check the path") from None
    if not there:
        raise unreadable(path, "there is no such file or folder", "check the path")
    if run:
        raise unreadable(path, "it is a run directory already", "use it as it is")


def _files(path: Path, format: str | None) -> list[Path]:
    """Give the files of a path, those of a folder in the order of the numbers in their names."""
    if path.is_file():
        return [path]
    suffixes = {_SUFFIXES[format]} if format in _SUFFIXES else set(_SUFFIXES.values())
    found = sorted((f for f in path.rglob("*") if f.suffix in suffixes and f.is_file()), key=_order)
    if not found:
        raise unreadable(
            path, f"it holds no {' or '.join(sorted(suffixes))} file", "check the path"
        )
    return [file for file in found if file.suffix == found[0].suffix]


def _order(file: Path) -> list[tuple[int, int, str]]:
    """Sort numbers in names as numbers."""
    parts = re.split(r"(\d+)", str(file))
    return [(1, int(p), "") if p.isdecimal() and p.isascii() else (0, 0, p) for p in parts]


def _only(files: Sequence[Path]) -> Path:
    if len(files) > 1:
        raise unreadable(files[0].parent, "it is a folder", "pass one file")
    return files[0]


def _recognised(file: Path) -> str:
    """Tell a file's format by its content."""
    try:
        with file.open("rb") as handle:
            if handle.read(4) == b"PAR1":
                return "trl"
    except OSError as error:
        raise unreadable(file, error.strerror or str(error)) from None
    first = next(iter(read_objects(file)), None)
    if is_prime(first):
        return "prime-rl"
    if is_openai(first):
        return "openai"
    raise unreadable(
        file,
        "it looks like none of " + ", ".join(FORMATS),
        "see `probe import --help` for the layouts, or pass --format",
    )


def _write(source: Imported, out: Path, path: Path, tokenizer, overwrite: bool) -> Run:
    """Write a run aside, and put it in its place when it is whole."""
    with put_in_place(out, what=repr(str(path)), overwrite=overwrite) as folder:
        if not _write_chunks(source, folder, tokenizer):
            raise unreadable(path, "there is not a single row in it", "check the path")
        created = datetime.now(UTC).isoformat(timespec="seconds")
        values = source.provenance.to_dict()
        write_manifest(folder, Manifest(created, library_versions(), {}, None, values, COMPLETE))
    return open_run(out)


def _write_chunks(source: Imported, out: Path, tokenizer) -> int:
    """Write all rows, some hundreds a chunk; give how many there were."""
    done = 0
    for index, rows in enumerate(_batched(source.rows)):
        problems = [{"id": None, "answer": None, "facts": row.facts} for row in rows]
        if isinstance(rows[0], TextRow):
            lines = [vars(row) for row in rows]
            write_texts(out, index, lines, first=done, provenance=source.provenance)
        else:
            record = _with_texts(source, rows, tokenizer)
            write_chunk(out, index, record, first=done, problems=problems)
        done += len(rows)
    return done


def _with_texts(source: Imported, rows: Sequence[TokenRow], tokenizer) -> Any:
    """Give a chunk's record, with the texts of its ids where a tokenizer is there."""
    if tokenizer is None:
        return record_of(rows, source)
    seen = {token for row in rows for token in row.tokens}
    for row in rows:
        seen.update(token for numbers in row.known.values() for token, _ in numbers.alternatives)
    bare = {token for token in seen if token not in source.pieces}
    # An id that the file has a text of may be a number of the import's own, not the tokenizer's.
    pieces = {**source.pieces, **token_bytes(tokenizer, bare)}
    special = source.special_ids | (special_ids(tokenizer) & bare)
    return record_of(rows, dataclasses.replace(source, pieces=pieces, special_ids=special))


def _batched(rows) -> Iterator[list[Any]]:
    rows = iter(rows)
    while batch := list(itertools.islice(rows, CHUNK_ROWS)):
        yield batch
