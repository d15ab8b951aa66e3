"""The verdicts come out every way that their rules allow, on numbers whose truth is known."""

import json

import numpy as np
import pytest

from sae_steering.verdicts import (
    CHANCE,
    LABELLED,
    NOT_SHOWN,
    SHOWN,
    UNSPECIFIC,
    Arm,
    Blind,
    Trial,
    judge,
    reward_of_each,
)

PROBLEMS = 200


def rewards(accuracy, seed, n=8):
    """Give the mean reward of each problem, of n completions that are right by chance."""
    noise = np.random.default_rng(seed)
    return tuple((noise.random((PROBLEMS, n)) < accuracy).mean(axis=1))


def arm(kind, accuracy, seed, name=None):
    return Arm(name or kind, kind, rewards(accuracy, seed))


def trial(*, base=0.5, trained=0.9, features=0.88, random=0.5, count=120, blind=None, orders=120,
          **rivals):  # fmt: skip
    """Give a trial: by default the features recover the gain and no control does anything."""
    rivals = {"mean difference": 0.5, "token injection": 0.5, "low temperature": 0.5} | rivals
    arms = [] if features is None else [arm("features", features, 2)]
    arms += [arm(kind, value, 3 + i) for i, (kind, value) in enumerate(rivals.items()) if value]
    noise = np.random.default_rng(9)
    held = {
        arm.name: Blind(np.mean(arm.right), tuple(0.5 + 0.05 * noise.standard_normal(orders)))
        for arm in arms if arm.kind in LABELLED
    } if orders else {}  # fmt: skip
    for name, accuracy in (blind or {}).items():
        held[name] = Blind(held[name].reached, (accuracy, *held[name].others[1:]))
    return Trial(
        rewards(base, 0),
        None if trained is None else rewards(trained, 1),
        tuple(arms),
        features,
        tuple(random + 0.05 * noise.standard_normal(count)),
        held,
    )


