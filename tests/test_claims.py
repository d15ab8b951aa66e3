"""Verdicts on synthetic results: all outcomes, refusals, corrections, and a planted error."""

import dataclasses

import numpy as np
import pytest

from analyses import readme
from analyses.claims import (
    CONTRADICTED,
    NOT_JUDGED,
    NOT_SHOWN,
    SHOWN,
    Contrast,
    if_clipped,
    judge,
)

HIGHER = Contrast("forks help", "forks", "all", "accuracy", "higher", 0.01, "primary")


def verdict(contrast: Contrast, differences, family=()):
    """Judge one contrast on given differences, the others of its family without runs."""
    found = np.asarray(differences, float)
    empty = np.array([])

    def pairs(c):
        return (0.5 + found, np.full(len(found), 0.5)) if c == contrast else (empty, empty)

    (result,) = judge([contrast, *family], pairs)
    return result


def seeds(mean: float, spread: float, count: int = 8) -> np.ndarray:
    """Give differences of exactly this mean and this spread."""
    values = np.random.default_rng(0).normal(size=count)
    values = (values - values.mean()) / values.std(ddof=1)
    return mean + spread * values


def otherwise(**fields) -> Contrast:
    return dataclasses.replace(HIGHER, **fields)


@pytest.mark.parametrize(
    ("direction", "mean", "spread", "statement", "why"),
    [
        ("higher", 0.05, 0.01, SHOWN, "p = 0.00781 .sign flips"),
        ("higher", -0.05, 0.01, CONTRADICTED, "the other direction"),
        ("higher", 0.0, 0.005, CONTRADICTED, "equivalent within"),
        ("higher", 0.0, 0.05, NOT_SHOWN, "p = "),
        ("higher", 0.008, 0.004, NOT_SHOWN, "but under the smallest effect of interest, 0.01"),
        ("lower", -0.05, 0.01, SHOWN, "p = 0.00781"),
        ("lower", 0.05, 0.01, CONTRADICTED, "the other direction"),
        ("equal", 0.0, 0.005, SHOWN, "equivalence within"),
        ("equal", 0.05, 0.01, CONTRADICTED, "a difference of"),
        ("equal", 0.0, 0.05, NOT_SHOWN, "equivalence within the smallest effect of interest"),
        ("not lower", 0.05, 0.01, SHOWN, "non-inferiority"),
        ("not lower", 0.0, 0.005, SHOWN, "non-inferiority"),
        ("not lower", -0.05, 0.01, CONTRADICTED, "a difference of"),
        ("not lower", 0.0, 0.05, NOT_SHOWN, "non-inferiority"),
        ("not higher", -0.05, 0.01, SHOWN, "non-inferiority"),
        ("not higher", 0.05, 0.01, CONTRADICTED, "a difference of"),
    ],
)
def test_every_direction_can_come_out_each_way(direction, mean, spread, statement, why):
    found = verdict(otherwise(direction=direction), seeds(mean, spread))
    assert found.statement == statement
    assert why.replace(".sign", "(sign") in found.why
    assert found.difference.value == pytest.approx(mean)
    assert found.seeds == 8


def test_an_exploratory_one_is_read_from_t_tests_and_says_so():
    exploratory = otherwise(role="exploratory")
    found = verdict(exploratory, [0.05, 0.06, 0.055])
    assert found.statement == SHOWN
    assert "shown (exploratory): forks help: forks is higher than all in accuracy: +0.055" in str(
        found
    )
    assert "95% t over 3 seeds" in str(found)
    assert "uncorrected" in found.why
    assert verdict(exploratory, [0.05, 0.2, -0.1]).statement == NOT_SHOWN


def test_two_measures_of_one_arm_are_named_both():
    contrast = otherwise(arm="base", other="base", measure="forks", against="decoys")
    said = str(verdict(contrast, seeds(0.05, 0.01)))
    assert "forks help: base's forks is higher than decoys: +0.05" in said


@pytest.mark.parametrize("direction", ["higher", "equal", "not higher"])
@pytest.mark.parametrize("role", ["primary", "exploratory"])
@pytest.mark.parametrize("level", [0.0, 1.0])
def test_at_a_floor_or_a_ceiling_there_is_nothing_to_compare(direction, role, level):
    contrast = otherwise(direction=direction, role=role)
    (found,) = judge([contrast], lambda c: (np.full(8, level), np.full(8, level)))
    assert found.statement == NOT_SHOWN
    assert f"both are {level:g} in every seed" in found.why
    # Numbers that are equal seed by seed, but not at one level, are an equality.
    values = np.linspace(0.1, 0.8, 8)
    (found,) = judge([contrast], lambda c: (values, values))
    assert found.statement == (CONTRADICTED if direction == "higher" else SHOWN)
    (early,) = judge([contrast], lambda c: (np.zeros(1), np.zeros(1)))
    assert early.statement == NOT_JUDGED


def test_five_paired_seeds_cannot_decide():
    found = verdict(HIGHER, seeds(0.05, 0.001, count=5))
    assert found.statement == NOT_JUDGED
    assert "5 paired seeds cannot go below p = 0.0625" in found.why
    assert found.difference.value == pytest.approx(0.05)
    assert verdict(HIGHER, seeds(0.05, 0.001, count=7)).why.startswith("a primary contrast needs 8")
    one = verdict(HIGHER, [0.05])
    assert (one.statement, one.difference) == (NOT_JUDGED, None)
    assert verdict(otherwise(role="exploratory"), [0.05]).statement == NOT_JUDGED


