"""What a verb says: its result on standard output, remarks and progress on standard error."""

import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from entropy_probe.viewing.visible import columns, visible_text

AS_JSON, QUIET = "entropy_probe.json", "entropy_probe.quiet"
"""Where the options of the call in progress are kept, in click's context."""


def wants_json() -> bool:
    """Tell whether the result is to be JSON."""
    return bool(click.get_current_context().meta.get(AS_JSON))


def is_quiet() -> bool:
    """Tell whether remarks and progress are unwanted."""
    return bool(click.get_current_context().meta.get(QUIET))


def note(text: str) -> None:
    """Say something about the work, on standard error."""
    if not is_quiet():
        click.echo(visible_text(text), err=True)


def write_json(values: object) -> None:
    """Write a result for programs: in ASCII, and null where a number is not finite."""
    click.echo(json.dumps(_plain(values), allow_nan=False))


def write_path(path: Path, values: Mapping[str, Any]) -> None:
    """Write where the result is: the path alone, on the last line, or the values as JSON."""
    if wants_json():
        write_json(dict(values))
    else:
        click.echo(os.fsencode(path))


@contextmanager
def progress(unit: str) -> Iterator[Callable[[int, int], None]]:
    """Give what is called with (done, total); it draws a bar where a person is watching."""
    if is_quiet() or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from tqdm.std import tqdm

    with tqdm(unit=unit, file=sys.stderr, dynamic_ncols=True, leave=False) as bar:

        def move(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield move


def _plain(value: object) -> object:
    """Give a value without the numbers that JSON lacks."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def table(rows: list[list[str]], *, right: frozenset[int] = frozenset()) -> list[str]:
    """Align cells, which must be printable, in columns; the last one is left ragged.

    Args:
        rows: lines of cells, the heading first.
        right: columns that are numbers.
    """
    widths = [max(columns(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = []
        for i, (cell, width) in enumerate(zip(row, widths, strict=True)):
            pad = " " * (width - columns(cell))
            cells.append(pad + cell if i in right else cell + pad)
        lines.append("  ".join(cells).rstrip())
    return lines
