"""A task that cannot be used: what, why, and how to go on."""

import importlib.util

EXTRA = "pip install 'entropy-probe[tasks]'"


class TaskError(ValueError):
    """A task that cannot be used; the text says what, why and how to go on."""

    def __init__(self, what: str, why: str, fix: str) -> None:
        """Keep the three parts apart, so that a command can print them on a line each."""
        super().__init__(f"{what}\nwhy: {why}\nfix: {fix}")
        self.what, self.why, self.fix = what, why, fix

    def __reduce__(self) -> tuple:
        """Let the error travel between processes."""
        return type(self), (self.what, self.why, self.fix)


def require_package(module: str, task: str) -> None:
    """Raise where a package that a task needs is not there.

    Raises:
        TaskError: with the line that installs it.
    """
    if importlib.util.find_spec(module) is None:
        raise TaskError(
            f"task {task!r} needs a package that is not there", f"no module named {module!r}", EXTRA
        )
