"""Tests over seeds, against scipy, enumeration and simulation."""

import itertools

import numpy as np
import pytest
from scipy import stats

from entropy_probe.hypotheses import above, equivalence, holm, sign_flips, smallest_p
from entropy_probe.intervals import t_interval

DIFFERENCES = np.array([0.3, -0.1, 0.2, 0.25, 0.05, -0.02, 0.15])


@pytest.mark.parametrize("side", ["two-sided", "greater", "less"])
def test_sign_flips_are_all_patterns_of_signs(side):
    found = sign_flips(DIFFERENCES, side=side)
    wanted = stats.permutation_test(
        (DIFFERENCES,), np.mean, permutation_type="samples", alternative=side, n_resamples=1000
    )
    assert found.p == pytest.approx(wanted.pvalue)


def test_sign_flips_count_patterns_that_are_as_far():
    means = [np.dot(signs, [1, 1, 2]) for signs in itertools.product((1, -1), repeat=3)]
    assert sign_flips([1, 1, -2]).p == 1.0
    assert sign_flips([1, 1, 2], side="greater").p == sum(m >= 4 for m in means) / 8
    # 0.1 + 0.2 + 0.3 in any order is the same pattern.
    assert sign_flips([0.1, 0.2, 0.3]).p == pytest.approx(2 / 8)


def test_the_smallest_p_is_reached_where_all_seeds_agree():
    for pairs in (2, 5, 8, 12):
        agreed = np.arange(1, pairs + 1)
        assert sign_flips(agreed) == (2.0 ** (1 - pairs), smallest_p(pairs))
        assert sign_flips(-agreed).p == smallest_p(pairs)
        assert sign_flips(agreed, side="greater").p == smallest_p(pairs, "greater")
    assert smallest_p(5) == 0.0625
    assert smallest_p(8) == 0.0078125
    assert smallest_p(1) == 1.0
    with pytest.raises(ValueError, match="side must be"):
        smallest_p(5, "both")


def test_many_pairs_are_sampled_and_agree_with_the_normal_limit():
    differences = np.random.default_rng(3).normal(0.25, 1.0, size=60)
    z = differences.sum() / np.sqrt((differences**2).sum())
    assert sign_flips(differences).p == pytest.approx(2 * stats.norm.sf(abs(z)), rel=0.1)
    assert sign_flips(np.ones(40)).p == smallest_p(40) == 1e-5


def test_holm_against_the_definition():
    # Sorted: 3 x .01, then max with 2 x .02, then max with .04.
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([]) == []
    rng = np.random.default_rng(0)
    for _ in range(50):
        ps = rng.random(4) ** 3
        # Corrected p is the smallest level at which the step-down procedure rejects.
        for index, corrected in enumerate(holm(ps.tolist())):
            for level, rejected in ((corrected + 1e-9, True), (corrected - 1e-9, False)):
                assert (index in _stepped_down(ps, level)) == (rejected or corrected > 1)


def _stepped_down(ps: np.ndarray, level: float) -> set[int]:
    done: set[int] = set()
    for place, index in enumerate(np.argsort(ps)):
        if ps[index] > level / (len(ps) - place):
            break
        done.add(int(index))
    return done if level < 1 else set(range(len(ps)))


def test_equivalence_is_two_one_sided_t_tests():
    for within in (0.05, 0.2, 0.4):
        sides = (
            stats.ttest_1samp(DIFFERENCES, -within, alternative="greater").pvalue,
            stats.ttest_1samp(DIFFERENCES, within, alternative="less").pvalue,
        )
        assert equivalence(DIFFERENCES, within) == pytest.approx(max(sides))
        inside = t_interval(DIFFERENCES, level=0.9)
        passed = -within < inside.low and inside.high < within
        assert (equivalence(DIFFERENCES, within) < 0.05) == passed
    one = stats.ttest_1samp(DIFFERENCES, -0.1, alternative="greater").pvalue
    assert above(DIFFERENCES, -0.1) == pytest.approx(one)
    with pytest.raises(ValueError, match="smallest effect of interest"):
        equivalence(DIFFERENCES, 0.0)


def test_differences_without_spread():
    assert equivalence(np.zeros(5), 0.01) == 0.0
    assert equivalence(np.full(5, 0.3), 0.01) == 1.0
    assert above(np.full(4, 0.1), 0.2) == 1.0


def test_each_test_errs_as_often_as_it_says():
    rng = np.random.default_rng(5)
    null = rng.normal(0.0, 1.0, size=(600, 8))
    # At the edge of the bounds an equivalence test may pass 5 times in a hundred.
    edge = rng.normal(2.0, 1.0, size=(600, 8))
    assert np.mean([sign_flips(row).p <= 0.05 for row in null]) == pytest.approx(0.047, abs=0.03)
    assert np.mean([equivalence(row, 2.0) <= 0.05 for row in edge]) == pytest.approx(0.05, abs=0.03)
