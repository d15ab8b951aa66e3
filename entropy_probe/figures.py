"""Figures with intervals: ratios over problems, pass@k and quantiles, by bootstrap; numpy alone."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np

INTERVAL = "95%: percentile bootstrap over problems"
DRAWS = 1000

Values = Sequence[float | int] | np.ndarray
"""One number, or truth value, a problem."""


@dataclass(frozen=True)
class Figure:
    """A measured number."""

    value: float
    """The estimate."""
    low: float
    """Lower end of its 95% interval."""
    high: float
    """Upper end of its 95% interval."""
    n: int
    """What it is over: samples, tokens or problems."""

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as JSON values, four decimals."""
        return {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(self).items()}


def ratio(hits: Values, counts: Values) -> Figure | None:
    """Give sum(hits) / sum(counts) over problems, or None where nothing was counted.

    Args:
        hits: per problem, how often it happened.
        counts: per problem, how often it could have.
    """
    top, bottom = np.asarray(hits, float), np.asarray(counts, float)
    if bottom.sum() == 0:
        return None
    weights = _resamples(len(top))
    below = weights @ bottom
    values = (weights @ top)[below > 0] / below[below > 0]
    low, high = np.quantile(values, (0.025, 0.975))
    return Figure(float(top.sum() / bottom.sum()), float(low), float(high), int(bottom.sum()))


def mean(values: Values) -> Figure:
    """Give the mean over problems of one value each."""
    return ratio(values, np.ones(len(values)))


def pass_at(k: int, right: Sequence[int], n: int | Sequence[int]) -> Figure:
    """Give pass@k, unbiased: the mean over problems of 1 - C(n - c, k) / C(n, k).

    The estimator is arXiv 2107.03374's (Eq. 1).

    Args:
        k: tries.
        right: per problem, how many of its samples were right.
        n: samples a problem, at least k: one number for all, or one each.

    Raises:
        ValueError: k above some n, or counts that no samples give.
    """
    counts = [n] * len(right) if isinstance(n, int) else list(n)
    if len(counts) != len(right):
        raise ValueError(f"expected {len(right)} numbers of samples, got {len(counts)}")
    missed = []
    for c, samples in zip(right, counts, strict=True):
        if not 1 <= k <= samples:
            raise ValueError(f"expected 1 <= k <= n samples a problem, got k={k}, n={samples}")
        if not 0 <= c <= samples:
            raise ValueError(f"{c} of {samples} samples cannot be right")
        factors = 1.0 - k / np.arange(samples - c + 1, samples + 1)
        missed.append(float(np.prod(np.maximum(factors, 0.0))))
    return mean(1.0 - np.asarray(missed))


def quantile(values: np.ndarray, problem: np.ndarray, q: float) -> Figure:
    """Give a quantile of values per token, problems being what is resampled.

    Args:
        values: one value a token.
        problem: the index of the problem that each token belongs to.
        q: between 0 and 1.
    """
    order = np.argsort(values, kind="stable")
    sorted_values, owner = values[order], problem[order]
    drawn = []
    for weights in _resamples(int(problem.max()) + 1)[:100]:
        mass = np.cumsum(weights[owner])
        drawn.append(sorted_values[np.searchsorted(mass, q * mass[-1])])
    low, high = np.quantile(drawn, (0.025, 0.975))
    # By the same rule as the draws: between two clusters another one may leave their interval.
    value = float(np.quantile(values, q, method="inverted_cdf"))
    return Figure(value, float(low), float(high), len(values))


def per_problem(
    problem: np.ndarray, hits: np.ndarray, counted: np.ndarray, problems: int
) -> tuple[np.ndarray, np.ndarray]:
    """Count, for each problem, the hits among what is counted, and what is counted."""
    both = np.bincount(problem, weights=(hits & counted).astype(float), minlength=problems)
    return both, np.bincount(problem, weights=counted.astype(float), minlength=problems)


@lru_cache(maxsize=4)
def _resamples(problems: int) -> np.ndarray:
    """Give how often each problem is drawn, ``[draws, problems]``; the same ones every time."""
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(problems, np.full(problems, 1 / problems), size=DRAWS).astype(float)
    drawn.flags.writeable = False
    return drawn


def plain(figures: Mapping[str, Figure | None]) -> dict[str, Any]:
    """Give the figures as JSON values, those that could not be measured left out."""
    return {name: figure.to_dict() for name, figure in figures.items() if figure is not None}
