"""A record that exists as a whole becomes a run directory: written beside, then put in place."""

import glob
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from entropy_probe.rollout import Rollouts

from .chunks import write_chunk
from .errors import RunError
from .files import TEMPORARY, is_full
from .manifest import COMPLETE, Manifest, write_manifest
from .run import Run, open_run
from .writing import find_run, require_writable

CHUNK_ROWS = 256
"""Rows a chunk: reading a sample opens one."""


def save_run(
    rollouts: Rollouts,
    out: str | Path,
    *,
    facts: Sequence[Mapping[str, Any]] = (),
    overwrite: bool = False,
) -> Run:
    """Write a record as a run directory, which is there whole or not at all.

    Args:
        rollouts: at least one row.
        out: the run directory.
        facts: what else is known of each row, as plain JSON values.
        overwrite: replace the run that is there.

    Raises:
        ValueError: no rows, or not one mapping of facts a row.
        RunConflict: the directory is taken.
        RunError: it cannot be written, or the disk is full; nothing has changed then.

    >>> from entropy_probe.storage.saving import save_run
    >>> save_run(rollouts, "runs/mine")  # doctest: +SKIP
    """
    out = Path(out)
    if not len(rollouts):
        raise ValueError("there are no rows to write: a run holds at least one")
    if facts and len(facts) != len(rollouts):
        raise ValueError(f"expected facts of {len(rollouts)} rows, got {len(facts)}")
    find_run(out, resume=False, overwrite=overwrite)
    require_writable(out)
    about = rollouts.provenance
    created = datetime.now(UTC).isoformat(timespec="seconds")
    with put_in_place(out, what="the record") as folder:
        for index, start in enumerate(range(0, len(rollouts), CHUNK_ROWS)):
            rows = slice(start, start + CHUNK_ROWS)
            problems = [{"id": None, "answer": None, "facts": dict(f)} for f in facts[rows]]
            write_chunk(folder, index, rollouts[rows], first=start, problems=problems)
        values = about.to_dict()
        write_manifest(folder, Manifest(created, about.libraries, {}, None, values, COMPLETE))
    return open_run(out)


@contextmanager
def put_in_place(out: Path, *, what: str) -> Iterator[Path]:
    """Give an empty folder beside ``out``, which takes its place if the body succeeds.

    Args:
        out: the folder; what is there goes once the new one is whole.
        what: what is written, for the error of a full disk.

    Raises:
        RunError: the disk is full.
    """
    for leftover in out.parent.glob(f".{glob.escape(out.name)}{TEMPORARY}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = out.with_name(f".{out.name}{TEMPORARY}{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        _put(temporary, out)
    except (OSError, SafetensorError) as error:
        if not is_full(error):
            raise
        raise RunError(
            f"the disk is full: {what} was not written",
            f"no space left on device at {str(out.parent)!r}; nothing was kept",
            "free some space, or pass another folder",
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _put(temporary: Path, out: Path) -> None:
    """Put a folder in its place; what was there goes once the new one is there."""
    old = out.with_name(f".{out.name}{TEMPORARY}old")
    if out.exists():
        out.replace(old)
    temporary.replace(out)
    shutil.rmtree(old, ignore_errors=True)
