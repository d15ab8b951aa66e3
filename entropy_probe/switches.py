"""How much of a gain comes from changing the strategy, and how much from keeping it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from entropy_probe.figures import Figure, Values, ratio


@dataclass(frozen=True)
class Switch:
    """What completions that went from one strategy to another contribute."""

    before: str
    """Strategy before training."""
    after: str
    """Strategy after it."""
    count: int
    """Completions that did so."""
    points: Figure
    """What they add to the mean accuracy: all switches together add up to the gain."""
    share: Figure | None
    """The same as a share of the gain (arXiv 2506.10947, partial contribution); None where the
    gain's interval reaches 0, as a share of nothing is no number."""


def contributions(
    problem: Values,
    before: Sequence[str] | np.ndarray,
    after: Sequence[str] | np.ndarray,
    *,
    right_before: Values,
    right_after: Values,
) -> list[Switch]:
    """Give what each switch of strategy contributes to a gain, the largest contribution first.

    C_d = sum over d of (right after - right before) / the same sum over all. Completions are
    compared in pairs: the i-th before with the i-th after, to the same problem, drawn with the
    same noise.

    Args:
        problem: the index of the problem of each pair.
        before: the strategy of each completion before training.
        after: the same after training.
        right_before: whether each was right before training.
        right_after: the same after training.

    Raises:
        ValueError: other numbers of completions, or none.
    """
    owner = np.asarray(problem)
    names = [np.asarray(side) for side in (before, after)]
    right = [np.asarray(side, dtype=float) for side in (right_before, right_after)]
    lengths = {len(owner), *map(len, names), *map(len, right)}
    if lengths == {0} or len(lengths) > 1:
        raise ValueError(f"expected as many completions before as after, got {sorted(lengths)}")
    problems = int(owner.max()) + 1
    asked = np.bincount(owner, minlength=problems)
    change = right[1] - right[0]

    def total(group: np.ndarray) -> np.ndarray:
        return np.bincount(owner, weights=change * group, minlength=problems)

    whole = total(np.ones(len(owner), bool))
    gain = ratio(whole, asked)
    sign = int(gain.low > 0) - int(gain.high < 0)
    found = []
    for old, new in sorted(set(zip(*(n.tolist() for n in names), strict=True))):
        group = (names[0] == old) & (names[1] == new)
        share = ratio(sign * total(group), sign * whole) if sign else None
        points = ratio(total(group), asked)
        found.append(Switch(old, new, int(group.sum()), points, share))
    return sorted(found, key=lambda switch: -abs(switch.points.value))
