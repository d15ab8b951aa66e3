"""`probe export`: a run as files that other tools read."""

from pathlib import Path

import click

from .options import speaking
from .output import note, write_path
from .prompts import refuse_without_samples
from .running import counted


@click.command()
@click.argument("run")
@click.option(
    "--to",
    type=click.Choice(["parquet", "csv", "jsonl", "datasets"]),
    default="parquet",
    show_default=True,
    help="datasets is Parquet with a card, for `load_dataset`.",
)
@click.option("-o", "--out", metavar="PATH", help="[default: RUN-<to>, or RUN.jsonl]")
@click.option("--overwrite", is_flag=True, help="Replace the files of an earlier export.")
@speaking
def export(run: str, to: str, out: str | None, overwrite: bool) -> None:
    """Write a run as files that other tools read.

    There is a line a sample and a line a token; activations stay in the run directory.
    """
    from entropy_probe.exporting import export_run
    from entropy_probe.storage.run import open_run

    found = open_run(run)
    refuse_without_samples(len(found.chunks), found.path)
    where = found.path if found.path.name not in ("", "..") else found.path.resolve()
    default = where.with_name(f"{where.name}.jsonl" if to == "jsonl" else f"{where.name}-{to}")
    path = export_run(found, default if out is None else Path(out), to, overwrite=overwrite)
    note(counted(len(found), "sample"))
    write_path(path, {"export": str(path), "to": to, "samples": len(found)})
