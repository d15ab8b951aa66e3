"""The log of a training run: JSON lines in its folder, and whoever else wants to hear of them."""

import importlib.util
import json
import math
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

LOG = "log.jsonl"
PROJECT = "entropy-probe"
"""What trackio's board calls the runs together."""
Log = Callable[[dict[str, Any]], None]
"""Called with each line; ``kind`` is "header", "step" or "evaluation". A run that is gone on with
under another choice has a second header from there on."""


class Journal:
    """Writes lines to a run's log, and hands them on."""

    def __init__(self, out: Path | None, listeners: list[Log], *, start: int = 0) -> None:
        """Open the log, cut to its first ``start`` bytes; without a folder lines are handed on."""
        self.lines: list[dict[str, Any]] = []
        self._listeners = listeners
        self._file = None
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            path = out / LOG
            self._file = path.open("r+b" if path.exists() else "w+b")
            self._file.truncate(start)
            self._file.seek(start)

    def write(self, kind: str, values: Mapping[str, Any]) -> None:
        """Add a line."""
        line = {"kind": kind} | {name: _plain(value) for name, value in values.items()}
        self.lines.append(line)
        if self._file is not None:
            self._file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
            self._file.flush()
        for listener in self._listeners:
            listener(line)

    def safe(self) -> int:
        """Bring what was written to the disk; give the log's length in bytes."""
        if self._file is None:
            return 0
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Close the log."""
        if self._file is not None:
            self._file.close()


def read_log(out: str | Path) -> list[dict[str, Any]]:
    """Give the lines of a run's log; one that was being written when the process died is left out.

    Args:
        out: the run's folder.
    """
    lines = (Path(out) / LOG).read_bytes().split(b"\n")[:-1]
    return [json.loads(line) for line in lines]


def logged_choices(out: Path) -> dict[str, Any]:
    """Give the configuration of the last header in a run's log; nothing where there is none."""
    lines = (out / LOG).read_bytes().split(b"\n")[:-1]
    headers = [line for line in lines if line.startswith(b'{"kind": "header"')]
    return json.loads(headers[-1])["config"] if headers else {}


def default_log(out: Path | None, config: Mapping[str, Any]) -> Log | None:
    """Give trackio's local board where it is installed and the run has a folder, else None."""
    if out is None or importlib.util.find_spec("trackio") is None:
        return None
    return trackio_log(PROJECT, out.name, config)


def trackio_log(project: str, name: str, config: Mapping[str, Any]) -> Log:
    """Give a listener that sends the numbers of each line to trackio's local board.

    A run of that name there is gone on with. Nothing is sent before the first line.

    Raises:
        ModuleNotFoundError: trackio is not installed.
    """
    import trackio

    runs = []

    def log(line: dict[str, Any]) -> None:
        kind, step = line["kind"], line.get("step")
        if not runs:
            with redirect_stdout(sys.stderr):  # it greets, and ours is for what pipes read
                runs.append(
                    trackio.init(project=project, name=name, config=dict(config), resume="allow")
                )
        if kind == "header":
            return
        if kind == "evaluation":
            kind = f"evaluation T={line['temperature']:g}"
        numbers = {
            f"{kind}/{key}": value
            for key, value in line.items()
            if isinstance(value, int | float) and key not in ("step", "temperature")
        }
        runs[0].log(numbers, step=step)

    return log


def _plain(value: object) -> object:
    """Give a value as JSON has it: null where a number is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value
