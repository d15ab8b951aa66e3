"""What went wrong, as three lines for people, JSON for programs, and an exit code for scripts."""

import json
import traceback

import click

from entropy_probe.models import LoadError
from entropy_probe.storage.errors import NotARun, RunConflict, RunError
from entropy_probe.tasks.errors import TaskError
from entropy_probe.viewing.visible import visible_text

CODES = {
    "failed": 1,
    "model": 1,
    "run": 1,
    "internal": 1,
    "usage": 2,
    "partial": 4,
    "nothing": 5,
    "interrupted": 130,
}
"""Kind of failure, named in `--json`, -> exit code."""


class Failure(Exception):
    """A verb that cannot do what it was asked: what, why, and how to go on."""

    def __init__(self, kind: str, what: str, why: str, fix: str) -> None:
        """Keep the parts apart: a line each, and the kind for the exit code."""
        super().__init__(f"{what}: {why}")
        self.kind, self.what, self.why, self.fix = kind, what, why, fix

    @property
    def code(self) -> int:
        """Give the exit code."""
        return CODES[self.kind]


def usage(what: str, why: str, fix: str) -> Failure:
    """Give the failure of a command line that makes no sense."""
    return Failure("usage", what, why, fix)


def explain(error: BaseException, command: str = "probe") -> Failure:
    """Give an error as a failure of the kind that it is.

    Args:
        error: what was raised.
        command: what was called, as far as it is known.
    """
    if isinstance(error, Failure):
        return error
    if isinstance(error, click.ClickException):
        return _usage_error(error)
    if isinstance(error, LoadError):
        return Failure("model", error.what, error.why, error.fix)
    if isinstance(error, TaskError):
        return usage(error.what, error.why, error.fix)
    if isinstance(error, RunError):
        wrong = isinstance(error, NotARun | RunConflict)
        return Failure("usage" if wrong else "run", error.what, error.why, error.fix)
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return Failure(
            "failed", "out of memory", _first_line(error), "pass a smaller --batch-size or --dtype"
        )
    if isinstance(error, ModuleNotFoundError):
        fix = "`probe env` shows what is missing, and the pip line for it"
        return Failure("failed", f"package {error.name!r} is not installed", str(error), fix)
    if isinstance(error, OSError) and error.strerror:
        where = "" if error.filename is None else f" {str(error.filename)!r}"
        fix = "check the path, its permissions and the space on its disk"
        return Failure("failed", f"cannot read or write{where}", error.strerror, fix)
    if isinstance(error, ValueError) and not isinstance(error, UnicodeError):
        return usage(f"`{command}` cannot do that", str(error), _help_of(command))
    what = f"unexpected {type(error).__name__}"
    fix = "run it again with --traceback, and report what that prints"
    return Failure("internal", what, _first_line(error), fix)


def tell(failure: Failure, error: BaseException, *, as_json: bool, trace: bool) -> int:
    """Print a failure and give its exit code; its traceback comes first where it is wanted."""
    if trace:
        click.echo("".join(traceback.format_exception(error)), err=True)
    lines = (("error", failure.what), ("why", failure.why), ("fix", failure.fix))
    for name, text in lines:
        click.echo(f"{name + ':':<7}{visible_text(' '.join(text.split()))}", err=True)
    if as_json:
        message = f"{failure.what}: {failure.why}"
        values = {"code": failure.kind, "message": message, "hint": failure.fix}
        click.echo(json.dumps({"error": values}))
    return failure.code


def _usage_error(error: click.ClickException) -> Failure:
    """Say what click says, on three lines."""
    context = getattr(error, "ctx", None)
    name = context.command_path if context else "probe"
    lookup = _help_of(name)
    if isinstance(error, click.NoSuchOption):
        near = (error.possibilities or [""])[0]
        fix = f"did you mean {near}?" if near else lookup
        return usage(f"no such option: {error.option_name}", f"`{name}` does not know it", fix)
    if isinstance(error, click.MissingParameter) and error.param is not None:
        what = f"missing {error.param.get_error_hint(context)}"
        return usage(what, f"`{name}` cannot do without it", lookup)
    if isinstance(error, click.BadParameter) and error.param is not None:
        what = f"invalid value for {error.param.get_error_hint(context)}"
        return usage(what, error.message, lookup)
    return usage(f"`{name}` was called wrongly", error.format_message(), lookup)


def _help_of(command: str) -> str:
    return f"`{command} --help` lists what can be given"


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
