"""A whole run put in place of what a directory holds, under its lock: at once, or not at all."""

import shutil
from pathlib import Path

from .files import TEMPORARY
from .manifest import MANIFEST, PAGE
from .parts import ACTIVATIONS, SAMPLES, TOKENS

NEW = f"{TEMPORARY}new"
"""Where a run is written, inside its directory, until it is whole."""

_TAKEN, _OLD = f"{TEMPORARY}taken", f"{TEMPORARY}old"  # the run before, on its way out and all out
_OURS = (PAGE, ACTIVATIONS, TOKENS, SAMPLES, MANIFEST)  # the last one makes it a run


def swap(out: Path) -> None:
    """Put the run in `NEW` where the one before it is; `settle` has to follow, come what may.

    Files in the directory that are no part of a run stay where they are.
    """
    taken = out / _TAKEN
    taken.mkdir()
    _move(out, taken)
    taken.rename(out / _OLD)
    _move(out / NEW, out)


def settle(out: Path) -> None:
    """Undo what a writer left half done, the run before put back; clear up after a whole one.

    Whoever calls it holds the directory's lock, so that the leftovers are nobody's.
    """
    new, taken, old = out / NEW, out / _TAKEN, out / _OLD
    if old.is_dir() and (new / MANIFEST).exists():
        for name in _OURS:
            _remove(out / name)
        old.rename(taken)
    if taken.is_dir():
        _move(taken, out)
    discard(out)


def discard(out: Path) -> None:
    """Remove what writers that were killed have left, for a run that begins anew."""
    for name in (NEW, _TAKEN, _OLD):
        shutil.rmtree(out / name, ignore_errors=True)


def is_settled(out: Path) -> bool:
    """Tell whether no writer is at work in a directory, or was killed there."""
    return not any((out / name).exists() for name in (NEW, _TAKEN, _OLD))


def _move(source: Path, target: Path) -> None:
    for name in _OURS:
        if (source / name).exists() and not (target / name).exists():
            (source / name).rename(target / name)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
