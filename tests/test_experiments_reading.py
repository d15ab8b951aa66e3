import math

import numpy as np
import pytest
from made_results import result

from analyses.experiments import reading


def test_accuracies_are_of_the_last_look_of_all_and_of_the_difference():
    found = result(0.95, base=0.75)
    assert reading.accuracy(found) == 0.95
    assert reading.gain(found) == pytest.approx(0.2)
    assert reading.mean_accuracy(found) == pytest.approx((0.85 + 0.95) / 2)


@pytest.mark.parametrize(("shift", "slope"), [(0.0, 0.0), (0.4, 0.0), (0.0, 0.3), (-0.2, -0.1)])
def test_a_drift_is_a_shift_of_all_wordings_and_a_slope_on_their_log_odds(shift, slope):
    found = result(0.9, shift=shift, slope=slope)
    assert reading.opening_slope(found) == pytest.approx(slope, abs=1e-9)
    odds = [2.2, -0.2, -1.9]
    assert reading.opening_shift(found) == pytest.approx(shift + slope * np.mean(odds))


def test_a_task_without_wordings_has_no_drift():
    found = result(0.9)
    for look in found["watched"]:
        look["openings"] = {}
    assert math.isnan(reading.opening_slope(found))
    assert math.isnan(reading.opening_shift(found))


def test_wordings_that_do_not_differ_have_no_slope():
    found = result(0.9, shift=0.4)
    for look in found["watched"]:
        for opening in look["openings"].values():
            opening["logit"] = -16.1181
    assert math.isnan(reading.opening_slope(found))
    assert reading.opening_shift(found) == 0.0


def test_curves_over_the_training_end_at_1():
    x, y = reading.logged_over_training("entropy_all")(result(0.9))
    assert x == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert y == [0.1, 0.1, 0.1]
    assert reading.accuracy_at(8)(result(0.95)) == pytest.approx(0.85)
    assert math.isnan(reading.accuracy_at(9)(result(0.95)))


def test_a_probability_that_rounding_made_1_is_left_out_of_the_drift():
    found = result(0.9, shift=0.4)
    found["watched"][-1]["openings"]["find"]["logit"] = None
    assert reading.opening_shift(found) == pytest.approx(0.4)


def test_greedy_accuracy_is_read_where_it_was_asked():
    found = result(0.9)
    assert reading.greedy_accuracy(found) == 0.9
    assert reading.accuracy_before(found) == 0.75
    del found["watched"][-1]["greedy"]
    assert math.isnan(reading.greedy_accuracy(found))


def test_the_step_of_a_fall_lies_between_two_looks():
    # 0.75 at step 0, 0.55 at 8: 0.65 at step 4.
    assert reading.steps_to_lose(0.1)(result(0.35)) == pytest.approx(4.0)
    assert reading.steps_to_lose(0.1)(result(0.7)) == 24  # never: at least the whole run


def test_curves_and_means_of_steps():
    found = result(0.95)
    assert reading.watched(lambda look: look["accuracy"])(found) == ([0, 8, 24], [0.75, 0.85, 0.95])
    assert reading.right_over_time("prose")(found)[1] == [0.375, 0.425, 0.475]
    found["watched"][1]["share"]["prose"] = 0.005
    assert reading.right_over_time("prose")(found)[1] == [0.375, None, 0.475]
    assert reading.logged("entropy_all")(found) == ([1, 2, 3], [0.1, 0.1, 0.1])
    assert reading.logged("nothing")(found)[1] == [None, None, None]
    assert reading.average("gradient_norm")(found) == pytest.approx(0.4)
    assert reading.strategy_share("code")(found) == 0.5
    assert reading.right_within("prose")(found) == pytest.approx(0.475)
    assert math.isnan(reading.right_within("other")(found))