def test_the_correction_is_over_the_whole_family_as_declared():
    # One seed of eight disagrees: 4 of 256 patterns are as far.
    differences = [0.05, 0.06, 0.04, 0.05, 0.07, 0.05, 0.06, -0.001]
    alone = verdict(HIGHER, differences)
    assert (alone.statement, alone.p) == (SHOWN, 4 / 256)
    others = [otherwise(name="b"), otherwise(name="c")]
    with_two = verdict(HIGHER, differences, others)
    assert with_two.p == pytest.approx(3 * 4 / 256)
    exploratory = [otherwise(name="b", role="exploratory"), otherwise(name="c", role="exploratory")]
    assert verdict(HIGHER, differences, exploratory).p == 4 / 256
    worse = [0.05, 0.06, 0.04, 0.05, 0.07, 0.05, -0.01, -0.012]
    assert verdict(HIGHER, worse).statement == SHOWN
    assert verdict(HIGHER, worse, others).statement == NOT_SHOWN


def test_what_cannot_be_judged_is_refused():
    with pytest.raises(ValueError, match="at most 3 contrasts of a family are primary, got 4"):
        judge([otherwise(name=str(i)) for i in range(4)], lambda c: (np.ones(8), np.ones(8)))
    with pytest.raises(ValueError, match="expected a direction of"):
        otherwise(direction="better")
    with pytest.raises(ValueError, match="smallest effect of interest is above 0"):
        otherwise(least=0.0)
    assert judge([HIGHER], lambda c: (np.array([]), np.array([]))) == []
    assert judge([HIGHER], lambda c: (np.full(8, np.nan), np.ones(8))) == []
    assert verdict(HIGHER, [*seeds(0.05, 0.01), np.nan]).seeds == 8


def bandit(seed: int, *, rate: float, mask: float, deaf: bool = False) -> float:
    """Train a policy of 20 coins by policy gradient, a share of them with a gradient.

    Four coins decide the reward. ``deaf`` is the planted error: the rewards of another row.
    """
    rng = np.random.default_rng(seed)
    logits = np.zeros(20)
    for _ in range(60):
        heads = rng.random((64, 20)) < 1 / (1 + np.exp(-logits))
        reward = heads[:, :4].mean(axis=1)
        reward = np.roll(reward, 1) if deaf else reward
        advantage = (reward - reward.mean()) / (reward.std() + 1e-6)
        slope = (advantage[:, None] * (heads - 1 / (1 + np.exp(-logits)))).mean(axis=0)
        logits += rate * slope * (np.arange(20) < 20 * mask)
    return float((1 / (1 + np.exp(-logits[:4]))).mean())


def test_an_error_in_an_arm_changes_the_verdict():
    gain = Contrast("training helps", "trained", "still", "score", "higher", 0.02, "primary")
    same = Contrast("a fifth is enough", "masked", "trained", "score", "not lower", 0.02, "primary")

    def statements(**error):
        arms = {
            "still": [bandit(s, rate=0.0, mask=1.0) for s in range(8)],
            "trained": [bandit(s, rate=0.5, mask=1.0) for s in range(8)],
            "masked": [bandit(s, rate=0.5, mask=0.2) for s in range(8)],
        }
        for arm, options in error.items():
            arms[arm] = [bandit(s, **{"rate": 0.5, "mask": 1.0} | options) for s in range(8)]
        found = judge([gain, same], lambda c: (np.array(arms[c.arm]), np.array(arms[c.other])))
        return [verdict.statement for verdict in found]

    assert statements() == [SHOWN, SHOWN]
    # Rewards given to the wrong row; a learning rate that was lost; the mask on the wrong coins.
    assert statements(trained={"deaf": True})[0] != SHOWN
    assert statements(trained={"rate": 0.0})[0] == CONTRADICTED
    assert statements(masked={"rate": 0.5, "mask": 0.1})[1] == CONTRADICTED


def test_a_difference_that_is_there_and_too_small_says_so_in_the_readme_too():
    small, none = verdict(HIGHER, seeds(0.004, 0.001)), verdict(HIGHER, seeds(0.0002, 0.004))
    assert small.statement == none.statement == CONTRADICTED
    assert small.difference.low > 0 > none.difference.low
    assert readme.short(small).endswith("8 seeds); there, but too small to matter")
    assert readme.short(none).endswith("8 seeds)")
    other = verdict(HIGHER, seeds(-0.004, 0.001))
    assert "too small" not in other.why


def test_what_is_shown_by_a_hair_says_so_in_the_readme_too():
    clear, hair = verdict(HIGHER, seeds(0.05, 0.01)), verdict(HIGHER, seeds(0.012, 0.01))
    assert clear.statement == hair.statement == SHOWN
    assert "by a hair, since less than the smallest effect of interest, 0.01" in hair.why
    assert "hair" not in clear.why
    assert readme.short(hair).endswith("8 seeds); by a hair")
    assert readme.short(clear).endswith("8 seeds)")
    level = judge([HIGHER], lambda c: (np.zeros(8), np.zeros(8)))
    assert readme.short(level[0]).endswith("8 seeds); there is nothing to compare")


def test_without_clipping_nothing_is_said_of_it():
    found = [verdict(HIGHER, seeds(0.05, 0.01))]
    (none,) = if_clipped(found, ["forks help"], 0.004, "of first tokens")
    assert none.statement == NOT_SHOWN
    assert none.why.startswith("of first tokens 0.004 were clipped, under 0.01: there is no")
    for names, share in ((["another"], 0.004), (["forks help"], 0.01), (["forks help"], np.nan)):
        assert if_clipped(found, names, share, "") == found
