"""Which files a chunk of a run is made of, and which chunks are there. Needs no torch."""

import re
from pathlib import Path

SAMPLES, TOKENS = "samples.parquet", "tokens.parquet"
ACTIVATIONS = "activations"
INDEX = f"{ACTIVATIONS}/index.parquet"

_COMMITTED = re.compile(r"chunk-(\d{5,9})\.parquet")


def parts(path: Path, index: int) -> dict[str, Path]:
    """Name the files of a chunk, in the order in which they are written."""
    name = f"chunk-{index:05d}"
    return {
        "states": path / ACTIVATIONS / f"{name}.safetensors",
        "index": path / INDEX / f"{name}.parquet",
        "tokens": path / TOKENS / f"{name}.parquet",
        "samples": path / SAMPLES / f"{name}.parquet",
    }


def committed_chunks(path: Path) -> list[int]:
    """List the chunks that are there, whole."""
    found = (path / SAMPLES).iterdir() if (path / SAMPLES).is_dir() else ()
    names = (_COMMITTED.fullmatch(file.name) for file in found)
    return sorted(int(name[1]) for name in names if name)
