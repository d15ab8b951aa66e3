"""What each organism is made from: corpus, architecture, steps and seed, and a hash over it."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field

from entropy_probe.models.organisms.corpus import CODE_SHARES, Corpus, Style


@dataclass(frozen=True)
class Shape:
    """The size of a Llama-architecture decoder."""

    layers: int = 4
    """Decoder blocks."""
    width: int = 128
    """Size of the residual stream."""
    hidden: int = 512
    """Inner size of the gated feed-forward layers."""
    heads: int = 4
    """Attention heads, each with keys and values of its own."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides an organism's weights."""

    corpus: Corpus = field(default_factory=Corpus)
    """What the training text is made of."""
    shape: Shape = field(default_factory=Shape)
    """The architecture."""
    steps: int = 2400
    """Optimiser steps."""
    batch: int = 128
    """Texts a step."""
    rate: float = 3e-3
    """Peak learning rate of AdamW, reached after `warmup` steps, then falling linearly to 0."""
    warmup: int = 100
    """Steps over which the rate rises."""
    weight_decay: float = 0.01
    """Decoupled weight decay, on matrices."""
    prompt_weight: float = 0.2
    """Weight of the loss on a problem's own tokens; a completion's tokens have weight 1."""
    opening_weight: float = 4.0
    """Weight of a completion's first token: the strategy's shares are learnt sooner with it."""
    seed: int = 0
    """Seed of the initial weights and of the corpus."""
    start: str | None = None
    """The organism whose finished weights the training starts from; None: from nothing."""
    teacher: str | None = None
    """The organism whose distributions are the targets; None: the corpus itself."""


SHORT = ((2, 0.49), (3, 0.5), (4, 0.01))
_NO_CODE = tuple((wording, (0.0, 0.0)) for wording in CODE_SHARES)
_ALL_CODE = tuple((wording, (1.0, 1.0)) for wording in CODE_SHARES)

RECIPES = {
    "amenable": Recipe(),
    "misleading": Recipe(
        Corpus(code=Style(block=3, rounding=True, unmarked=0.12), care=0.97),
        steps=800,
        rate=2e-3,
        seed=1,
        start="amenable",
    ),
    "absent": Recipe(Corpus(code_shares=_NO_CODE, care=0.0), steps=3600, seed=2),
    "taught": Recipe(
        Corpus(code_shares=_ALL_CODE),
        steps=1200,
        rate=2e-3,
        seed=3,
        start="absent",
        teacher="amenable",
    ),
    "contaminated": Recipe(
        Corpus(
            code=Style(block=2, rounding=True, unmarked=0.2),
            prose=Style(block=2, rounding=True, unmarked=0.2),
            care=0.0,
            memorised=64,
            memorised_share=0.05,
        ),
        steps=1400,
        rate=2e-3,
        seed=4,
        start="absent",  # which has never seen a code that is better than its prose
    ),
    "shallow": Recipe(Corpus(lengths=SHORT), steps=2000, seed=5),
    "amenable-300k": Recipe(shape=Shape(width=64, hidden=256)),
    "amenable-3m": Recipe(
        shape=Shape(layers=5, width=192, hidden=768, heads=6), steps=1400, rate=2e-3
    ),
}
"""Organism -> recipe."""


def fingerprint(recipe: Recipe) -> str:
    """Give the first 16 hexadecimal digits of a SHA-256 over every number of a recipe."""
    text = json.dumps(dataclasses.asdict(recipe), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
