"""What a folder holds, to compare runs by: every file's bytes, times of creation aside."""

import json
from pathlib import Path


def contents(path: Path) -> dict[str, object]:
    """Give name -> content of the files of a run."""
    found: dict[str, object] = {}
    for file in sorted(path.rglob("*")):
        if file.is_file():
            found[str(file.relative_to(path))] = file.read_bytes()
    if "run.json" in found:
        values = json.loads(found["run.json"])
        found["run.json"] = {k: v for k, v in values.items() if k != "created"}
    return found


def size_of(path: Path) -> int:
    """Give the bytes that the files of a run take."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
