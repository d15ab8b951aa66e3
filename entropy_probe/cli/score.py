"""`probe score`: describe tokens that exist already, a text's or another run's."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .failing import usage
from .machines import Choice, Filling, running
from .options import count_option, model_options, speaking, writing_options
from .output import note
from .prompts import read_prompts, refuse_without_samples
from .running import check_out, conclude, fill, go_on, goes_on_alone, layer_numbers, require_model

if TYPE_CHECKING:
    from entropy_probe.retokenizing import Given


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
    help="Of the distributions described.  [default: the run's; 1 for a text, or where the run "
    "does not tell]",
)
@click.option("--include-prompts", is_flag=True, help="Describe the run's prompts as well.")
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Chooses the other tokens beside forks."
)
@count_option("--batch-size", 16, "Rows of a pass.")
@click.option(
    "--head",
    type=click.Choice(["tiles", "liger"]),
    default="tiles",
    show_default=True,
    help="What computes the statistics; liger: Hopper GPUs, bfloat16, rounded entropies, and "
    "--alternatives 0 (extra fused).",
)
@writing_options
@speaking
@click.pass_context
def score(
    context: click.Context, run: str | None, model: str | None, device: str | None,
    dtype: str | None, revision: str | None, texts: tuple[str, ...], prompts: str | None,
    limit: int | None, temperature: float | None, include_prompts: bool, seed: int,
    batch_size: int, head: str, layers: tuple[int, ...] | str | None, activations: str,
    alternatives: int, fraction: float, max_disk: int | None, shard: tuple[int, int] | None,
    ray: str | None, resume: bool, overwrite: bool, out: str | None,
) -> None:  # fmt: skip
    """Describe tokens that exist: a text, or another run.

    Gives the record that sampling them would have given. The tokens of a text are all described
    but the first; of a RUN, another model's or another tool's, those that were generated.
    """
    how = Filling(resume, overwrite, shard, max_disk)
    choice = Choice(model, device, dtype, revision)
    if goes_on_alone(context):
        conclude(go_on(out, "score", choice, how, ray))
        return
    model = require_model(model)
    source = _source(run, texts, prompts, limit)
    path, begun = check_out(out, model, how, ray)
    _refuse_same(path, run)
    with running(choice, ray, begun and begun.threads) as where:
        rows, known = _rows(where.tokenizer, source, limit, include_prompts)
        if temperature is None and known.temperature is None:
            note(f"{run} does not tell its temperature: scoring at 1; --temperature sets another")
        arguments = {
            "temperature": (known.temperature or 1.0) if temperature is None else temperature,
            "residual_layers": layer_numbers(where, layers, activations),
            "residual_positions": activations, "alternatives": alternatives, "seed": seed,
            "batch_size": batch_size, "fraction": fraction,
            **({} if head == "tiles" else {"head": head}),
        }  # fmt: skip
        options = {
            "task": known.task, "problems": known.problems[:limit], "origin": known.origin,
            "chunk_rows": begun and begun.chunk, "revision": revision,
        }  # fmt: skip
        found = fill(where, where.plan_scores(rows, arguments, options), path, how)
    conclude(found)


def _rows(
    tokenizer, source: Any, limit: int | None, include_prompts: bool
) -> "tuple[list[dict[str, Any]], Given]":
    """Give the rows to score, and what is known of where they come from."""
    from entropy_probe.retokenizing import rows_to_score

    given = rows_to_score(tokenizer, source)
    rows = list(given.rows[:limit])
    if include_prompts:
        rows = [row | {"valid": [[1, len(row["tokens"])]]} for row in rows]
    return rows, given


def _refuse_same(path: Path, run: str | None) -> None:
    """Raise where the scores would be written over what is scored."""
    if run is not None and path.resolve() == Path(run).resolve():
        raise usage(
            "the scores need a folder of their own",
            f"{run!r} is both what is to be read and where to write",
            "pass another -o",
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
