"""The analysis of the boundary on results that are put in."""

import math

import pytest
from declared import check_drawing, check_plan, check_quick, statements
from made_results import results

from analyses.boundary_figures import containments, guesses, nearly_always, never, solved_at
from analyses.capability_boundary import ANALYSIS, N
from analyses.claims import CONTRADICTED, SHOWN
from entropy_probe.training.config import TrainConfig


def reached(
    near: float, far: float, noise: float = 0.0, matched: bool = False, longer: float = 0.8
) -> dict:
    """Give what a run leaves: so many of 20 near problems always solved, so many others once."""

    def counts(rate: float, times: int) -> list[int]:
        count = round(20 * (rate + noise))
        return [times] * count + [0] * (20 - count)

    sets = {
        name: {"n": N, "right": counts(rate, times), "valid": counts(rate, times), "guess": 0.001}
        for name, rate, times in (("near", near, N), ("longer", longer, N), ("far", far, 1))
    }  # fmt: skip
    quantiles = [1 + i / 10 for i in range(19)]
    found = {
        "reach": sets, "entropy": 0.1,
        "perplexity": {"fractions": [i / 20 for i in range(1, 20)], "base": quantiles,
                       "own": [1 + (q - 1) / 2 for q in quantiles]},
    }  # fmt: skip
    return found | ({"matched": {"temperature": 1.4, "reach": sets}} if matched else {})


CLAIMED = {
    "base": lambda e: reached(0.75, 0.6, e),
    "trained": lambda e: reached(0.95, 0.5, e, True, 0.7),
    "shallow": lambda e: reached(0.4, 0.3, e),
    "edge": lambda e: reached(0.5, 0.3, e),
    "distilled": lambda e: reached(0.9, 0.8, e),
    "inside": lambda e: reached(0.5, 0.25, e),
    "beyond": lambda e: reached(0.4, 0.3, e),
}


def test_the_plan_can_decide_and_be_trained():
    check_plan(ANALYSIS)
    assert ANALYSIS.settings["n"] >= N
    for run in ANALYSIS.runs():
        TrainConfig.from_dict(run.settings["config"] | {"seed": run.seed})
    tasks = {arm.name: arm.settings.get("task", "arithmetic") for arm in ANALYSIS.arms}
    assert (tasks["inside"], tasks["edge"], tasks["beyond"]) == (
        "arithmetic:short", "arithmetic:middle", "arithmetic:long",
    )  # fmt: skip
    assert ANALYSIS.arm("distilled").settings["learn"] == "distil"
    assert ANALYSIS.settings["distil"]["task"] == "arithmetic:long"


def test_what_is_claimed_is_shown_and_planted_errors_are_seen():
    assert set(statements(results(ANALYSIS, CLAIMED)).values()) == {SHOWN}
    # Trained on the problems that are asked; distilled from nothing; the base in place of itself.
    leaked = CLAIMED | {"trained": lambda e: reached(0.95, 0.95, e, True)}
    assert statements(results(ANALYSIS, leaked))["no wider at many tries"] == CONTRADICTED
    undone = CLAIMED | {"distilled": CLAIMED["shallow"]}
    assert statements(results(ANALYSIS, undone))["distillation widens"] == CONTRADICTED
    same = CLAIMED | {"trained": lambda e: CLAIMED["base"](e) | {"matched": {}}}
    found = statements(results(ANALYSIS, same), primary=False)
    assert found["better at one try"] == CONTRADICTED


def test_figures_and_verdicts_come_from_the_lines(tmp_path):
    check_drawing(ANALYSIS, CLAIMED, tmp_path / "lines.jsonl")


def test_measures_read_counts_and_not_what_was_not_asked():
    found = reached(0.75, 0.6)
    assert solved_at(1, "near", "right")(found) == pytest.approx(0.75)
    assert solved_at(N, "far", "valid")(found) == pytest.approx(0.6)
    assert solved_at(1, "far", "valid")(found) == pytest.approx(0.6 / N)
    assert math.isnan(solved_at(2 * N, "far", "valid")(found))
    assert math.isnan(solved_at(1, "far", "valid", True)(found))
    assert nearly_always("near")(found) == pytest.approx(0.75)
    assert nearly_always("far")(found) == 0.0
    assert never("far", "valid")(found) == pytest.approx(0.4)
    assert math.isnan(never("farther", "valid")(found))
    assert guesses("far")(found) == 0.001
    assert math.isnan(guesses("farther")(found))


def test_solved_sets_are_divided_problem_by_problem():
    found = containments(results(ANALYSIS, CLAIMED, noise=0.0), [("trained", "base", "far")])
    assert {bar.name: bar.x[0] for bar in found.data} == pytest.approx(
        {"both": 0.5, "the base alone": 0.1, "the trained model alone": 0.0, "nobody": 0.4}
    )
    # Problems solved once are solved in one half of the tries.
    assert {bar.name: bar.x[1] for bar in found.data} == pytest.approx(
        {"both": 0.0, "the base alone": 0.3, "the trained model alone": 0.3, "nobody": 0.4}
    )
    assert "100% of its solved (160 problems)" in found.data[0].y[0]


def test_a_base_that_two_were_trained_from_is_shown_once():
    two = [("edge", "shallow", "far"), ("distilled", "shallow", "far")]
    found = containments(results(ANALYSIS, CLAIMED, noise=0.0), two)
    assert len(found.data[0].y) == len(set(found.data[0].y)) == 3
    assert sum(bar.x[-1] for bar in found.data) == pytest.approx(1.0)


@pytest.mark.slow
def test_a_quick_run_goes_from_end_to_end(tmp_path, capsys):
    check_quick(ANALYSIS, tmp_path / "report.html", capsys)
