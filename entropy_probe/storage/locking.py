"""Who may write a run directory: one process, or the shards of one plan, each once."""

import fcntl
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

from .errors import RunConflict, cannot_write

LOCK = ".lock"
"""Begins the names of lock files. They hold who writes, and go when the writer is done."""


@contextmanager
def writing(out: Path, *, shard: tuple[int, int] | None = None) -> Iterator[None]:
    """Keep other writers out of a directory, which is made if it is not there.

    The system frees the locks of a process that dies. Shards keep out whole-run writers and
    another process of their own number only.

    Raises:
        RunConflict: another process is writing.
        RunError: the directory cannot be made or written to.
    """
    made = not out.exists()
    try:
        with ExitStack() as held:
            try:
                out.mkdir(parents=True, exist_ok=True)
                held.enter_context(_lock(out / LOCK, shared=shard is not None))
                if shard is not None:
                    number, count = shard
                    held.enter_context(_lock(out / f"{LOCK}-{number}-of-{count}", shared=False))
            except OSError as error:
                raise cannot_write(out, error) from None
            yield
    finally:
        if made:
            with suppress(OSError):  # it holds something, as it should
                out.rmdir()


@contextmanager
def _lock(path: Path, *, shared: bool) -> Iterator[None]:
    """Hold a lock file, which says who does; the last one to hold it removes it."""
    handle = _opened(path, shared)
    try:
        handle.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        handle.flush()
        yield
    finally:
        if _alone(handle):
            path.unlink(missing_ok=True)
        with suppress(OSError):  # what could not be written then cannot be now
            handle.close()


def _opened(path: Path, shared: bool) -> IO[str]:
    """Open and lock a file, again if the one that was locked was removed meanwhile."""
    while True:
        handle = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            who = handle.read().strip().splitlines() or ["unknown"]
            handle.close()
            raise RunConflict(
                f"another process is writing to {str(path.parent)!r}",
                who[-1],
                "wait until it is done, or end it; or pass another -o",
            ) from None
        except OSError as error:
            warnings.warn(
                f"no locks on the file system of {str(path.parent)!r} ({error.strerror}): make "
                "sure that no other process writes there",
                stacklevel=6,
            )
        if path.exists() and os.fstat(handle.fileno()).st_ino == path.stat().st_ino:
            return handle
        handle.close()


def _alone(handle: IO[str]) -> bool:
    """Tell whether nobody else holds the lock any more."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
