"""Tests of paired differences over seeds: sign flips, Holm's correction, equivalence.

Equivalence and non-inferiority need scipy (extra ``stats``); the rest is numpy.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from entropy_probe.figures import Values
from entropy_probe.intervals import checked, standard_error

EXACT = 20
"""Pairs up to which all patterns of signs are gone through."""
DRAWS = 99_999

SIDES = ("two-sided", "greater", "less")


class SignFlips(NamedTuple):
    """What the signs of paired differences say."""

    p: float
    """Chance of a mean as far from 0 if each pair's sign were drawn by a coin."""
    smallest: float
    """The smallest p that so many pairs can give."""


def smallest_p(pairs: int, side: str = "two-sided") -> float:
    """Give the smallest p that a sign-flip test of so many pairs can give.

    >>> smallest_p(5), smallest_p(8)
    (0.0625, 0.0078125)
    """
    if side not in SIDES:
        raise ValueError(f"side must be one of {SIDES}, got {side!r}")
    all_patterns = 2.0**-pairs * (2 if side == "two-sided" else 1)
    return min(1.0, all_patterns if pairs <= EXACT else max(all_patterns, 1 / (DRAWS + 1)))


def sign_flips(differences: Values, *, side: str = "two-sided", seed: int = 0) -> SignFlips:
    """Test by flipping signs whether paired differences have a mean of 0.

    Exact up to 20 pairs: all patterns of signs, the observed one among them. Beyond, patterns are
    drawn, and the observed one is counted in. It assumes that a difference is as likely to come
    out with the other sign, no more.

    Args:
        differences: one a pair.
        side: "two-sided", or "greater" or "less" than 0.
        seed: of the patterns that are drawn.
    """
    found = checked(differences)
    smallest = smallest_p(len(found), side)
    if len(found) <= EXACT:
        sums, extra = np.zeros(1), 0
        for value in found:
            sums = np.concatenate([sums + value, sums - value])
    else:
        rng = np.random.default_rng(seed)
        sums = np.concatenate(
            [rng.choice((-1.0, 1.0), (part, len(found))) @ found for part in _parts(DRAWS)]
        )
        extra = 1
    observed = float(found.sum())
    slack = 1e-12 * float(np.abs(found).sum())  # patterns of equal sum, summed in another order
    far = {
        "two-sided": np.abs(sums) >= abs(observed) - slack,
        "greater": sums >= observed - slack,
        "less": sums <= observed + slack,
    }[side]
    return SignFlips((int(far.sum()) + extra) / (len(sums) + extra), smallest)


def _parts(total: int, size: int = 10_000) -> list[int]:
    """Cut a number into parts of a size, the last one smaller."""
    return [min(size, total - start) for start in range(0, total, size)]


def holm(ps: Sequence[float]) -> list[float]:
    """Give p-values corrected for their number by Holm's step-down rule (1979), in their order.

    >>> holm([0.01, 0.04, 0.02])
    [0.03, 0.04, 0.04]
    """
    adjusted, reached = [0.0] * len(ps), 0.0
    for place, index in enumerate(np.argsort(ps, kind="stable").tolist()):
        reached = max(reached, min(1.0, (len(ps) - place) * ps[index]))
        adjusted[index] = reached
    return adjusted


def above(differences: Values, bound: float) -> float:
    """Give the one-sided t test's p against a mean of ``bound`` or less.

    With a negative bound it is the test of non-inferiority.
    """
    from scipy.stats import t

    found = checked(differences)
    gap, spread = float(found.mean()) - bound, standard_error(found)
    if spread <= 1e-12 * max(1.0, float(np.abs(found).max())):  # all equal: nothing is uncertain
        return 0.0 if gap > 0 else 1.0
    return float(t.sf(gap / spread, len(found) - 1))


def equivalence(differences: Values, within: float) -> float:
    """Give the p of two one-sided t tests (Schuirmann 1987) that a mean lies within +-``within``.

    A p under 0.05 says that the 90% t interval lies inside.

    Args:
        differences: one a pair.
        within: the smallest effect of interest, above 0.

    Raises:
        ValueError: a bound that is not above 0.
    """
    if not (math.isfinite(within) and within > 0):
        raise ValueError(f"within is the smallest effect of interest, above 0: got {within}")
    found = checked(differences)
    return max(above(found, -within), above(-found, -within))
