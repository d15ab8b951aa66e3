"""`run.json`: schema version, what made the run, its plan and its state. Needs no torch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from entropy_probe.provenance import Provenance

from .errors import NotARun, RunError
from .files import replacing
from .plan import Plan

SCHEMA_VERSION = 1
MANIFEST = "run.json"
PAGE = "report.html"
"""Where `probe report` puts a run's page."""
COMPLETE, RUNNING = "complete", "running"
_KINDS = {
    "created": str, "libraries": dict, "hardware": dict, "plan": dict | None,
    "provenance": dict | None, "status": str,
}  # fmt: skip


@dataclass(frozen=True)
class Manifest:
    """The content of `run.json`."""

    created: str
    """When the run began, ISO 8601, UTC."""
    libraries: Mapping[str, str]
    """Versions of this package and of what computed the run."""
    hardware: Mapping[str, Any]
    """Machine, device and threads, for reading the numbers' last bits and the times."""
    plan: Plan | None
    """What is to be computed; None where the run was imported."""
    provenance: Mapping[str, Any] | None = None
    """Where the numbers come from; None until the first chunk exists."""
    status: str = RUNNING
    """"running" until every chunk exists, then "complete"."""


def read_manifest(path: Path) -> Manifest:
    """Read a run directory's `run.json`.

    Raises:
        NotARun: no such folder, or no `run.json` in it.
        RunError: a `run.json` that is damaged, or of a newer schema.
    """
    file = path / MANIFEST
    try:
        if not path.is_dir():
            raise NotARun(path, "there is a file" if path.exists() else "there is no such folder")
        if not file.is_file():
            raise NotARun(path, f"it holds no {MANIFEST}")
        content = file.read_bytes()
    except OSError as error:
        raise NotARun(path, f"it cannot be read: {error.strerror or error}") from None
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _damaged(file, f"it is not JSON ({error})") from None
    if not isinstance(values, dict) or "schema_version" not in values:
        raise NotARun(path, f"its {MANIFEST} names no schema_version")
    version = values.pop("schema_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise _damaged(file, f"its schema_version is {version!r}, expected a whole number")
    if version > SCHEMA_VERSION:
        raise RunError(
            f"{str(path)!r} was written by a newer version of entropy-probe",
            f"its schema version is {version}, and this version reads up to {SCHEMA_VERSION}",
            "pip install --upgrade entropy-probe",
        )
    return _content(file, values)


def _content(file: Path, values: dict[str, Any]) -> Manifest:
    """Give what a `run.json` of a known schema says."""
    for name, kind in _KINDS.items():
        if not isinstance(values.get(name), kind):
            raise _damaged(file, f"its {name} is {values.get(name)!r:.80}")
    try:
        if values["provenance"] is not None:
            Provenance.from_dict(values["provenance"])
        plan = values.pop("plan")
        return Manifest(plan=None if plan is None else Plan.from_dict(plan), **values)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise _damaged(file, f"its content makes no sense ({error})") from None


def write_manifest(path: Path, manifest: Manifest, *, exclusive: bool = False) -> None:
    """Write a run directory's `run.json`, in one step; see `replacing`."""
    values = {"schema_version": SCHEMA_VERSION} | {
        name: getattr(manifest, name)
        for name in ("status", "created", "libraries", "hardware", "provenance")
    }
    values["plan"] = None if manifest.plan is None else manifest.plan.to_dict()
    # A line a key; ASCII, so that prompts with lone surrogates survive too.
    lines = (f" {json.dumps(k)}: {_json(v)}" for k, v in values.items())
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    with replacing(path / MANIFEST, exclusive=exclusive) as temporary:
        temporary.write_text(text, encoding="ascii")


def _json(value: object) -> str:
    return json.dumps(value, allow_nan=False, default=_plain)


def _plain(value: object) -> object:
    """Turn the mappings and sequences that JSON does not know into those that it does."""
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a plan must hold plain JSON values, got {type(value).__name__}")


def _damaged(file: Path, why: str) -> RunError:
    return RunError(
        f"{str(file)!r} is damaged",
        why,
        "restore the file from a copy; the tables beside it can still be read as Parquet folders",
    )
