"""Files that appear whole or not at all: written beside, flushed to disk, then renamed."""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY = ".tmp-"
"""Marks names of files that are being written; readers of Parquet folders skip the leading dot."""


@contextmanager
def replacing(path: Path, *, exclusive: bool = False) -> Iterator[Path]:
    """Give a temporary path in the same folder, which becomes ``path`` if the body succeeds.

    The content is on disk before the name changes, and the name before this returns. Whatever
    goes wrong, the temporary file is removed and ``path`` is as it was.

    Args:
        path: the file.
        exclusive: raise FileExistsError if there is one already, whoever wrote it and when.

    Raises:
        OSError: it cannot be written, or a device or a pipe is there. What a link leads to is
            replaced, and the link stays.
    """
    path = path.resolve() if path.is_symlink() else path
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, "a device or a pipe, which a file would replace", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}{TEMPORARY}{secrets.token_hex(4)}")
    try:
        yield temporary
        _flush(temporary, os.O_RDONLY)
        if exclusive:
            os.link(temporary, path)
        else:
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _flush(path.parent, os.O_RDONLY)


def remove_leftovers(path: Path) -> None:
    """Remove what writers of ``path`` that were killed have left beside it."""
    for leftover in path.parent.glob(f".{path.name}{TEMPORARY}*"):
        leftover.unlink(missing_ok=True)


def is_full(error: BaseException) -> bool:
    """Tell whether an error of any writer means that the disk is full."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    # safetensors hands on the system's text, not its number.
    return "os error 28" in str(error) or "os error 122" in str(error)


def _flush(path: Path, flags: int) -> None:
    """Make what was written, or renamed, survive a loss of power."""
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
