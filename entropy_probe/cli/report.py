"""`probe report`: a run as one self-contained HTML page."""

import shlex
from pathlib import Path

import click

from .options import count_option, fork_options, speaking
from .output import note, write_path
from .reading import new_file, read_run


@click.command()
@click.argument("run")
@click.option("-o", "--out", metavar="FILE", help="The page.  [default: RUN/report.html]")
@fork_options
@count_option("--samples", None, "Samples to draw at most, the first ones.  [default: all]")
@count_option("--max-tokens", None, "Tokens to draw at most.  [default: 50000]")
@click.option("--title", help="Heading of the page.  [default: it names the model]")
@click.option("--redact-prompts", is_flag=True, help="Leave the text of prompts out.")
@speaking
def report(
    run: str, out: str | None, fraction: float, scope: str, samples: int | None,
    max_tokens: int | None, title: str | None, redact_prompts: bool,
) -> None:  # fmt: skip
    """Write a run as one self-contained HTML page.

    Forks and their threshold are those of the whole run, also where only a part is drawn.
    """
    found, rollouts = read_run(run)
    from entropy_probe.planted import roles_of_run
    from entropy_probe.storage.manifest import PAGE
    from entropy_probe.viewing.marks import drawn_lengths
    from entropy_probe.viewing.page import PAGE_TOKENS, heatmap

    limit = PAGE_TOKENS if max_tokens is None else max_tokens
    if samples is not None:
        limit = min(limit, max(1, int(rollouts.lengths[:samples].sum())))
    page = heatmap(
        rollouts, fraction=fraction, scope=scope, title=title, redact_prompts=redact_prompts,
        max_tokens=limit, roles=roles_of_run(found, rollouts),
    )  # fmt: skip
    path = found.path / PAGE if out is None else Path(out)
    with new_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace")
    drawn = len(drawn_lengths(rollouts, limit))
    note(f"{drawn} of {len(rollouts)} samples drawn, {path.stat().st_size / 1e6:.2f} MB")
    if drawn < len(rollouts):
        note(f"the others: probe show {shlex.quote(run)} --sample {found.sample_numbers[drawn]}")
    if not found.complete:
        note(f"the run is not complete: {len(found)} of {found.plan.samples} samples are there")
    values = {"report": str(path), "samples_drawn": drawn, "samples": len(rollouts)}
    write_path(path, values)
