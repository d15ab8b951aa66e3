"""`probe organism`: the models that ship with the package, and what is known of each."""

import json
from typing import Any

import click

from .options import count_option, speaking
from .output import note, table, wants_json, write_json


@click.group()
def organism() -> None:
    """List the shipped models, or show one's card."""


@organism.command("list")
@speaking
def list_organisms() -> None:
    """List the shipped models: parameters, size, and what each is for."""
    from entropy_probe.models.organisms import ORGANISMS, organism_path

    found = []
    for name, about in ORGANISMS.items():
        folder = organism_path(name)
        found.append({
            "organism": name,
            "model": f"organism:{name}",
            "parameters": json.loads((folder / "recipe.json").read_text())["parameters"],
            "bytes": (folder / "model.safetensors").stat().st_size,
            "missed": json.loads((folder / "card.json").read_text())["missed"],
            "about": about,
        })  # fmt: skip
    if wants_json():
        write_json(found)
        return
    rows = [["organism", "parameters", "MB", "about"]]
    for each in found:
        size = f"{each['bytes'] / 1e6:.1f}"
        rows.append([each["organism"], f"{each['parameters']:,}", size, each["about"]])
    click.echo("\n".join(table(rows, right=frozenset({1, 2}))))


@organism.command()
@click.argument("name")
@click.option("--recompute", is_flag=True, help="Measure it from the weights now; minutes.")
@count_option("--limit", None, "Problems to measure it on, with --recompute.  [default: 400]")
@speaking
def card(name: str, recompute: bool, limit: int | None) -> None:
    """Show a model's card: every figure with its interval, and what was promised of it."""
    from entropy_probe.models.organisms import ORGANISMS, organism_path
    from entropy_probe.models.organisms.describing import card_lines

    folder = organism_path(name)
    values = json.loads((folder / "card.json").read_text())
    if recompute:
        note(f"measuring {name}; the card that ships took {values['problems']} problems")
        values = _measured(folder, limit)
    elif limit is not None:
        raise click.UsageError("--limit goes with --recompute")
    if wants_json():
        write_json(values)
        return
    recipe = json.loads((folder / "recipe.json").read_text())
    click.echo("\n".join(card_lines(values, recipe, ORGANISMS[name])))


def _measured(folder: Any, limit: int | None) -> dict[str, Any]:
    """Measure a card anew."""
    from entropy_probe.models.organisms.card import PROBLEMS, make_card

    return make_card(folder, limit=PROBLEMS if limit is None else limit)
