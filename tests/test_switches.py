"""Contributions of switches, against sums by hand."""

import numpy as np
import pytest

from entropy_probe.switches import contributions


def test_contributions_are_sums_over_pairs():
    problem = [0, 0, 1, 1, 2, 2]
    before = ["prose", "code", "prose", "prose", "code", "prose"]
    after = ["code", "code", "code", "prose", "prose", "code"]
    right = {"right_before": [0, 1, 0, 0, 1, 1], "right_after": [1, 1, 1, 1, 0, 1]}
    found = {(s.before, s.after): s for s in contributions(problem, before, after, **right)}
    # Prose to code: +1, +1, 0; prose to prose: +1; code to prose: -1; code to code: 0.
    points = {key: s.points.value * 6 for key, s in found.items()}
    assert points == pytest.approx(
        {("prose", "code"): 2, ("prose", "prose"): 1, ("code", "prose"): -1, ("code", "code"): 0}
    )
    assert {key: s.count for key, s in found.items()}["prose", "code"] == 3
    gain = sum(right["right_after"]) - sum(right["right_before"])
    assert sum(points.values()) == pytest.approx(gain)
    assert all(s.share is None for s in found.values())  # three problems: the gain may be nothing


def test_shares_of_a_clear_gain_add_up_to_one():
    rng = np.random.default_rng(0)
    problem = np.repeat(np.arange(50), 4)
    old = np.where(rng.random(200) < 0.5, "code", "prose")
    right = rng.random(200) < np.where(old == "code", 0.9, 0.3)
    new = np.where(rng.random(200) < 0.9, "code", old)
    now = rng.random(200) < np.where(new == "code", 0.9, 0.3)
    found = contributions(problem, old, new, right_before=right, right_after=now)
    assert sum(s.share.value for s in found) == pytest.approx(1.0)
    top = found[0]
    assert (top.before, top.after) == ("prose", "code")
    assert top.share.low < top.share.value < top.share.high
    whole = (now.astype(int) - right).sum()
    group = (old == "prose") & (new == "code")
    assert top.share.value == pytest.approx((now.astype(int) - right)[group].sum() / whole)
    assert [abs(s.points.value) for s in found] == sorted(
        (abs(s.points.value) for s in found), reverse=True
    )
    lost = contributions(problem, new, old, right_before=now, right_after=right)
    assert sum(s.share.value for s in lost) == pytest.approx(1.0)


def test_pairs_have_to_be_pairs():
    with pytest.raises(ValueError, match="as many completions before as after"):
        contributions([0, 0], ["code"], ["code", "code"], right_before=[1], right_after=[1, 1])
