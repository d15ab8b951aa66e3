"""What verbs that read a run share: its record, the numbers of its samples, files beside it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .failing import Failure
from .prompts import refuse_without_samples

if TYPE_CHECKING:
    from entropy_probe.rollout import Rollouts
    from entropy_probe.storage.run import Run


def read_run(path: str) -> "tuple[Run, Rollouts]":
    """Give a run and the record of every sample that is there, activations left on disk.

    Raises:
        Failure: it holds no sample yet.
    """
    from entropy_probe.storage.run import open_run

    run = open_run(path)
    refuse_without_samples(len(run.chunks), run.path)
    return run, run.rollouts(residuals=False)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Give a temporary path for a file that appears whole or not at all.

    Raises:
        Failure: it cannot be written.
    """
    from entropy_probe.storage.files import replacing

    try:
        with replacing(path) as temporary:
            yield temporary
    except OSError as error:
        what, why = f"cannot write {str(path)!r}", error.strerror or str(error)
        raise Failure("failed", what, why, "pass another -o, where you may write") from error
