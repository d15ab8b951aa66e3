"""`probe score`: describe tokens that exist already, a text's or another run's."""

from pathlib import Path
from typing import Any

import click

from .failing import usage
from .options import count_option, model_options, speaking, writing_options
from .prompts import read_prompts, refuse_without_samples
from .running import (
    check_out,
    conclude,
    fill,
    go_on,
    goes_on_alone,
    layer_numbers,
    load_model,
    require_model,
)


@click.command()
@click.argument("run", metavar="[RUN]", required=False)
@model_options(required=False)
@click.option("-p", "--prompt", "texts", multiple=True, metavar="TEXT", help="Repeatable.")
@click.option(
    "--prompts",
    metavar="FILE",
    help="Texts: one a line, or JSON lines with prompt or messages; - for standard input.",
)
@count_option("--limit", None, "Texts, or samples of the run, to take at most.  [default: all]")
@click.option(
    "--temperature",
    type=click.FloatRange(min=0, min_open=True),
    help="Of the distributions described.  [default: the run's; 1 for a text]",
)
@click.option("--include-prompts", is_flag=True, help="Describe the run's prompts as well.")
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Chooses the other tokens beside forks."
)
@count_option("--batch-size", 16, "Rows of a pass.")
@writing_options
@speaking
@click.pass_context
def score(
    context: click.Context, run: str | None, model: str | None, device: str | None,
    dtype: str | None, revision: str | None, texts: tuple[str, ...], prompts: str | None,
    limit: int | None, temperature: float | None, include_prompts: bool, seed: int,
    batch_size: int, layers: tuple[int, ...] | str | None, activations: str, alternatives: int,
    fraction: float, max_disk: int | None, resume: bool, overwrite: bool, out: str | None,
) -> None:  # fmt: skip
    """Describe tokens that exist: a text, or another run.

    Gives the record that sampling them would have given. The tokens of a text are all described
    but the first; of a RUN, another model's or another tool's, those that were generated.
    """
    if goes_on_alone(context):
        conclude(go_on(out, "score", model, device, dtype, revision))
        return
    model = require_model(model)
    source = _source(run, texts, prompts, limit)
    path, existing = check_out(out, model, resume=resume, overwrite=overwrite)
    if run is not None and path.resolve() == Path(run).resolve():
        raise usage(
            "the scores need a folder of their own",
            f"{run!r} is both what is to be read and where to write",
            "pass another -o",
        )
    loaded, tokenizer = load_model(model, device, dtype, revision)
    from entropy_probe.planning import plan_scores
    from entropy_probe.retokenizing import rows_to_score

    given = rows_to_score(tokenizer, source)
    rows, problems = given.rows[:limit], given.problems[:limit]
    if include_prompts:
        rows = [row | {"valid": [[1, len(row["tokens"])]]} for row in rows]
    arguments = {
        "temperature": given.temperature if temperature is None else temperature,
        "residual_layers": layer_numbers(loaded, layers, activations),
        "residual_positions": activations, "alternatives": alternatives, "seed": seed,
        "batch_size": batch_size, "fraction": fraction,
    }  # fmt: skip
    chunk = existing.plan.chunk if resume and existing is not None and existing.plan else None
    plan = plan_scores(
        loaded, rows, arguments, task=given.task, problems=problems, origin=given.origin,
        chunk_rows=chunk, revision=revision,
    )  # fmt: skip
    conclude(
        fill(loaded, tokenizer, plan, path, resume=resume, overwrite=overwrite, max_disk=max_disk)
    )


def _source(run: str | None, texts: tuple[str, ...], file: str | None, limit: int | None) -> Any:
    """Give the run or the texts that are to be scored."""
    if run is None:
        return read_prompts(texts, file, None, limit)
    if texts or file is not None:
        why = "a run and texts exclude each other"
        raise usage("what is to be scored?", why, "pass RUN, -p TEXT or --prompts FILE alone")
    from entropy_probe.storage.run import open_run

    found = open_run(run)
    refuse_without_samples(len(found.chunks), found.path)
    return found
