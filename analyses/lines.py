"""Results as JSON lines, so that an analysis that was cut off goes on where it stopped."""

import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Give the lines of a file; one that was being written is left out, as is a missing file."""
    whole = path.read_bytes().rpartition(b"\n")[0] if path.exists() else b""
    return [json.loads(line) for line in whole.split(b"\n") if line]


def add_line(path: Path, line: dict[str, Any]) -> None:
    """Append a line, on disk when this returns; what a writer that died left of its own goes.

    Several processes may append to one file: each waits for its turn.
    """
    text = json.dumps(line).encode() + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


class Lines:
    """A file of results, a line each, found again by their key."""

    def __init__(self, path: Path) -> None:
        """Read what is there."""
        self.path = path
        self.found = {line["key"]: line for line in read_lines(path)}

    def get(self, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Give the result of a key, computed and written if it is not there; print it if new."""
        if key not in self.found:
            self.found[key] = {"key": key} | make()
            add_line(self.path, self.found[key])
            print(json.dumps(self.found[key]), flush=True)
        return self.found[key]
