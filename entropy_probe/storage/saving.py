"""A record that exists as a whole becomes a run directory: written aside, then put in place."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from entropy_probe.rollout import Rollouts

from .chunks import write_chunk
from .errors import RunError, cannot_write
from .files import is_full
from .locking import writing
from .manifest import COMPLETE, Manifest, write_manifest
from .run import Run, open_run
from .staging import NEW, is_settled, settle, swap
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
        overwrite: replace the run that is there; other files in the folder stay.

    Raises:
        ValueError: no rows, or not one mapping of facts a row.
        RunConflict: the directory is taken, or another process is writing to it.
        RunError: it cannot be written, or the disk is full; nothing has changed then.

    >>> from entropy_probe.storage.saving import save_run
    >>> save_run(rollouts, "runs/mine")  # doctest: +SKIP
    """
    out = Path(out)
    if not len(rollouts):
        raise ValueError("there are no rows to write: a run holds at least one")
    if facts and len(facts) != len(rollouts):
        raise ValueError(f"expected facts of {len(rollouts)} rows, got {len(facts)}")
    require_free(out, overwrite=overwrite)
    about = rollouts.provenance
    created = datetime.now(UTC).isoformat(timespec="seconds")
    with put_in_place(out, what="the record", overwrite=overwrite) as folder:
        for index, start in enumerate(range(0, len(rollouts), CHUNK_ROWS)):
            rows = slice(start, start + CHUNK_ROWS)
            problems = [{"id": None, "answer": None, "facts": dict(f)} for f in facts[rows]]
            write_chunk(folder, index, rollouts[rows], first=start, problems=problems)
        values = about.to_dict()
        write_manifest(folder, Manifest(created, about.libraries, {}, None, values, COMPLETE))
    return open_run(out)


def require_free(out: Path, *, overwrite: bool) -> None:
    """Raise unless a run can be put at ``out``; put back what a writer that was killed took away.

    Raises:
        RunConflict: there is a run that is not to be replaced, or something else, or a writer.
        RunError: nothing can be written there.
    """
    try:
        settled = is_settled(out)
    except OSError as error:
        raise cannot_write(out, error) from None
    if not settled:
        with writing(out):
            settle(out)
    find_run(out, resume=False, overwrite=overwrite)
    require_writable(out)


@contextmanager
def put_in_place(out: Path, *, what: str, overwrite: bool) -> Iterator[Path]:
    """Give an empty folder, whose run takes its place in ``out`` if the body succeeds.

    Args:
        out: the run directory, which other writers are kept out of meanwhile.
        what: what is written, for the error of a full disk.
        overwrite: replace the run that is there once the new one is whole.

    Raises:
        RunConflict: the directory is taken, or another process is writing to it.
        RunError: the disk is full.
    """
    with writing(out):
        settle(out)
        find_run(out, resume=False, overwrite=overwrite)
        try:
            (out / NEW).mkdir()
            yield out / NEW
            swap(out)
        except (OSError, SafetensorError) as error:
            if not is_full(error):
                raise
            raise RunError(
                f"the disk is full: {what} was not written",
                f"no space left on device at {str(out.parent)!r}; nothing was kept",
                "free some space, or pass another folder",
            ) from error
        finally:
            settle(out)
