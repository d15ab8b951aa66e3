"""An organism trained anew, its card held against the shipped one.

``python -m analyses.organisms.retrain NAME FOLDER`` trains NAME from its recipe into FOLDER (an
organism that starts from another one finds the shipped one there), measures its card, and prints
how long it took, which bands of the description it meets, and which figures differ. `amenable-3m`
does not ship: it is made this way, and `load` takes its folder.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from entropy_probe.models.organisms import ORGANISMS, organism_path
from entropy_probe.models.organisms.card import make_card
from entropy_probe.models.organisms.describing import band_lines
from entropy_probe.models.organisms.recipes import RECIPES
from entropy_probe.models.organisms.targets import differing
from entropy_probe.models.organisms.train import train


def compared(new: dict[str, Any], seconds: int) -> list[str]:
    """Write down how a card measured now stands to the one that ships."""
    name = new["organism"]
    head = f"{name}, recipe {new['recipe']}, trained{{}} in {seconds} s"
    if name not in ORGANISMS:
        return [head.format(""), "weights: none ship", "", *band_lines(name, new["figures"])]
    card = json.loads((organism_path(name) / "card.json").read_text())
    both = set(card["figures"]) & set(new["figures"])
    sentences = differing(card["figures"], new["figures"])
    return [
        head.format(" again"),
        f"weights: {'the same' if card['weights'] == new['weights'] else 'others'} "
        f"(shipped {card['weights'][:16]}, trained again {new['weights'][:16]})",
        f"problems: {card['problems']} (shipped), {new['problems']} (trained again)",
        "",
        *band_lines(name, new["figures"]),
        "",
        f"Figures on both cards: {len(both)}; intervals that do not meet: {len(sentences)}",
        *(f"  {sentence}" for sentence in sentences),
    ]


def main(argv: list[str] | None = None) -> None:
    """Train an organism again, unless the folder has it already, and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", nargs="?", default="amenable", choices=RECIPES)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("organisms"))
    parser.add_argument("--limit", type=int, default=200, help="problems")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--fast", action="store_true", help="bfloat16 products, compiled")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    folder, recipe = options.folder / options.name, RECIPES[options.name]
    for name in {recipe.start, recipe.teacher} - {None}:
        shutil.copytree(organism_path(name), options.folder / name, dirs_exist_ok=True)
    if not folder.exists():
        train(recipe, folder, fast=options.fast)
    seconds = json.loads((folder / "recipe.json").read_text())["seconds"]
    card = make_card(folder, limit=options.limit)
    (folder / "card.json").write_text(json.dumps(card, indent=1) + "\n")
    sys.stdout.write("\n".join(compared(card, seconds)) + "\n")


if __name__ == "__main__":
    main()
