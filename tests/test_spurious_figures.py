"""What the figures of spurious rewards are made of."""

import math

import pytest
from made_results import WORDINGS, result

from analyses.spurious_figures import memorised_gain, switch_points
from analyses.spurious_rewards import ANALYSIS


def switched() -> dict:
    """Give a run of 3 problems, 3 completions each: prose that was wrong becomes right code."""
    found = result(1.0, base=0.0)
    found["watched"][0]["ways"] = "p" * 9
    found["watched"][-1]["ways"] = "C" * 6 + "P" * 3
    for look in found["watched"]:
        for wording in look["openings"].values():
            wording["problems"] = 1
    return found


def test_switches_add_up_to_the_change_of_accuracy():
    found = switch_points(switched())
    assert sum(found.values()) == pytest.approx(1.0)
    assert found["prose", "code"] == pytest.approx(6 / 9)
    assert found["prose", "prose"] == pytest.approx(3 / 9)


def test_a_task_without_wordings_has_no_switches_and_no_memory():
    found = switched()
    for look in found["watched"]:
        look["openings"] = {}
        del look["memorised"]
    assert switch_points(found) == {}
    assert math.isnan(memorised_gain(found))


def test_slopes_are_of_the_wordings_and_every_measure_can_be_read():
    found = result(0.9, base=0.75, shift=0.2, slope=0.1, clip=0.04)
    read = {name: measure(found) for name, measure in ANALYSIS.measures.items()}
    assert read["slope of log-odds"] == pytest.approx(0.1)
    assert read["shift of log-odds"] == pytest.approx(0.2 + 0.1 * sum(WORDINGS.values()) / 3)
    assert read["clipped at the start"] == pytest.approx(0.04)
    assert read["accuracy before"] == 0.75
