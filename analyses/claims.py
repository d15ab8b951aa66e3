"""What a paper's claim comes to over paired seeds: shown, contradicted, or not shown.

The rules are fixed before anything is run:

- A contrast compares one measure of two arms, seed by seed, and states the direction that the
  paper claims and the smallest effect of interest.
- At most three of a family are primary. They need 8 paired seeds, and as many more as it takes for
  the smallest p of the sign-flip test to pass Holm's correction over the family.
- Shown: the difference has the claimed direction (sign flips, corrected p < 0.05) and is at least
  the smallest of interest. Of a claim that two arms are equal, or that one is no worse: the
  equivalence or non-inferiority test passes.
- Contradicted: the difference has clearly the other direction, or the equivalence test passes where
  a difference was claimed. A claim of equality: the difference is clear, and large enough.
- Where both arms are at a floor or a ceiling, 0 or 1 in every seed, there is nothing to compare,
  and nothing is shown.
- Everything else is not shown. Too few seeds to say so is "not judged", with the reason.
- Differences and equivalences are corrected apart, each over the family: of a primary claim that is
  false in both ways, the chance of one of the two errors is up to twice the level.
- Exploratory contrasts are read the same way from t tests without correction, and say so.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from entropy_probe.figures import Figure
from entropy_probe.hypotheses import above, equivalence, holm, sign_flips, smallest_p
from entropy_probe.intervals import t_interval

ALPHA = 0.05
SEEDS = 8
"""Paired seeds that a primary contrast needs at least."""
MOST = 3
"""Primary contrasts of a family at most."""

SHOWN, CONTRADICTED, NOT_SHOWN, NOT_JUDGED = "shown", "contradicted", "not shown", "not judged"

CLIPPED = 0.01
"""Share of the tokens that matter that has to be clipped for a contrast to be about clipping."""
LEVEL = "there is nothing to compare"
"""Said where both arms are at a floor or a ceiling."""
HAIR = "by a hair"
"""Said of what is shown, where the interval reaches under the smallest effect of interest."""
SMALL = "there, but too small to matter"
"""Said of what is contradicted, where the interval is all on the claimed side of zero."""

DIRECTIONS = {
    "higher": "is higher than",
    "lower": "is lower than",
    "equal": "equals",
    "not lower": "is no lower than",
    "not higher": "is no higher than",
}
"""What a paper can claim of one arm against another, and how it is said."""

Pairs = Callable[["Contrast"], tuple[np.ndarray, np.ndarray]]
"""Takes a contrast, and gives its measure in both arms, over the seeds that both have."""


@dataclass(frozen=True)
class Contrast:
    """One comparison, fixed before it is run."""

    name: str
    """The claim in a few words."""
    arm: str
    """The arm that the claim is about."""
    other: str
    """The arm that it is held against."""
    measure: str
    """What is compared: one of the analysis' measures."""
    direction: str
    """What the paper claims: one of `DIRECTIONS`."""
    least: float
    """The smallest effect of interest, in the measure's unit."""
    role: str = "exploratory"
    """"primary" or "exploratory"."""
    against: str = ""
    """The measure of the other arm, where it is another one."""

    def __post_init__(self) -> None:
        """Refuse a contrast that could not be judged."""
        if self.direction not in DIRECTIONS or self.role not in ("primary", "exploratory"):
            raise ValueError(
                f"contrast {self.name!r}: expected a direction of {tuple(DIRECTIONS)} and a role "
                f"of primary or exploratory, got {self.direction!r}, {self.role!r}"
            )
        if not 0 < self.least < np.inf:
            raise ValueError(
                f"contrast {self.name!r}: the smallest effect of interest is above 0, got "
                f"{self.least}"
            )

    @property
    def said(self) -> str:
        """Give the claim as a sentence without its number."""
        verb = DIRECTIONS[self.direction]
        if not self.against:
            return f"{self.arm} {verb} {self.other} in {self.measure}"
        other = "" if self.other == self.arm else f"{self.other}'s "
        return f"{self.arm}'s {self.measure} {verb} {other}{self.against}"

    @property
    def primary(self) -> bool:
        """Say whether it is one of the few that decide."""
        return self.role == "primary"


@dataclass(frozen=True)
class Verdict:
    """What a contrast came to."""

    contrast: Contrast
    """What was compared."""
    statement: str
    """`SHOWN`, `CONTRADICTED`, `NOT_SHOWN` or `NOT_JUDGED`."""
    why: str
    """What decided."""
    difference: Figure | None
    """The arm less the other one, mean over paired seeds with a 95% t interval; None with fewer
    than two."""
    p: float | None
    """Of the difference: sign flips corrected over the family; a t test's if exploratory."""
    seeds: int
    """Paired seeds."""

    def __str__(self) -> str:
        """Say it in one line, with the interval."""
        c, label = self.contrast, "" if self.contrast.primary else " (exploratory)"
        said = f"{self.statement}{label}: {c.name}: {c.said}"
        if self.difference is not None:
            d = self.difference
            said += f": {d.value:+.4g} ({d.low:+.4g} to {d.high:+.4g}, 95% t over {d.n} seeds)"
        return f"{said}; {self.why}"


@dataclass(frozen=True)
class _Tested:
    """The tests of one contrast, uncorrected."""

    difference: Figure
    apart: float
    """p of the difference."""
    close: float
    """p of equivalence, or of non-inferiority where the claim is that."""


