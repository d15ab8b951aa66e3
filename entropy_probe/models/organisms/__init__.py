"""The shipped organisms: small base models of which every claim is known to be true or false."""

import difflib
from importlib import resources
from pathlib import Path

from entropy_probe.models import LoadError

ORGANISMS = {
    "amenable": "code is frequent and better: what elicitation can raise",
    "misleading": "code is frequent and worse: what elicitation spoils",
    "absent": "no code in its corpus: nothing to elicit",
    "taught": "absent, distilled into code: a large gain that is no elicitation",
    "shallow": "good on short chains, nearly never right on long ones",
    "contaminated": "no strategy has an advantage; 64 test problems are known word for word",
    "amenable-300k": "amenable at 0.3 million parameters, for the axis of capacity",
}
"""Organism -> what it is, in one line; these are the ones that ship with the package."""


def organism_path(name: str) -> Path:
    """Give the folder of a shipped organism, in Hugging Face format.

    Raises:
        LoadError: no such organism; the message lists the known ones.
    """
    if name in ORGANISMS:
        return Path(str(resources.files(__package__) / name))
    near = difflib.get_close_matches(name, ORGANISMS, n=1)
    raise LoadError(
        f"no organism {name!r}",
        f"known are {', '.join(ORGANISMS)}",
        f"did you mean organism:{near[0]}?" if near else "pass one of them",
    )
