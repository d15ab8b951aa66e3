"""Figures with intervals, against enumeration and plain counting."""

import itertools

import numpy as np
import pytest

from entropy_probe import figures as fig


@pytest.mark.parametrize("n", [1, 4, 7])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(n):
    for right in range(n + 1):
        samples = [True] * right + [False] * (n - right)
        for k in range(1, n + 1):
            subsets = list(itertools.combinations(samples, k))
            wanted = sum(any(subset) for subset in subsets) / len(subsets)
            assert fig.pass_at(k, [right], n).value == pytest.approx(wanted)


def test_pass_at_k_is_the_mean_over_problems():
    figure = fig.pass_at(2, [0, 1, 4], 4)
    assert figure.value == pytest.approx((0 + 0.5 + 1) / 3)
    assert figure.n == 3
    with pytest.raises(ValueError, match="expected 1 <= k <= n samples a problem, got k=5, n=4"):
        fig.pass_at(5, [0], 4)
    with pytest.raises(ValueError, match="got k=0"):
        fig.pass_at(0, [0], 4)


def test_pass_at_k_of_problems_with_other_numbers_of_samples():
    figure = fig.pass_at(2, [1, 3], [4, 3])
    assert figure.value == pytest.approx((0.5 + 1.0) / 2)
    with pytest.raises(ValueError, match="expected 2 numbers of samples, got 1"):
        fig.pass_at(2, [1, 3], [4])
    with pytest.raises(ValueError, match="got k=4, n=3"):
        fig.pass_at(4, [1, 3], [4, 3])
    with pytest.raises(ValueError, match="5 of 4 samples cannot be right"):
        fig.pass_at(2, [5], 4)


def test_a_ratio_is_over_all_that_was_counted():
    figure = fig.ratio([1, 0, 3], [2, 5, 3])
    assert figure.value == pytest.approx(4 / 10)
    assert figure.n == 10
    assert fig.ratio([0, 0], [0, 0]) is None
    assert fig.ratio([0, 2], [0, 2]).value == 1.0


def test_the_interval_of_a_mean_covers_as_often_as_it_says():
    rng = np.random.default_rng(1)
    met = 0
    for _ in range(300):
        figure = fig.mean(rng.normal(3.0, 2.0, size=60))
        met += figure.low <= 3.0 <= figure.high
    # 95% of 300, four standard errors either way; the bootstrap is a little short at 60.
    assert 265 <= met <= 300


def test_the_interval_is_as_wide_as_the_normal_one():
    values = np.random.default_rng(2).random(400)
    figure = fig.mean(values)
    half = 1.96 * values.std() / 20
    assert figure.low == pytest.approx(values.mean() - half, abs=half / 5)
    assert figure.high == pytest.approx(values.mean() + half, abs=half / 5)


def test_problems_and_not_samples_are_resampled():
    # Twenty problems, each right on all of its 50 samples or on none.
    right = np.repeat([0.0, 1.0], 10)
    figure = fig.ratio(right * 50, np.full(20, 50.0))
    assert figure.n == 1000
    assert figure.high - figure.low > 0.3


def test_a_quantile_and_its_interval():
    rng = np.random.default_rng(3)
    values, owner = rng.random(4000), np.repeat(np.arange(100), 40)
    figure = fig.quantile(values, owner, 0.8)
    assert figure.value == np.sort(values)[3199]
    assert figure.low < figure.value < figure.high
    assert 0.01 < figure.high - figure.low < 0.05
    one = fig.quantile(np.full(8, 2.5), np.arange(8), 0.5)
    assert (one.value, one.low, one.high) == (2.5, 2.5, 2.5)


def test_counts_by_problem():
    owner = np.array([0, 0, 1, 3, 3, 3])
    hits = np.array([True, False, True, True, True, False])
    counted = np.array([True, True, False, True, False, True])
    both, below = fig.per_problem(owner, hits, counted, 4)
    assert both.tolist() == [1, 0, 0, 1]
    assert below.tolist() == [2, 0, 0, 2]


def test_as_json_values():
    plain = fig.plain({"a": fig.Figure(1 / 3, 0.25, 0.5, 7), "b": None})
    assert plain == {"a": {"value": 0.3333, "low": 0.25, "high": 0.5, "n": 7}}
