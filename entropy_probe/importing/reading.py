"""JSON and JSON lines, read with a sentence for whatever is wrong with them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .rows import unreadable


def read_objects(path: Path) -> Iterator[Any]:
    """Give the JSON values of a file: of each line, of a list, or the one that it is.

    Raises:
        RunError: it cannot be read, or is no JSON.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(path, str(error)) from None
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        yield from read_lines(path)
        return
    except (ValueError, RecursionError) as error:
        raise unreadable(path, f"it is not JSON ({error})") from None
    yield from value if isinstance(value, list) else [value]


def read_lines(path: Path) -> Iterator[Any]:
    """Give the JSON value of each line that is not blank, one at a time.

    Raises:
        RunError: it cannot be read, or a line is no JSON.
    """
    done = 0
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for line in lines:
                if line.strip():
                    yield json.loads(line)
                done += 1
    except OSError as error:
        raise unreadable(path, error.strerror or str(error)) from None
    except (ValueError, RecursionError) as error:
        raise unreadable(path, f"line {done + 1} is not JSON ({error})") from None
