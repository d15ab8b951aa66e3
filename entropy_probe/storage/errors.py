"""What can be wrong with a run directory, each said as what, why and how to go on."""

import copyreg
from pathlib import Path


class RunError(ValueError):
    """A run directory that cannot be read or written."""

    def __init__(self, what: str, why: str, fix: str) -> None:
        """Keep the three parts apart, so that a command can print them on a line each."""
        super().__init__(f"{what}\nwhy: {why}\nfix: {fix}")
        self.what, self.why, self.fix = what, why, fix

    def __reduce__(self) -> tuple:
        """Let the error, or one of its kinds with arguments of their own, travel to a process."""
        return copyreg.__newobj__, (type(self), *self.args), vars(self)


class NotARun(RunError):
    """The path holds no run directory."""

    def __init__(self, path: Path, why: str) -> None:
        """Name the path, and say what is missing there."""
        super().__init__(
            f"{str(path)!r} is not a run directory",
            why,
            "pass a folder that `probe capture -o FOLDER` wrote; `probe ls DIR` lists them",
        )


class RunConflict(RunError):
    """What was asked for does not go with what the directory holds, or with a limit given."""


class DiskFull(RunError):
    """The disk filled up while a chunk was written; what was committed before is whole."""

    def __init__(self, path: Path, committed: int, planned: int) -> None:
        """Say how much of the run is safe."""
        super().__init__(
            f"the disk is full: chunk {committed + 1} of {planned} was not written",
            f"no space left on device at {str(path)!r}; {committed} chunks are saved and whole",
            "free some space and go on with --resume, or capture less: fewer layers, "
            "--activations forks or none",
        )
        self.committed = committed


def cannot_write(out: Path, error: OSError) -> RunError:
    """Give the error of a place where no run directory can be."""
    return RunError(
        f"cannot write to {str(out)!r}",
        error.strerror or str(error),
        "pass another -o, in a folder where you may write",
    )
