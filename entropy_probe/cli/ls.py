"""`probe ls`: the runs in a folder, from their `run.json` alone."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from entropy_probe.storage.errors import RunError
from entropy_probe.storage.files import TEMPORARY

from .failing import Failure, usage
from .options import speaking
from .output import table, wants_json, write_json

if TYPE_CHECKING:
    from entropy_probe.storage.manifest import Manifest

_DEPTHS = ("run.json", "*/run.json", "*/*/run.json")


@click.command()
@click.argument("folder", metavar="[DIR]", default=".")
@speaking
def ls(folder: str) -> None:
    """List the runs in a folder.

    Looks in DIR (here, by default) and two folders deep; the newest run comes first.
    """
    path = Path(folder)
    if not path.is_dir():
        why = "it is a file" if path.exists() else "there is nothing"
        raise usage(f"{folder!r} is not a folder", why, "pass a folder that holds runs")
    places = [file.parent for pattern in _DEPTHS for file in path.glob(pattern)]
    # A run that is being written, or was cut off, inside another one's directory is none yet.
    found = [describe(place) for place in places if not place.name.startswith(TEMPORARY)]
    found.sort(key=lambda run: (run["created"] or "", run["run"]), reverse=True)
    if not found:
        why = f"no run.json in {folder!r} or two folders below it"
        raise Failure("nothing", "there are no runs", why, "make one: probe demo")
    if wants_json():
        write_json(found)
    else:
        click.echo("\n".join(_lines(found)))


def describe(path: Path) -> dict[str, Any]:
    """Say what a run is, or what is wrong with it; no table is read."""
    from entropy_probe.storage.manifest import read_manifest

    about: dict[str, Any] = dict.fromkeys(("model", "kind", "planned", "created"))
    try:
        manifest = read_manifest(path)
        samples = _count(path, manifest)
    except (ValueError, OSError) as error:
        why = error.why if isinstance(error, RunError) else str(error)
        return {"run": str(path), "status": "damaged", "why": why, "samples": None} | about
    plan, about["created"] = manifest.plan, str(manifest.created)
    if plan is not None:
        about |= {"model": plan.model, "kind": plan.kind, "planned": plan.samples}
    elif manifest.provenance is not None:
        about |= {"model": manifest.provenance.get("model"), "kind": "import", "planned": samples}
    status = "complete" if samples == about["planned"] else "not complete"
    return {"run": str(path), "status": status, "why": None, "samples": samples} | about


def _count(path: Path, manifest: "Manifest") -> int:
    """Count the samples that are there."""
    from entropy_probe.storage.parts import committed_chunks, parts

    chunks = committed_chunks(path)
    if manifest.plan is not None:
        inside = [index for index in chunks if index < manifest.plan.chunks]
        return sum(len(manifest.plan.samples_of(index)) for index in inside)
    import pyarrow.parquet as pq

    count = 0
    for index in chunks:
        with parts(path, index)["samples"].open("rb") as table:
            count += pq.read_metadata(table).num_rows
    return count


def _lines(found: list[dict[str, Any]]) -> list[str]:
    """Align the runs in columns."""
    from entropy_probe.viewing.visible import visible_text

    rows = [["run", "model", "samples", "status", "created (UTC)"]]
    for run in found:
        samples = "—" if run["samples"] is None else f"{run['samples']}/{run['planned']}"
        status = run["status"] if run["why"] is None else f"{run['status']}: {run['why']}"
        created = (run["created"] or "—").removesuffix("+00:00").replace("T", " ")
        cells = (run["run"], run["model"] or "—", samples, status, created)
        rows.append([visible_text(cell) for cell in cells])
    return table(rows, right=frozenset({2}))
