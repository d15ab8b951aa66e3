"""The analysis of forking tokens on results that are put in."""

import pytest
from declared import check_drawing, check_plan, check_quick, statements
from made_results import results

from analyses.claims import CONTRADICTED, NOT_SHOWN, SHOWN
from analyses.forking_tokens import ANALYSIS, MEASURES, SETTINGS, tokens


def profile(planted: float, decoys: float, accuracy: float = 0.75, piece: str = ">>> ") -> dict:
    """Give what a run without temperatures leaves."""
    edges = [0.01, 0.1, 1.0]
    meets = {"recall": 0.6, "share": 0.1}
    return {
        "accuracy": accuracy, "tokens": 1000, "fraction": 0.2, "certain": 0.6, "mass": 0.9,
        "edges": edges, "histogram": [0.6, 0.2, 0.15, 0.05], "quantiles": {"0.8": 0.3},
        "forking": [[piece, 60, 100], ["\n#### ", 40, 50]],
        "planted": {
            "planted fork": meets | {"precision": planted},
            "decoy": meets | {"precision": decoys},
        },
    }  # fmt: skip


CLAIMED = {
    "base": lambda e: profile(0.7 + e, 0.2 - e, 0.75 + e),
    "forks at 0.3": lambda e: {"accuracy": 0.6 + e},
    "others at 0.3": lambda e: {"accuracy": 0.75 - e},
    "forks at 2": lambda e: {"accuracy": 0.7 + e},
    "others at 2": lambda e: {"accuracy": 0.1 + e},
    "both at 1": lambda e: {"accuracy": 0.75 + e},
    "taught": lambda e: profile(0.2 + e, 0.7),
}


def test_the_plan_can_decide():
    check_plan(ANALYSIS)
    arms = {arm.name: arm.settings for arm in ANALYSIS.arms}
    assert arms["forks at 0.3"] == {"at_forks": 0.3, "elsewhere": 1.0}
    assert arms["others at 2"] == {"at_forks": 1.0, "elsewhere": 2.0}
    assert SETTINGS["problems"] * SETTINGS["n"] >= 1000


def test_what_is_claimed_is_shown_and_decoys_among_the_forks_contradict_it():
    assert set(statements(results(ANALYSIS, CLAIMED)).values()) == {SHOWN}
    others = CLAIMED | {
        "base": lambda e: profile(0.3 + e, 0.6, 0.75 + e),
        "others at 0.3": lambda e: {"accuracy": 0.6 + 8 * e},
    }
    found = statements(results(ANALYSIS, others))
    assert found["the uncertain tokens decide"] == CONTRADICTED
    assert found["cooling forks hurts more"] in (NOT_SHOWN, CONTRADICTED)


def test_temperatures_that_were_exchanged_change_the_verdict():
    wrong = CLAIMED | {
        "forks at 2": CLAIMED["others at 2"], "others at 2": CLAIMED["forks at 2"],
    }  # fmt: skip
    assert statements(results(ANALYSIS, wrong))["heating others hurts more"] == CONTRADICTED


def test_figures_and_verdicts_come_from_the_lines(tmp_path):
    check_drawing(ANALYSIS, CLAIMED, tmp_path / "lines.jsonl")


def test_tokens_are_text_and_no_markup():
    hostile = {"base": lambda e: profile(0.5, 0.2, piece="<b>x</b>\u202e")}
    (bars,) = tokens(results(ANALYSIS, hostile)).data
    assert bars.y[0] == "&#x27;&lt;b&gt;x&lt;/b&gt;\\u202e&#x27;"
    assert bars.x[0] == pytest.approx(60 / 200)


def test_a_task_that_labels_no_tokens_has_no_precision():
    assert MEASURES["top 20% on planted forks"](profile(0.5, 0.2) | {"planted": {}}) != 0.5
    bare = CLAIMED | {"base": lambda e: profile(0.5, 0.2) | {"planted": {}}}
    assert "the uncertain tokens decide" not in statements(results(ANALYSIS, bare))


@pytest.mark.slow
def test_a_quick_run_goes_from_end_to_end(tmp_path, capsys):
    check_quick(ANALYSIS, tmp_path / "report.html", capsys)
