"""Intervals over a handful of seeds: Student's t, and the bootstrap that corrects bias and skew.

The percentile bootstrap of `figures` is for problems, of which there are dozens: over 5 seeds its
95% interval holds the truth 84 times in a hundred. Both functions here need scipy (extra
``stats``).
"""

import math
import warnings
from collections.abc import Callable

import numpy as np

from entropy_probe.figures import Figure, Values

LEVEL = 0.95
DRAWS = 9999


def t_interval(values: Values, *, level: float = LEVEL) -> Figure:
    """Give the mean with Student's t interval: right at any number of seeds if they are normal.

    Args:
        values: one number a seed.
        level: how often such intervals hold the truth.

    Raises:
        ValueError: fewer than two values, or one that is not finite.
    """
    from scipy.stats import t

    found = checked(values)
    half = float(t.ppf((1 + level) / 2, len(found) - 1)) * standard_error(found)
    centre = float(found.mean())
    return Figure(centre, centre - half, centre + half, len(found))


def bca_interval(
    values: Values,
    statistic: Callable[..., np.ndarray] = np.mean,
    *,
    level: float = LEVEL,
    draws: int = DRAWS,
    seed: int = 0,
) -> Figure:
    """Give a statistic with its BCa bootstrap interval (Efron 1987), for skewed values.

    It follows skew, where t does not, but has no more spread to draw from than the seeds show: at
    8 normal ones its 95% interval holds the truth about 89 times in a hundred. Where leaving any
    one value out leaves the statistic as it is, there is no acceleration, and the interval is that
    of percentiles.

    Args:
        values: one number a seed.
        statistic: takes values and ``axis``.
        level: how often such intervals are to hold the truth.
        draws: bootstrap draws.
        seed: of the draws.

    Raises:
        ValueError: fewer than two values, or one that is not finite.
    """
    from scipy.stats import DegenerateDataWarning, bootstrap

    found = checked(values)
    centre = float(statistic(found, axis=0))
    if np.ptp(found) == 0:
        return Figure(centre, centre, centre, len(found))
    options = {"n_resamples": draws, "confidence_level": level, "rng": seed}
    with np.errstate(invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateDataWarning)
        interval = bootstrap((found,), statistic, method="BCa", **options).confidence_interval
    if math.isnan(interval.low) or math.isnan(interval.high):
        # Leaving any one value out changes nothing, so that the acceleration is 0 / 0.
        interval = bootstrap((found,), statistic, method="percentile", **options)
        interval = interval.confidence_interval
    return Figure(centre, float(interval.low), float(interval.high), len(found))


def standard_error(values: np.ndarray) -> float:
    """Give the standard error of the mean."""
    return float(values.std(ddof=1)) / math.sqrt(len(values))


def checked(values: Values) -> np.ndarray:
    """Give values of two seeds or more as float64, or raise."""
    found = np.asarray(values, dtype=float)
    if found.ndim != 1 or len(found) < 2:
        raise ValueError(
            f"expected one number a seed, of two seeds at least, got shape {found.shape}: a single "
            "run says nothing of how much runs differ"
        )
    if not np.isfinite(found).all():
        raise ValueError(f"expected finite numbers, got {found.tolist()}")
    return found
