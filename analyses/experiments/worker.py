"""One run: its result, and what it was computed with.

``python -m analyses.experiments.worker MODULE:FUNCTION SETTINGS OUT`` is the process that the
runner starts, with one thread. It ends when its standard input does, so that none outlives a runner
that was killed.
"""

import importlib
import json
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from entropy_probe.storage.files import replacing

LIBRARIES = ("entropy-probe", "torch", "transformers", "tokenizers", "numpy", "scipy")
ROOT = Path(__file__).parents[2]
SCHEMA = 1
"""Version of the lines."""


def compute(execute: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Give a run's result, and the weights, libraries, seconds and hardware that it is of.

    Args:
        execute: ``module:function`` of what takes the settings and gives a JSON-able dict.
        settings: the run's.

    Raises:
        ValueError: a result that is no JSON, with an infinite number in it, for one.
    """
    function = resolve(execute)
    cpu, wall = time.process_time(), time.perf_counter()
    result = dict(function(dict(settings)))
    spent = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
    weights = result.pop("weights", None)
    json.dumps(result, allow_nan=False)
    return {
        "schema": SCHEMA,
        "result": result,
        "weights": weights,
        "seconds": {name: round(value, 2) for name, value in spent.items()},
        "libraries": libraries(),
        "hardware": hardware(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def resolve(name: str) -> Callable[[dict[str, Any]], Mapping[str, Any]]:
    """Give the function that ``module:function`` names."""
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def libraries() -> dict[str, str]:
    """Give the versions of the libraries that a result depends on; none of them is imported."""
    found = {}
    for name in LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def hardware() -> dict[str, Any]:
    """Say what a run is computed on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS", "as many as there are"),
        "python": platform.python_version(),
    }


def end_with_input() -> None:
    """End this process when its standard input ends: when the process that started it is gone."""

    def watch() -> None:
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main(argv: list[str] | None = None) -> int:
    """Compute a run and write its line."""
    execute, settings, out = sys.argv[1:] if argv is None else argv
    end_with_input()
    line = compute(execute, json.loads(settings))
    with replacing(Path(out)) as temporary:
        temporary.write_text(json.dumps(line))
    return 0


if __name__ == "__main__":
    sys.exit(main())
