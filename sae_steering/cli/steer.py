"""`probe steer`: a model as it is beside itself steered, with the same noise."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from entropy_probe.cli.options import count_option, model_options, speaking
from entropy_probe.cli.output import note, progress, table, wants_json, write_json, write_path
from entropy_probe.cli.prompts import find_task, read_prompts
from entropy_probe.cli.reading import new_file
from entropy_probe.viewing.visible import visible_text

from .wanted import (
    PLACES,
    dictionary_for,
    feature_options,
    features_by_strength,
    origin_of,
    refuse_threshold,
    threshold_of,
)

if TYPE_CHECKING:
    from sae_steering.sides import Sides


@click.command()
@model_options(required=True)
@feature_options(required=True)
@click.option(
    "--where",
    type=click.Choice(PLACES),
    default="all",
    show_default=True,
    help="States to change: opening is the last of the prompt, forks those that choose a token "
    "with an entropy of --threshold or more.",
)
@click.option(
    "--mode",
    type=click.Choice(["add", "clamp", "ablate", "replace"]),
    default="add",
    show_default=True,
    help="Add strength to the activation, set it to strength, take that share of it out, or set "
    "the component along the direction.",
)
@click.option("-p", "--prompt", "texts", multiple=True, metavar="TEXT", help="Repeatable.")
@click.option(
    "--prompts",
    metavar="FILE",
    help="One a line, or JSON lines with prompt or messages; - for standard input.",
)
@click.option("--task", metavar="NAME", help="Problems of a task, whose answers are verified.")
@count_option("--limit", None, "Prompts to take at most.  [default: all; 16 problems of a task]")
@count_option("--n", 1, "Completions a prompt.")
@count_option("--max-new-tokens", 256, "Tokens after which a completion is cut.")
@click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    help="0 is greedy.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the noise.")
@count_option("--batch-size", 64, "Completions decoded together.")
@click.option("--redact-prompts", is_flag=True, help="Leave the text of prompts out of the page.")
@click.option("--title", help="Heading of the page.  [default: it names the model]")
@click.option(
    "-o", "--out", default="steered.html", show_default=True, metavar="PAGE", help="The page."
)
@speaking
def steer(
    model: str, device: str | None, dtype: str | None, revision: str | None, sae: str,
    features: tuple[int, ...], strengths: tuple[float, ...], layer: tuple[int, ...] | str | None,
    threshold: float | str | None, where: str, mode: str, texts: tuple[str, ...],
    prompts: str | None, task: str | None, limit: int | None, n: int, max_new_tokens: int,
    temperature: float, seed: int, batch_size: int, redact_prompts: bool, title: str | None,
    out: str,
) -> None:  # fmt: skip
    """Write what a model says as it is and steered beside each other.

    The same prompts and the same noise on both sides, so that what differs is the steering's
    doing. With --where forks the default threshold is the 80th percentile of the entropy of the
    unsteered side, and the page names it.
    """
    wanted = features_by_strength(features, strengths)
    refuse_threshold(where, threshold)
    dictionary, block = dictionary_for(sae, layer, features)
    inputs = read_prompts(texts, prompts, task, limit)
    from entropy_probe import load
    from sae_steering.interventions import Steering
    from sae_steering.outcomes import Drawing
    from sae_steering.sides import compare

    nats = threshold_of(threshold)
    held, tokenizer = load(model, device=device, dtype=dtype, revision=revision)
    origin = origin_of(dictionary, held)
    steering = Steering(
        dictionary.to(held.device), wanted, block, mode=mode, where=where, threshold=nats
    )
    drawing = Drawing(n, max_new_tokens, temperature, seed, batch_size)
    with progress("side") as move:
        sides = compare(
            held, tokenizer, inputs, steering, task=task and find_task(task), drawing=drawing,
            progress=move,
        )  # fmt: skip
    facts = _facts(sides, origin, task)
    _write_page(Path(out), sides, title or f"{model}, steered", facts, redact_prompts)
    values = {
        "page": out, "model": model, "sae": sae, "facts": dict(facts),
        "measures": {m.name: m.to_dict() for m in sides.measures},
    }  # fmt: skip
    if wants_json():
        write_json(values)
        return
    head = ["", "as it is", "steered", "difference"]
    click.echo("\n".join(table([head, *(measure.words() for measure in sides.measures)])))
    write_path(Path(out), values)


def _facts(sides: "Sides", origin: str, task: str | None) -> list[tuple[str, str]]:
    """Give what is to be said of both sides."""
    drawn = sides.plain.provenance
    prompts = len(sides.plain.groups.unique())
    heat = "greedy" if drawn.temperature == 0 else f"temperature {drawn.temperature:g}"
    facts = [
        ("Model", f"{drawn.model}, weights {drawn.weights}"),
        ("Edit", sides.edit),
        ("Dictionary", origin),
        ("Prompts", f"{prompts} of {task}" if task else str(prompts)),
        ("Completions", f"{len(sides.plain)}, {heat}, seed {drawn.seed}: the same noise"),
    ]
    if sides.threshold is None:
        return facts
    edited, tokens = int(sides.edited.sum()), int(sides.steered.valid.sum())
    words = f"{edited} of {tokens} tokens ({edited / tokens:.1%}), {sides.recomputed} positions"
    return [
        *facts,
        ("Threshold", sides.threshold.describe()),
        ("Edited", f"{words} run twice"),
    ]


def _write_page(
    path: Path, sides: "Sides", title: str, facts: list[tuple[str, str]], redact_prompts: bool
) -> None:
    """Write both sides."""
    from sae_steering.pages import comparison_page

    page = comparison_page(
        sides.plain, sides.steered, title=visible_text(title), facts=_visible(facts),
        measures=[measure.words() for measure in sides.measures], edited=sides.edited,
        redact_prompts=redact_prompts,
    )  # fmt: skip
    with new_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace")
    note(f"{path.stat().st_size / 1e6:.2f} MB")


def _visible(facts: list[tuple[str, Any]]) -> list[tuple[str, str]]:
    """Give facts in which nothing is hidden: names of models and folders are anybody's text."""
    return [(label, visible_text(text)) for label, text in facts]
