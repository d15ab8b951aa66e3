"""The analysis of the dose on results that are put in."""

import math

import pytest
from declared import check_drawing, check_plan, check_quick, statements
from made_results import lines, look

from analyses.claims import CONTRADICTED, NOT_SHOWN, SHOWN
from analyses.experiments.doses import recipe
from analyses.experiments.results import Results
from analyses.pretraining_dose import (
    ANALYSIS,
    BARE,
    HALF,
    HELPS,
    MEASURES,
    MORE,
    NONE,
    SELECTED,
    TEN,
    gain,
)
from entropy_probe.training.config import TrainConfig


def dosed(
    true: float, coin: float, share: float = 0.1, inverted: float = -0.2, clip: float = 0.05
) -> dict:
    """Give what a run leaves: accuracy 0.6 before, and gains."""
    gains = {"true": true, "random": coin, "inverted": inverted}
    return {
        "pretraining": 0,
        "before": look(0, 0.6, share),
        "after": {name: look(16, 0.6 + value, share) for name, value in gains.items()},
        "steps": {"random": [{"clip_first": clip}, {"clip_first": clip}]},
    }


def alternating(makers: dict, others: dict | None = None) -> Results:
    """Give results whose seeds take two pretrainings in turn, the second as others make it."""
    made = lines(ANALYSIS, makers)
    for line, other in zip(made, lines(ANALYSIS, makers | (others or {})), strict=True):
        line["result"] = other["result"] if line["seed"] % 2 else line["result"]
        line["result"] |= {"pretraining": line["seed"] % 2}
    return Results(ANALYSIS, made)


CLAIMED = {
    NONE: lambda e: dosed(0.05 + e, 0.0 + e, 0.0),
    HALF: lambda e: dosed(0.3 + e, 0.1 + e, 0.5),
    BARE: lambda e: dosed(0.1 - e, 0.0, 0.5),
    TEN: lambda e: dosed(0.2 + e, 0.05),
}


def test_the_plan_can_decide_and_be_trained():
    check_plan(ANALYSIS)
    for run in ANALYSIS.runs():
        for how in run.settings["rewards"].values():
            TrainConfig.from_dict(how["config"] | {"seed": run.seed})


def test_a_dose_is_the_share_of_code_whatever_the_problem():
    for run in ANALYSIS.runs(seeds=1):
        made = recipe(run.settings)
        shares = {share for _, pair in made.corpus.code_shares for share in pair}
        percent = int(run.arm.partition("%")[0])
        assert shares == {percent / 100}
        assert made.start == "absent"
        assert made == recipe(run.settings | {"seed": run.seed + 2})
        assert made != recipe(run.settings | {"seed": run.seed + 1})
        assert made.corpus.code.block == (2 if run.arm == BARE or "skipped" in run.arm else 1)
        assert not made.corpus.code.rounding
        assert made.corpus.prose.rounding


def test_what_is_claimed_is_shown_and_a_planted_error_is_seen():
    assert set(statements(alternating(CLAIMED)).values()) == {SHOWN}
    # Without the habit it was trained as long as with it.
    leaked = CLAIMED | {NONE: lambda e: dosed(0.3 + e, 0.1 + e, 0.0)}
    found = statements(alternating(leaked))
    assert found[MORE] == CONTRADICTED
    assert found[HELPS] == found[SELECTED] == SHOWN


def test_to_lose_less_is_no_help():
    harmful = CLAIMED | {
        HALF: lambda e: dosed(0.3 + e, -0.05 + e, 0.5),
        NONE: lambda e: dosed(0.05 + e, -0.15 + e, 0.0),
    }
    found = alternating(harmful)
    assert statements(found)[HELPS] == CONTRADICTED
    assert statements(found, primary=False)["more than without a habit"] == SHOWN


def test_what_one_pretraining_alone_bears_is_not_shown():
    found = alternating(CLAIMED, {HALF: lambda e: dosed(0.08 + e, 0.1 + e, 0.5)})
    assert statements(found, primary=False)[f"{MORE}, pretraining 1"] == SHOWN
    assert statements(found)[MORE] == NOT_SHOWN
    said = {v.contrast.name: v.why for v in found.verdicts()}
    assert "by pretraining +0.2" in said[MORE]
    less = {HALF: lambda e: dosed(0.0 + e, 0.1 + e, 0.5)}
    assert statements(alternating(CLAIMED | less))[MORE] == CONTRADICTED


def test_a_coin_that_clips_nothing_is_not_judged_as_if_it_did():
    still = CLAIMED | {HALF: lambda e: dosed(0.3 + e, 0.1 + e, 0.5, clip=0.001)}
    found = alternating(still)
    assert statements(found)[HELPS] == NOT_SHOWN
    assert "no clipping to compare" in {v.contrast.name: v.why for v in found.verdicts()}[HELPS]


def test_each_pretraining_is_compared_alone():
    read, found = MEASURES["gain, true, pretraining 2"], dosed(0.3, 0.0)
    assert read(found | {"pretraining": 1}) == pytest.approx(0.3)
    assert math.isnan(read(found | {"pretraining": 0}))


def test_gains_are_differences_on_the_same_problems():
    assert gain("true")(dosed(0.3, 0.1)) == pytest.approx(0.3)
    assert MEASURES["share of code before"](dosed(0.3, 0.1, 0.4)) == 0.4
    assert MEASURES["right in code before"](dosed(0.3, 0.1)) == 0.6


def test_figures_and_verdicts_come_from_the_lines(tmp_path):
    check_drawing(ANALYSIS, CLAIMED, tmp_path / "lines.jsonl")


@pytest.mark.slow
def test_a_quick_run_goes_from_end_to_end(tmp_path, capsys):
    check_quick(ANALYSIS, tmp_path / "report.html", capsys)
