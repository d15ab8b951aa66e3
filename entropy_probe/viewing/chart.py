"""Entropy against position as the outlines of an inline SVG: forks and the rest, stacked."""

from dataclasses import dataclass
from math import ceil

import numpy as np

from entropy_probe.viewing.columns import FORK, VALID, Strip

WIDTH, HEIGHT = 480, 48
"""Most columns of a chart, and its height in its own units."""


@dataclass(frozen=True)
class Chart:
    """One row's chart; a column is a token or, in long rows, the mean of several."""

    columns: int
    """How many columns."""
    each: int
    """Tokens a column, rounded."""
    means: bool
    """Whether some columns are means of several tokens."""
    top: int
    """Entropy at the top, in thousandths of nats."""
    every: str
    """Outline of all columns."""
    forks: str
    """Outlines of the part of each column that forks contribute."""

    @property
    def top_words(self) -> str:
        """Give the entropy at the top in nats."""
        return f"{self.top / 1000:g}"


def draw_chart(strip: Strip, top: int) -> Chart | None:
    """Draw the entropies of a strip's valid stretch, None where there are none.

    Args:
        strip: the tokens.
        top: entropy in thousandths at the top, the same for all rows drawn token by token; a row
            whose columns are means has a top of its own.
    """
    where = np.flatnonzero(strip.flags & VALID)
    if not where.size:
        return None
    first, last = int(where[0]), int(where[-1]) + 1
    columns = min(WIDTH, last - first)
    edges = first + np.arange(columns) * (last - first) // columns
    sizes = np.diff(np.append(edges, last))
    fork = (strip.flags & FORK) > 0
    total = np.add.reduceat(strip.entropy[:last], edges) / sizes
    ours = np.add.reduceat((strip.entropy * fork)[:last], edges) / sizes
    marked = np.add.reduceat(fork[:last].astype(int), edges) > 0
    means = last - first > columns
    if means:
        top = max(500, 500 * ceil(total.max() / 500))
    # A fork is never invisible, however low its entropy.
    low = np.maximum(_heights(ours, top), marked)
    tall = np.maximum(_heights(total, top), low)
    every = "".join(f"V{HEIGHT - h}h1" for h in tall.tolist())
    forks = "".join(
        f"M{x} {HEIGHT}v-{h}h1v{h}" for x, h in enumerate(low.tolist()) if h and marked[x]
    )
    each = round((last - first) / columns)
    return Chart(columns, each, means, top, f"M0 {HEIGHT}{every}V{HEIGHT}z", forks)


def _heights(thousandths: np.ndarray, top: int) -> np.ndarray:
    """Give whole heights of columns."""
    return np.rint(np.minimum(thousandths / top, 1) * HEIGHT).astype(int)
