"""A run directory, written: begun, gone on with or replaced, one committed chunk after another."""

import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from entropy_probe.rollout import Rollouts

from .chunks import is_intact, write_chunk
from .chunks import remove_chunk as _remove_chunk
from .errors import DiskFull, NotARun, RunConflict, RunError, cannot_write
from .files import TEMPORARY, is_full, remove_leftovers
from .locking import LOCK
from .manifest import COMPLETE, MANIFEST, PAGE, RUNNING, Manifest, write_manifest
from .parts import ACTIVATIONS, SAMPLES, TOKENS, committed_chunks
from .plan import Plan
from .run import Run, open_run
from .staging import NEW, discard

_CHECK = ".check-"


def find_run(out: Path, *, resume: bool, overwrite: bool) -> Run | None:
    """Give the run that is to be gone on with or replaced, None where a new one can begin.

    Nothing is changed on disk.

    Raises:
        RunConflict: there is a run and neither was asked for, both were, or something else is
            in the way.
        RunError: the run that is there cannot be read (`overwrite` replaces it all the same).
    """
    if resume and overwrite:
        raise RunConflict(
            "resume and overwrite exclude each other",
            "one keeps what is there, the other removes it",
            "pass one of them",
        )
    try:
        if not _occupied(out):
            return None
        run = open_run(out)
    except OSError as error:
        raise cannot_write(out, error) from None
    except NotARun as error:
        raise RunConflict(
            f"{str(out)!r} is taken by something that is not a run", error.why, "pass another -o"
        ) from None
    except RunError:
        if overwrite:
            return None
        raise
    if not (resume or overwrite):
        raise RunConflict(
            f"{str(out)!r} already holds a run",
            f"{len(run.chunks)} of its {len(run.chunks) + len(run.missing)} chunks are there",
            "go on with it with --resume, replace it with --overwrite, or pass another -o",
        )
    return run


def require_writable(out: Path) -> None:
    """Raise unless a folder can be made at ``out``; leave nothing behind.

    Raises:
        RunError: it cannot.
    """
    try:
        there = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
        Path(tempfile.mkdtemp(prefix=_CHECK, dir=there)).rmdir()
    except OSError as error:
        raise cannot_write(out, error) from None


def begin(
    out: Path, plan: Plan, *, libraries: Mapping[str, str], hardware: Mapping[str, Any]
) -> Run:
    """Write `run.json` of a new run, after removing chunks and page of one that was there."""
    remove_leftovers(out / MANIFEST)
    discard(out)
    (out / PAGE).unlink(missing_ok=True)
    for index in committed_chunks(out):
        _remove_chunk(out, index)
    for name in (SAMPLES, TOKENS, ACTIVATIONS):
        shutil.rmtree(out / name, ignore_errors=True)
    created = datetime.now(UTC).isoformat(timespec="seconds")

    def write() -> None:
        write_manifest(out, Manifest(created, libraries, hardware, plan))
        for name in (SAMPLES, TOKENS):
            (out / name).mkdir(exist_ok=True)

    with_space(out, 0, plan.chunks, write)
    return open_run(out)


def join(
    out: Path, plan: Plan, *, libraries: Mapping[str, str], hardware: Mapping[str, Any]
) -> Run:
    """Begin a run, or give the one that another process began, perhaps at the same moment.

    Raises:
        RunError: something that is no run, or a damaged one, is there.
    """
    created = datetime.now(UTC).isoformat(timespec="seconds")
    manifest = Manifest(created, libraries, hardware, plan)
    for name in (SAMPLES, TOKENS):
        (out / name).mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        with_space(out, 0, plan.chunks, lambda: write_manifest(out, manifest, exclusive=True))
    return open_run(out)


def drop_damaged(run: Run) -> Run:
    """Remove chunks whose files do not open, so that they are computed again."""
    remove_leftovers(run.path / MANIFEST)
    damaged = [
        index for index in run.chunks if not is_intact(run.path, index, run.plan.samples_of(index))
    ]
    for index in damaged:
        _remove_chunk(run.path, index)
    return open_run(run.path) if damaged else run


def commit(run: Run, index: int, rollouts: Rollouts) -> None:
    """Write a chunk of a run, and where its numbers come from if it is the first.

    Raises:
        DiskFull: no space left; the chunks committed before are whole.
    """
    plan = run.plan
    first = plan.samples_of(index).start

    def write() -> None:
        if run.manifest.provenance is None:
            values = rollouts.provenance.to_dict() | {"near_ties": 0}
            run.manifest = dataclasses.replace(run.manifest, provenance=values)
            write_manifest(run.path, run.manifest)
        write_chunk(run.path, index, rollouts, first=first, problems=run.problems_of(index))

    with_space(run.path, len(committed_chunks(run.path)), plan.chunks, write)


def finish(run: Run) -> Run:
    """Mark a run whose chunks are all there as complete; give it as it is on disk."""
    found = open_run(run.path)
    status = COMPLETE if found.complete else RUNNING
    if found.manifest.status != status:
        manifest = dataclasses.replace(found.manifest, status=status)
        with_space(
            run.path,
            len(found.chunks),
            found.plan.chunks,
            lambda: write_manifest(run.path, manifest),
        )
    return open_run(run.path)


def with_space(out: Path, committed: int, planned: int, write: Callable[[], None]) -> None:
    """Run a writer; say how far the run has come if the disk is full.

    Raises:
        DiskFull: no space left.
    """
    try:
        write()
    except (OSError, SafetensorError) as error:
        if is_full(error):
            raise DiskFull(out, committed, planned) from error
        raise


def _occupied(out: Path) -> bool:
    """Tell whether anything is at a path, locks and leftovers of a killed first write aside."""
    if not out.is_dir():
        return out.exists()
    ours = (LOCK, _CHECK, NEW, f".{MANIFEST}{TEMPORARY}")
    return any(not entry.name.startswith(ours) for entry in out.iterdir())