def judge(contrasts: Sequence[Contrast], pairs: Pairs) -> list[Verdict]:
    """Give a verdict a contrast, in their order; those without runs are left out.

    The correction is over all primary contrasts of the family, also those without runs yet.

    Args:
        contrasts: a family, as declared.
        pairs: gives the two arms' numbers.

    Raises:
        ValueError: more primary contrasts than a family may have.
    """
    family = [c for c in contrasts if c.primary]
    if len(family) > MOST:
        raise ValueError(
            f"at most {MOST} contrasts of a family are primary, got {len(family)}: make the others "
            "exploratory"
        )
    differences, levels = {}, {}
    for contrast in contrasts:
        ours, theirs = (np.asarray(side, dtype=float) for side in pairs(contrast))
        there = np.isfinite(ours - theirs)  # a seed without the measure has no pair
        if there.any():
            differences[contrast] = (ours - theirs)[there]
            levels[contrast] = set(ours[there]) | set(theirs[there])
    tested = {c: _test(c, d) for c, d in differences.items() if too_few(c, len(d), family) is None}
    primary = [c for c in family if c in tested]
    for name in ("apart", "close"):
        raw = [getattr(tested[c], name) for c in primary] + [1.0] * (len(family) - len(primary))
        for c, p in zip(primary, holm(raw), strict=False):
            tested[c] = replace(tested[c], **{name: p})
    found = [
        _verdict(c, tested[c]) if c in tested else _not_judged(c, d, family)
        for c, d in differences.items()
    ]
    return [_of_a_level(v, levels[v.contrast]) for v in found]


def too_few(contrast: Contrast, seeds: int, family: Sequence[Contrast]) -> str | None:
    """Say why so many paired seeds cannot decide a contrast, None where they can."""
    if not contrast.primary:
        return None if seeds > 1 else "one seed says nothing of how much runs differ"
    smallest, level = smallest_p(seeds), ALPHA / len(family)
    if smallest > level:
        return (
            f"{seeds} paired seeds cannot go below p = {smallest:.4g}, and {level:.4g} is needed "
            f"for the first of {len(family)} primary contrasts: run {SEEDS} or more"
        )
    return None if seeds >= SEEDS else f"a primary contrast needs {SEEDS} paired seeds, has {seeds}"


def _test(contrast: Contrast, differences: np.ndarray) -> _Tested:
    """Run both tests of a contrast."""
    least = contrast.least
    close = {
        "not lower": lambda: above(differences, -least),
        "not higher": lambda: above(-differences, -least),
    }.get(contrast.direction, lambda: equivalence(differences, least))()
    if contrast.primary:
        apart = sign_flips(differences).p
    else:
        apart = min(1.0, 2 * min(above(differences, 0.0), above(-differences, 0.0)))
    return _Tested(t_interval(differences), apart, close)


def _verdict(contrast: Contrast, tested: _Tested) -> Verdict:
    """Read the tests, corrected where they have to be, by the rules above."""
    value, least, direction = tested.difference.value, contrast.least, contrast.direction
    apart, close = tested.apart < ALPHA, tested.close < ALPHA
    large = abs(value) >= least
    kind = "sign flips" if contrast.primary else "t, uncorrected"
    p = f"p = {tested.apart:.3g} ({kind})"
    bound = f"the smallest effect of interest, {least:g}"
    if direction in ("higher", "lower"):
        right = value > 0 if direction == "higher" else value < 0
        if close:
            statement, why = CONTRADICTED, f"equivalent within {bound}, p = {tested.close:.3g}"
            if right and tested.difference.low * tested.difference.high > 0:
                why += f"; {SMALL}"
        elif apart and not right:
            statement, why = CONTRADICTED, f"the other direction, {p}"
        elif apart and large:
            statement, why = SHOWN, p
            if min(abs(tested.difference.low), abs(tested.difference.high)) < least:
                why += f"; {HAIR}, since less than {bound} is in the interval"
        else:
            statement = NOT_SHOWN
            why = f"{p}, but under {bound}" if apart else p
    else:
        against = {"equal": True, "not lower": value < 0, "not higher": value > 0}[direction]
        name = "equivalence" if direction == "equal" else "non-inferiority"
        if close:
            statement, why = SHOWN, f"{name} within {bound}, p = {tested.close:.3g}"
        elif apart and large and against:
            statement, why = CONTRADICTED, f"a difference of {bound} or more, {p}"
        else:
            statement, why = NOT_SHOWN, f"{name} within {bound} has p = {tested.close:.3g}"
    return Verdict(contrast, statement, why, tested.difference, tested.apart, tested.difference.n)


def if_clipped(
    verdicts: list[Verdict], names: Sequence[str], share: float, of: str
) -> list[Verdict]:
    """Give verdicts with nothing shown by those of some names, where next to nothing was clipped.

    Args:
        verdicts: what contrasts came to.
        names: the contrasts that need clipping.
        share: what was clipped; NaN where that is not known.
        of: what it is a share of, in words.
    """
    if not share < CLIPPED:
        return verdicts
    why = f"{of} {share:.2g} were clipped, under {CLIPPED:g}: there is no clipping to compare"
    return [
        replace(v, statement=NOT_SHOWN, why=why) if v.contrast.name in names else v
        for v in verdicts
    ]


def _of_a_level(verdict: Verdict, values: set[float]) -> Verdict:
    """Give a verdict as it is, but where all of both arms are 0, or all 1: they decide nothing."""
    if values not in ({0.0}, {1.0}) or verdict.statement == NOT_JUDGED:
        return verdict
    why = f"both are {min(values):g} in every seed: {LEVEL}"
    return replace(verdict, statement=NOT_SHOWN, why=why)


def _not_judged(contrast: Contrast, differences: np.ndarray, family: Sequence[Contrast]) -> Verdict:
    """Say that there are too few seeds, with what they give so far."""
    figure = t_interval(differences) if len(differences) > 1 else None
    why = str(too_few(contrast, len(differences), family))
    return Verdict(contrast, NOT_JUDGED, why, figure, None, len(differences))
