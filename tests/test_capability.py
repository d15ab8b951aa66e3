"""Curves, histograms, sets and guesses, against counting."""

import itertools

import numpy as np
import pytest

from entropy_probe.capability import (
    accuracy_histogram,
    containment,
    guess_rate,
    guessed_at,
    halves,
    ks_up_to,
    pass_curve,
)


def test_a_curve_is_pass_at_k_by_enumeration():
    counts = [0, 1, 3, 4]
    curve = pass_curve(counts, 4, ks_up_to(4))
    assert list(curve) == [1, 2, 4]
    for k, figure in curve.items():
        wanted = []
        for right in counts:
            subsets = list(itertools.combinations([True] * right + [False] * (4 - right), k))
            wanted.append(np.mean([any(subset) for subset in subsets]))
        assert figure.value == pytest.approx(np.mean(wanted))
    assert ks_up_to(256)[-1] == 256
    assert ks_up_to(1) == [1]


@pytest.mark.parametrize(("n", "bins"), [(10, 10), (256, 10), (7, 3), (64, 5)])
def test_a_histogram_counts_each_problem_once(n, bins):
    counts = [0, 0, *range(n + 1), n]
    found = accuracy_histogram(counts, n, bins=bins)
    assert sum(found.shares) == pytest.approx(1.0)
    assert found.shares[0] == found.never.value == pytest.approx(3 / len(counts))
    assert found.shares[-1] == found.always.value == pytest.approx(2 / len(counts))
    for i in range(bins):
        # c / n in (i / bins, (i + 1) / bins], in whole numbers.
        inside = [i * n < c * bins <= (i + 1) * n and c < n for c in counts]
        assert found.shares[i + 1] * len(counts) == pytest.approx(sum(inside))
    with pytest.raises(ValueError, match="expected 0 to 3 right samples"):
        accuracy_histogram([4], 3)


def test_containment_of_solved_sets():
    trained, base = [3, 0, 1, 0, 9], [1, 2, 0, 0, 1]
    found = containment(trained, base)
    assert (found.both, found.only_inner, found.only_outer, found.neither) == (2, 1, 1, 1)
    assert found.share.value == pytest.approx(2 / 3)
    assert containment([0, 0], [1, 0]).share is None
    with pytest.raises(ValueError, match="same problems, got 1 and 2"):
        containment([1], [1, 0])


def test_the_guess_rate_is_that_of_answers_among_other_problems():
    answers = [["a", "b"], ["b", None], ["a", "a"]]
    right = ["a", "b", "c"]
    rates = []
    for i, group in enumerate(answers):
        hits = [answer == right[j] for answer in group for j in range(3) if j != i]
        rates.append(np.mean(hits))
    assert guess_rate(answers, right).value == pytest.approx(np.mean(rates))
    with pytest.raises(ValueError, match="two problems or more"):
        guess_rate([["a"]], ["a"])
    with pytest.raises(ValueError, match=r"problems \[1\] have no answers"):
        guess_rate([["a"], []], ["a", "b"])


def test_guesses_add_up_as_draws_do():
    rng = np.random.default_rng(0)
    drawn = (rng.random((20_000, 16)) < 0.05).any(axis=1).mean()
    assert guessed_at(16, 0.05) == pytest.approx(drawn, abs=0.02)
    assert guessed_at(1, 0.3) == pytest.approx(0.3)


def test_halves_are_those_of_every_way_to_halve():
    n, counts = 6, [0, 1, 2, 3, 6]
    wanted = np.zeros(4)
    for right in counts:
        tries = [True] * right + [False] * (n - right)
        cuts = list(itertools.combinations(range(n), n // 2))
        for cut in cuts:
            ours = any(tries[i] for i in cut)
            theirs = any(tries[i] for i in range(n) if i not in cut)
            wanted[2 * ours + theirs] += 1 / len(cuts) / len(counts)
    found = halves(counts, n)
    names = ("neither", "only_outer", "only_inner", "both")
    assert [found[name] for name in names] == pytest.approx(wanted.tolist())
    with pytest.raises(ValueError, match="even n"):
        halves([1], 3)
