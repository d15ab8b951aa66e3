"""`probe env`: what this machine and this installation can do."""

import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import click

from entropy_probe import __version__

from .options import speaking
from .output import table, wants_json, write_json

_LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "pyarrow", "numpy", "click")
_NO_FEATURE = ("test", "browser", "all")


@click.command()
@speaking
def env() -> None:
    """Show versions, devices, and which extras are there."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    models = sorted(p.name for p in cache.glob("models--*")) if cache.is_dir() else []
    values = {
        "entropy-probe": __version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "libraries": {name: _version(name) for name in _LIBRARIES},
        "devices": _devices(),
        "extras": {name: missing_of(name) for name in _extras()},
        "offline": bool(constants.HF_HUB_OFFLINE),
        "cache": str(cache),
        "cached_models": [name.removeprefix("models--").replace("--", "/") for name in models],
    }
    if wants_json():
        write_json(values)
        return
    click.echo("\n".join(_lines(values)))


def missing_of(extra: str) -> list[str]:
    """List the requirements of an extra that are not met here."""
    from packaging.requirements import Requirement

    missing = []
    for line in metadata.requires("entropy-probe") or ():
        requirement = Requirement(line)
        marker = requirement.marker
        wanted = marker is not None and marker.evaluate({"extra": extra})
        if not wanted or marker.evaluate({"extra": ""}) or requirement.name == "entropy-probe":
            continue
        found = _version(requirement.name)
        if found is None or not requirement.specifier.contains(found, prereleases=True):
            missing.append(f"{requirement.name}{requirement.specifier}")
    return missing


def _extras() -> list[str]:
    """List the extras that bring a feature."""
    names = metadata.metadata("entropy-probe").get_all("Provides-Extra") or ()
    return [name for name in names if name not in _NO_FEATURE]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _devices() -> list[dict[str, Any]]:
    """List what ``--device`` can be."""
    import torch

    found: list[dict[str, Any]] = [
        {
            "device": "cpu",
            "name": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads",
            "free_bytes": None,
        }
    ]
    for i in range(torch.cuda.device_count()):
        free = torch.cuda.mem_get_info(i)[0]
        found.append(
            {"device": f"cuda:{i}", "name": torch.cuda.get_device_name(i), "free_bytes": free}
        )
    if torch.backends.mps.is_available():
        found.append({"device": "mps", "name": "Apple GPU", "free_bytes": None})
    return found


def _lines(values: dict[str, Any]) -> list[str]:
    """Write the facts, one a line."""
    from entropy_probe.storage.estimate import words_for
    from entropy_probe.viewing.visible import visible_text

    rows = [[name, values[name]] for name in ("entropy-probe", "python", "executable", "platform")]
    rows += [[name, version or "missing"] for name, version in values["libraries"].items()]
    for device in values["devices"]:
        free = "" if device["free_bytes"] is None else f", {words_for(device['free_bytes'])} free"
        rows.append([f"device {device['device']}", device["name"] + free])
    for name, missing in values["extras"].items():
        words = f"missing {', '.join(missing)}: pip install 'entropy-probe[{name}]'"
        rows.append([f"extra {name}", words if missing else "there"])
    offline = "yes (HF_HUB_OFFLINE=1): nothing is downloaded" if values["offline"] else "no"
    rows.append(["offline", offline])
    held = ", ".join(values["cached_models"]) or "no models"
    rows.append(["cache", f"{values['cache']}: {held}"])
    return table([[visible_text(cell) for cell in row] for row in rows])
