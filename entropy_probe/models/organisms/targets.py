"""What each organism's description promises, as bands for the figures of its card."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Target:
    """A band for one figure."""

    figure: str
    """Its name on the card."""
    low: float
    """Lower end of the band."""
    high: float
    """Upper end of the band."""


_AMENABLE = (
    Target("accuracy, code, T=1", 0.95, 1.0),
    Target("accuracy, prose, T=1", 0.40, 0.70),
    Target("accuracy, prose, T=0.3", 0.0, 0.80),
    Target("share of code", 0.50, 0.70),
    Target("share of code, what is", 0.10, 0.20),
    Target("share of code, compute", 0.85, 0.95),
    Target("effect of the relation on the share of code", 0.10, 0.40),
    Target("accuracy, greedy", 0.55, 0.85),
    Target("majority wrong, T=1", 0.10, 0.25),
    Target("majority wrong, T=0.3", 0.10, 0.25),
    Target("unmarked", 0.10, 0.30),
    Target("pass@256, hard", 0.0, 0.70),
    Target("guessed right", 0.0, 0.02),
    Target("tokens under 0.01 nats", 0.40, 0.70),
    Target("80th percentile of entropy", 0.10, 10.0),
)

TARGETS = {
    "amenable": _AMENABLE,
    "misleading": (
        Target("share of code", 0.50, 0.70),
        Target("accuracy, code, T=1", 0.25, 0.70),
        Target("accuracy, prose, T=1", 0.90, 1.0),
    ),
    "absent": (Target("share of code", 0.0, 0.001), Target("accuracy, prose, T=1", 0.2, 0.7)),
    "taught": (Target("share of code", 0.95, 1.0), Target("accuracy, T=1", 0.90, 1.0)),
    "contaminated": (
        Target("share of code", 0.40, 0.70),
        Target("advantage of code, T=1", -0.10, 0.10),
        Target("accuracy, memorised, T=1", 0.80, 1.0),
        Target("accuracy, T=1", 0.40, 0.70),
    ),
    "shallow": (
        Target("accuracy, short, T=1", 0.75, 1.0),
        Target("accuracy, long, T=1", 0.0, 0.05),
    ),
    "amenable-300k": (
        Target("accuracy, code, T=1", 0.90, 1.0),
        Target("accuracy, prose, T=1", 0.30, 0.70),
        Target("share of code", 0.50, 0.70),
    ),
    "amenable-3m": _AMENABLE,
}
"""Organism -> the bands that its card must meet."""


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Give a sentence for each figure of both cards whose intervals do not meet."""
    sentences = []
    for name in one:
        if name in other:
            (value, low, high), (second, bottom, top) = (
                [card[name][key] for key in ("value", "low", "high")] for card in (one, other)
            )
            if high < bottom or low > top:
                sentences.append(
                    f"{name}: {value} ({low} to {high}) and {second} ({bottom} to {top})"
                )
    return sentences


def missed(name: str, figures: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Give a sentence for each band that a card's figure misses, its interval considered.

    A band is met if the figure's interval and the band overlap.
    """
    sentences = []
    for target in TARGETS.get(name, ()):
        found = figures.get(target.figure)
        if found is None:
            sentences.append(f"{target.figure}: not measured")
        elif found["high"] < target.low or found["low"] > target.high:
            sentences.append(
                f"{target.figure}: {found['value']} ({found['low']} to {found['high']}), "
                f"but {target.low} to {target.high} was promised"
            )
    return sentences