OUTCOMES = {
    "all is shown": ({}, SHOWN, SHOWN),
    "the mean difference does as well": ({"mean difference": 0.89}, SHOWN, UNSPECIFIC),
    "a forced token does as well": ({"token injection": 0.88}, SHOWN, UNSPECIFIC),
    "a low temperature does better": ({"low temperature": 0.95}, SHOWN, UNSPECIFIC),
    "random directions do as well": ({"random": 0.87}, SHOWN, UNSPECIFIC),
    "only a control elicits it": ({"features": 0.5, "token injection": 0.9}, SHOWN, NOT_SHOWN),
    "nothing elicits it": ({"features": 0.52}, NOT_SHOWN, NOT_SHOWN),
    "under a half of it": ({"features": 0.65}, NOT_SHOWN, NOT_SHOWN),
    "training gained nothing": ({"trained": 0.5}, NOT_SHOWN, NOT_SHOWN),
    "training gained too little": ({"trained": 0.54, "features": 0.9}, NOT_SHOWN, NOT_SHOWN),
    "training spoiled it": ({"trained": 0.2}, NOT_SHOWN, NOT_SHOWN),
    "there is no trained sibling": ({"trained": None}, NOT_SHOWN, NOT_SHOWN),
    "no features were steered": ({"features": None}, NOT_SHOWN, NOT_SHOWN),
    "a control was not run": ({"mean difference": None}, SHOWN, NOT_SHOWN),
    "one order of labels in 120 does as well, by the features": (
        {"blind": {"features": 0.95}}, NOT_SHOWN, NOT_SHOWN,
    ),
    "as by the features, but the mean difference does it too": (
        {"blind": {"features": 0.95}, "mean difference": 0.89}, SHOWN, UNSPECIFIC,
    ),
    "orders of labels do as well as both, a forced token does it": (
        {"blind": {"features": 0.95, "mean difference": 0.95}, "mean difference": 0.89,
         "token injection": 0.8}, SHOWN, UNSPECIFIC,
    ),
    "too few orders of labels": ({"orders": 90}, NOT_SHOWN, NOT_SHOWN),
    "no order of labels": ({"orders": 0}, NOT_SHOWN, NOT_SHOWN),
    "too few random directions": ({"count": 90}, SHOWN, NOT_SHOWN),
    "a control was not run, another does as well": (
        {"mean difference": None, "token injection": 0.9}, SHOWN, UNSPECIFIC,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", OUTCOMES)
def test_every_outcome(case):
    changes, capability, carried = OUTCOMES[case]
    verdicts = judge(trial(**changes))
    assert (verdicts.capability.statement, verdicts.carried.statement) == (capability, carried)
    for verdict in (verdicts.capability, verdicts.carried):
        assert verdict.why
        assert verdict.would_change
    json.dumps(verdicts.to_dict(), allow_nan=False)


def test_a_wide_interval_is_not_shown_whatever_its_middle():
    base, trained = (0.0, 1.0) * 10, (1.0, 1.0) * 10
    few = Arm("features", "features", (1.0, 1.0, 1.0, 0.0) + (0.0, 1.0) * 2 + (1.0, 0.0) * 6)
    verdicts = judge(Trial(base, trained, (few,)))
    assert verdicts.gain.low > 0.05
    assert verdicts.shares["features"].low <= 0.2
    assert verdicts.capability.statement == NOT_SHOWN


def test_figures_are_those_of_the_closed_forms():
    given = trial()
    verdicts = judge(given)
    base, trained = np.array(given.base), np.array(given.trained)
    assert verdicts.gain.value == pytest.approx(trained.mean() - base.mean())
    features = np.array(given.arms[0].right)
    share = (features.mean() - base.mean()) / (trained.mean() - base.mean())
    assert verdicts.shares["features"].value == pytest.approx(share)
    ahead = features.mean() - np.array(given.arms[1].right).mean()
    assert verdicts.ahead["mean difference"].value == pytest.approx(ahead)
    assert verdicts.chance == pytest.approx(1 / 121)
    assert verdicts.chance < CHANCE


def test_no_share_is_formed_of_a_small_gain():
    verdicts = judge(trial(trained=0.52))
    assert set(verdicts.shares.values()) == {None}
    assert "no share is formed" in verdicts.capability.why[0]


def test_the_interval_of_a_share_covers_the_truth():
    hits = 0
    for seed in range(40):
        noise = np.random.default_rng(seed)
        hard = noise.random((PROBLEMS, 1))  # problems differ, and arms share them
        draws = [(noise.random((PROBLEMS, 8)) < p * hard).mean(axis=1) for p in (0.4, 0.6, 0.8)]
        base, features, trained = draws
        arms = (Arm("features", "features", tuple(features)),)
        share = judge(Trial(tuple(base), tuple(trained), arms)).shares["features"]
        hits += share.low <= 0.5 <= share.high
    assert hits >= 34


def test_a_forced_word_in_the_prompt_is_not_what_elicits():
    with_words = trial(features=0.5)
    words = arm("prompt forcing", 0.9, 7)
    verdicts = judge(Trial(with_words.base, with_words.trained, (*with_words.arms, words), 0.5, ()))
    assert verdicts.shares["prompt forcing"].value > 0.9
    assert verdicts.capability.statement == NOT_SHOWN


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (Trial((0.5,), (0.5, 1.0), ()), "same problems"),
        (Trial((), (), ()), "same problems"),
        (Trial((0.5,), None, (Arm("a", "features", ()),)), "same problems"),
        (Trial((0.5,), None, (Arm("a", "splice", (1.0,)), Arm("a", "splice", (1.0,)))), "twice"),
        (
            Trial((0.5,), None, (Arm("a", "features", (1.0,)), Arm("b", "features", (1.0,)))),
            "chosen beforehand",
        ),
    ],
)
def test_numbers_that_do_not_fit_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        judge(wrong)


def test_rewards_of_each_problem():
    assert reward_of_each([[0.0, 1.0], [1.0, 1.0]]) == (0.5, 1.0)
