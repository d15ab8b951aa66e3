"""Intervals over seeds, against scipy's other routes and by how often they hold the truth."""

import numpy as np
import pytest
from scipy import stats

from entropy_probe.figures import mean
from entropy_probe.intervals import bca_interval, t_interval

SEEDS = np.array([0.91, 0.94, 0.93, 0.97, 0.92])


def test_the_t_interval_is_the_one_sample_t_test_turned_round():
    found = t_interval(SEEDS)
    wanted = stats.ttest_1samp(SEEDS, 0.0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))
    assert (found.value, found.n) == (pytest.approx(SEEDS.mean()), 5)
    # t(0.975; 1) = 12.706: two seeds say next to nothing.
    assert t_interval([0.0, 2.0]).high == pytest.approx(1 + 12.7062, abs=1e-4)
    assert t_interval(SEEDS, level=0.5).high < found.high


def test_at_five_seeds_t_covers_and_the_bootstrap_over_problems_does_not():
    rng = np.random.default_rng(0)
    met = np.zeros(2)
    for _ in range(400):
        values = rng.normal(1.0, 3.0, size=5)
        for i, interval in enumerate((t_interval(values), mean(values))):
            met[i] += interval.low <= 1.0 <= interval.high
    assert 0.92 <= met[0] / 400 <= 0.98
    assert met[1] / 400 < 0.88


def test_bca_is_near_t_where_nothing_is_skewed_and_leans_where_it_is():
    rng = np.random.default_rng(1)
    even = rng.normal(size=60)
    found, wanted = bca_interval(even, draws=2000), t_interval(even)
    assert found.value == wanted.value
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=0.06)
    skewed = rng.exponential(size=40)
    leaning = bca_interval(skewed, draws=2000)
    assert leaning.high - leaning.value > 1.15 * (leaning.value - leaning.low)
    assert bca_interval(skewed, draws=2000) == leaning


def test_bca_of_another_statistic_and_of_equal_values():
    median = bca_interval(np.arange(41.0), np.median, draws=500)
    assert median.value == 20
    assert 10 < median.low < 20 < median.high < 30
    jagged = bca_interval([0.0] * 7 + [1.0], np.median, draws=500)
    assert 0 == jagged.value <= jagged.low <= jagged.high <= 1
    same = bca_interval([0.5, 0.5, 0.5])
    assert (same.low, same.value, same.high) == (0.5, 0.5, 0.5)


def test_one_seed_has_no_interval():
    with pytest.raises(ValueError, match="of two seeds at least"):
        t_interval([0.9])
    with pytest.raises(ValueError, match="finite"):
        bca_interval([0.9, np.nan])
