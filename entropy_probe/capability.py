"""What is within a model's reach: pass@k curves, histograms of accuracy, solved sets, guesses.

Counts are per problem: how many of its n samples were right. Intervals are over problems.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np

from entropy_probe.figures import Figure, mean, pass_at


def ks_up_to(n: int) -> list[int]:
    """Give 1, 2, 4 and so on up to n.

    >>> ks_up_to(10)
    [1, 2, 4, 8]
    """
    return [2**i for i in range(n.bit_length())]


def pass_curve(
    right: Sequence[int], n: int | Sequence[int], ks: Sequence[int]
) -> dict[int, Figure]:
    """Give k -> pass@k, unbiased (see `entropy_probe.figures.pass_at`)."""
    return {k: pass_at(k, right, n) for k in ks}


@dataclass(frozen=True)
class Histogram:
    """How the accuracy of single problems is distributed."""

    edges: tuple[float, ...]
    """Bounds of the bins between 0 and 1, both of which have bins of their own."""
    shares: tuple[float, ...]
    """Share of the problems that are never right, of each bin (lower bound excluded, 1 excluded),
    and of those that are always right."""
    never: Figure
    """Share of the problems that none of the samples solved: the mass at 0."""
    always: Figure
    """Share of those that all samples solved: the mass at 1."""


def accuracy_histogram(right: Sequence[int], n: int, *, bins: int = 10) -> Histogram:
    """Count problems by their accuracy, those at 0 and at 1 apart from all others.

    The mass at 0 and at 1 depends on n: compare models at the same one.

    Args:
        right: per problem, how many of its samples were right.
        n: samples a problem.
        bins: bins of equal width between 0 and 1.

    Raises:
        ValueError: no problems, or counts that n samples do not give.
    """
    counts = np.asarray(right)
    if not len(counts) or counts.min() < 0 or counts.max() > n:
        raise ValueError(f"expected 0 to {n} right samples of each problem, got {list(right)}")
    between = counts[(counts > 0) & (counts < n)]
    # In whole numbers: 0.3 * 10 is not 3.
    place = -(-between * bins // n) - 1
    middle = np.bincount(place, minlength=bins) / len(counts)
    never, always = mean(counts == 0), mean(counts == n)
    edges = tuple(i / bins for i in range(bins + 1))
    return Histogram(edges, (never.value, *middle.tolist(), always.value), never, always)


@dataclass(frozen=True)
class Containment:
    """How the problems that one model solves lie in those that another one does."""

    both: int
    """Problems that both solve."""
    only_inner: int
    """Those that the first one alone solves."""
    only_outer: int
    """Those that the second one alone solves."""
    neither: int
    """Those that nobody solves."""
    share: Figure | None
    """Share of what the first one solves that the second one does, too; None where the first one
    solves nothing."""


def containment(inner: Sequence[int], outer: Sequence[int]) -> Containment:
    """Count the problems solved (by one sample or more) by two models, by one, by none.

    Sets like these depend on the number of samples: give both models the same one.

    Args:
        inner: per problem, how often the first model was right; the trained one, as a rule.
        outer: the same of the second.

    Raises:
        ValueError: other numbers of problems.
    """
    if len(inner) != len(outer):
        raise ValueError(f"expected the same problems, got {len(inner)} and {len(outer)}")
    ours, theirs = np.asarray(inner) > 0, np.asarray(outer) > 0
    share = mean(theirs[ours]) if ours.any() else None
    return Containment(
        int((ours & theirs).sum()),
        int((ours & ~theirs).sum()),
        int((~ours & theirs).sum()),
        int((~ours & ~theirs).sum()),
        share,
    )


def halves(right: Sequence[int], n: int) -> dict[str, float]:
    """Give how two halves of one model's tries differ in what they solve, by chance alone.

    The null of `containment`: the mean over all ways to halve the n tries of each problem.

    Args:
        right: per problem, how many of its tries were right.
        n: tries a problem; an even number.

    Returns:
        ``both``, ``only_inner``, ``only_outer`` and ``neither``: expected shares of the problems.

    Raises:
        ValueError: no problems, n that is odd, or counts that n samples do not give.

    >>> halves([1, 0], 2)
    {'both': 0.0, 'only_inner': 0.25, 'only_outer': 0.25, 'neither': 0.5}
    """
    if not len(right) or n % 2 or min(right) < 0 or max(right) > n:
        raise ValueError(f"expected an even n and 0 to n right tries each, got n = {n}, {right}")
    # All c right ones fall into one given half in comb(n / 2, c) of comb(n, c) ways.
    alone = sum(comb(n // 2, c) / comb(n, c) for c in right if c) / len(right)
    neither = sum(c == 0 for c in right) / len(right)
    both = 1 - neither - 2 * alone
    return {"both": both, "only_inner": alone, "only_outer": alone, "neither": neither}


def guess_rate(answers: Sequence[Sequence[str | None]], right: Sequence[str]) -> Figure:
    """Give how often a model's answers are right for other problems than their own.

    That is what answers that look right are worth by chance. With a rate g, k guesses solve a
    problem with chance `guessed_at`, which at large k is no small number.

    Args:
        answers: per problem, the answers given to it, None where there is none.
        right: per problem, the right one.

    Raises:
        ValueError: fewer than two problems, other numbers of them, or one without any answer.
    """
    if empty := [i for i, group in enumerate(answers) if not len(group)]:
        raise ValueError(f"problems {empty} have no answers: leave them out")
    if len(answers) != len(right) or len(right) < 2:
        raise ValueError(
            f"expected two problems or more, as many right answers as problems: got {len(answers)} "
            f"and {len(right)}"
        )
    every, others = Counter(right), len(right) - 1
    return mean(
        [
            np.mean([(every[answer] - (answer == own)) / others for answer in group])
            for group, own in zip(answers, right, strict=True)
        ]
    )


def guessed_at(k: int, rate: float) -> float:
    """Give the chance that one of k guesses is right, each with chance ``rate``.

    >>> round(guessed_at(256, 0.001), 3)
    0.226
    """
    return 1.0 - (1.0 - rate) ** k
