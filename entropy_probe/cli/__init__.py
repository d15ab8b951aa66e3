"""The command `probe`: one small module a verb, loaded when the verb is called."""

import io
import os
import sys
import warnings
from collections.abc import Sequence

import click

from entropy_probe.viewing.visible import visible_text

from .failing import Failure, explain, tell
from .group import VERBS, probe
from .plugins import plugins

INTERRUPTED, BROKEN_PIPE = 130, 141

# What a program can raise, interrupts aside; a bug too is told in three lines.
_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    click.ClickException,
    Failure,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and give its exit code.

    Args:
        argv: the words after ``probe``; by default those of this process.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    if argv is None:
        # Some libraries raise bare exceptions; what is left of them is told here too.
        sys.excepthook = lambda kind, error, trace: _tell(error, words)
    if instruction := os.environ.get("_PROBE_COMPLETE"):
        from click.shell_completion import shell_complete

        return shell_complete(probe, {}, "probe", "_PROBE_COMPLETE", instruction)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            code = _run(words)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        _drop_stdout()
        return BROKEN_PIPE
    except KeyboardInterrupt:
        return INTERRUPTED


def _run(words: list[str]) -> int:
    """Parse, call the verb, and tell what went wrong if something did."""
    try:
        with probe.make_context("probe", words) as context:
            probe.invoke(context)
            return 0
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except BrokenPipeError:
        raise
    except _ERRORS as error:
        return _tell(error, words)


def _tell(error: BaseException, words: list[str]) -> int:
    """Tell an error in the way that the command line asks for, and give its exit code."""
    options = words[: words.index("--")] if "--" in words else words
    verb = words[:1] if words and words[0] in {*VERBS, *plugins()} else []
    return tell(
        explain(error, " ".join(["probe", *verb])),
        error,
        as_json="--json" in options,
        trace="--traceback" in options,
    )


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    """Write a warning in a line, without the place in the code."""
    click.echo(f"warning: {visible_text(' '.join(str(message).split()))}", err=True)


def _drop_stdout() -> None:
    """Point standard output at nothing, so that closing it fails no more."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except io.UnsupportedOperation:
        pass
