"""Verbs that other packages add to `probe`: found, described and listed without importing them.

A package declares them in its own metadata, a click command each:

    [project.entry-points."entropy_probe.verbs"]
    count = "my_package.cli:count"
"""

import ast
import importlib.util
from importlib import metadata
from pathlib import Path

import click

from .failing import Failure

GROUP = "entropy_probe.verbs"
"""Entry-point group of the verbs."""

# What a module can raise while it is imported, interrupts aside.
_BROKEN = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError, OSError,
    RuntimeError, SyntaxError, TypeError, ValueError,
)  # fmt: skip


def plugins() -> dict[str, metadata.EntryPoint]:
    """Give the verbs that installed packages declare, the first of each name."""
    found: dict[str, metadata.EntryPoint] = {}
    for entry in metadata.entry_points(group=GROUP):
        found.setdefault(entry.name, entry)
    return dict(sorted(found.items()))


def help_line(entry: metadata.EntryPoint) -> str:
    """Give the first line of a verb's help, read from its source; that imports nothing."""
    source = _source(entry.module)
    if source is None:
        return f"From the package {owner(entry)}."
    try:
        tree = ast.parse(source.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return f"Cannot be read; it is from the package {owner(entry)}."
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == entry.attr:
            lines = (ast.get_docstring(node) or "").splitlines()
            if lines and lines[0]:
                return lines[0]
    return f"From the package {owner(entry)}."


def load(entry: metadata.EntryPoint) -> click.Command:
    """Import a verb.

    Raises:
        Failure: its module cannot be imported, or is no click command.
    """
    what = f"the verb {entry.name!r} of the package {owner(entry)} is broken"
    fix = f"`pip install --force-reinstall {owner(entry)}`, or uninstall it; other verbs work"
    try:
        command = entry.load()
    except _BROKEN as error:
        why = f"{entry.value} cannot be loaded: {type(error).__name__}: {error}"
        raise Failure("failed", what, why, fix) from error
    if not isinstance(command, click.Command):
        why = f"{entry.value} is no click command but {type(command).__name__}"
        raise Failure("failed", what, why, fix)
    return command


def owner(entry: metadata.EntryPoint) -> str:
    """Name the distribution that declares a verb."""
    return entry.dist.name if entry.dist else entry.module.partition(".")[0]


def _source(module: str) -> Path | None:
    """Find a module's file; only the top package's place is asked of Python, nothing runs."""
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None or not rest:
        return Path(spec.origin) if spec is not None and spec.origin else None
    for folder in spec.submodule_search_locations or ():
        place = Path(folder).joinpath(*rest)
        for file in (place.with_name(f"{place.name}.py"), place / "__init__.py"):
            if file.is_file():
                return file
    return None
