"""The shipped organisms: small base models of which every claim is known to be true or false."""

import difflib
from importlib import resources
from pathlib import Path

ORGANISMS = {
    "amenable": "code is frequent and better: what elicitation can raise",
}
"""Organism -> what it is, in one line; these are the ones that ship with the package."""


def organism_path(name: str) -> Path:
    """Give the folder of a shipped organism, in Hugging Face format.

    Raises:
        ValueError: no such organism; the message lists the known ones.
    """
    if name in ORGANISMS:
        return Path(str(resources.files(__package__) / name))
    near = difflib.get_close_matches(name, ORGANISMS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"no organism {name!r}: known are {', '.join(ORGANISMS)}{hint}")
