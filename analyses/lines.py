"""Results as JSON lines, so that an analysis that was cut off goes on where it stopped."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Lines:
    """A file of results, a line each, found again by their key."""

    def __init__(self, path: Path) -> None:
        """Read what is there; a line that was being written is left out."""
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = path.read_bytes().rpartition(b"\n")[0].splitlines() if path.exists() else []
        self.found = {line["key"]: line for line in map(json.loads, whole)}
        if path.exists():
            path.write_bytes(b"".join(line + b"\n" for line in whole))

    def get(self, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Give the result of a key, computed and written if it is not there; print it if new."""
        if key not in self.found:
            self.found[key] = {"key": key} | make()
            text = json.dumps(self.found[key])
            with self.path.open("a") as file:
                file.write(text + "\n")
            print(text, flush=True)
        return self.found[key]
