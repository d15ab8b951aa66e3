"""`probe import`: what another tool left behind, as a run directory."""

import shlex
from pathlib import Path

import click

from .options import speaking
from .output import note, write_path
from .running import counted


@click.command("import")
@click.argument("file")
@click.option("-o", "--out", metavar="RUN", help="Run directory.  [default: runs/<name of FILE>]")
@click.option(
    "--format",
    "layout",
    type=click.Choice(["openai", "trl", "prime-rl"]),
    help="[default: recognised by the content]",
)
@click.option(
    "--tokenizer", metavar="MODEL", help="Gives the texts of token ids, where FILE has ids alone."
)
@click.option("--overwrite", is_flag=True, help="Replace the run at -o.")
@speaking
def import_(
    file: str, out: str | None, layout: str | None, tokenizer: str | None, overwrite: bool
) -> None:
    """Read what another tool left behind into a run.

    openai: logprobs as OpenAI's API and vLLM give them, JSON or JSON lines; entropies are lower
    bounds, from the most probable tokens.

    trl: the completions that TRL logs, a Parquet file or a folder of them; texts alone, for which
    `probe score` computes the numbers.

    prime-rl: token exports, JSON lines or a folder of them; exact entropies of token ids.
    """
    path = Path(out) if out is not None else _default_out(Path(file))
    from entropy_probe.importing import import_file
    from entropy_probe.importing.rows import left_out

    known = None
    if tokenizer is not None:
        from entropy_probe.models import load_tokenizer

        known = load_tokenizer(tokenizer)
    counts: list[int] = []
    run = import_file(
        file, path, format=layout, tokenizer=known, overwrite=overwrite, on_skipped=counts.append
    )
    about, skipped = run.provenance, sum(counts)
    note(f"{counted(len(run), 'sample')} of {about.model}, {about.source}")
    if skipped:
        note(left_out(skipped, len(run)))
    name = shlex.quote(str(path))
    if about.source == "text":
        note("there are texts but no numbers per token; a model can give them:")
        note(f"next: probe score {name} --model MODEL")
    else:
        if about.missing_mass is not None:
            words = f"{about.missing_mass:.2%} of the probability is not in the file on average"
            note(f"entropies are lower bounds: {words}")
        note(f"next: probe report {name}")
    values = {
        "run": str(path), "samples": len(run), "skipped": skipped, "source": about.source,
        "missing_mass": about.missing_mass,
    }  # fmt: skip
    write_path(path, values)


def _default_out(file: Path) -> Path:
    """Give the folder under ``runs`` that has the name of what is imported."""
    named = file if file.name not in ("", "..") else file.resolve()
    return Path("runs") / (named.stem or "imported")
