"""Each analysis: its plan, its verdicts on results that are put in, its figures, its quick run."""

import importlib
import json
from dataclasses import replace

import pytest
from made_results import lines, result, results

from analyses import claims, plan, readme
from analyses.experiments import every
from analyses.experiments.analysis import Analysis
from analyses.experiments.command import main, read_results, results_path
from analyses.experiments.every import every_analysis
from analyses.experiments.pictures import data_of
from analyses.experiments.report import render, summary
from analyses.experiments.results import Results
from analyses.lines import add_line
from entropy_probe.training.config import TrainConfig

NAMES = ("fork_rl", "spurious_rewards", "misaligned_rewards")
TRUE = {
    "fork_rl": {
        "forks": lambda e: result(0.94 + e), "all": lambda e: result(0.94 - e),
        "random": lambda e: result(0.90 + e), "bottom": lambda e: result(0.82 + e),
        "still": lambda e: result(0.75),
    },
    "spurious_rewards": {
        "random 0.5": lambda e: result(0.85 + e, slope=0.2 + e),
        "no clipping": lambda e: result(0.76 + e, slope=e, clip=0.0),
        "random 0.5, absent": lambda e: result(0.55 + e, base=0.55),
        "still, absent": lambda e: result(0.55, base=0.55),
        "still": lambda e: result(0.75),
    },
    "misaligned_rewards": {
        "inverted, matched": lambda e: result(0.3 + e),
        "inverted, forks, matched": lambda e: result(0.6 + e),
        "prose, matched": lambda e: result(0.5 + e),
        "prose, forks, matched": lambda e: result(0.6 - e),
        "still": lambda e: result(0.75),
    },
}  # fmt: skip
"""Arms as their claims would have them."""
PLANTED = {
    "fork_rl": ("forks", lambda e: result(0.88 + e), 0, claims.CONTRADICTED),
    "spurious_rewards": ("no clipping", lambda e: result(0.8 + e, slope=0.2 + e), 1,
                         claims.CONTRADICTED),
    "misaligned_rewards": ("inverted, matched", lambda e: result(0.75 + e), 0, claims.CONTRADICTED),
}  # fmt: skip
"""An arm that goes wrong, which contrast sees it, and as what."""


def analysis(name: str) -> Analysis:
    return importlib.import_module(f"analyses.{name}").ANALYSIS


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


def primary(found: Results) -> list[str]:
    return [v.statement for v in found.verdicts() if v.contrast.primary]


def test_arms_as_claimed_show_the_claim_and_a_planted_error_does_not(name):
    assert primary(results(analysis(name), TRUE[name])) == [claims.SHOWN] * 3
    arm, wrong, at, statement = PLANTED[name]
    found = primary(results(analysis(name), TRUE[name] | {arm: wrong}))
    assert found[at] == statement


def test_the_primary_contrasts_can_be_decided_by_the_seeds_that_are_planned(name):
    found = analysis(name)
    family = [c for c in found.contrasts if c.primary]
    assert 1 <= len(family) <= claims.MOST
    for contrast in family:
        seeds = min(found.arm(contrast.arm).seeds, found.arm(contrast.other).seeds)
        assert claims.too_few(contrast, seeds, family) is None


def test_every_run_can_be_trained_as_it_is_planned(name):
    for run in analysis(name).runs():
        TrainConfig.from_dict(run.settings["config"] | {"seed": run.seed})
        assert run.settings["watch"]["problems"] >= 100


def test_figures_have_fixed_names_and_are_the_same_for_the_same_lines(name, tmp_path):
    found = analysis(name)
    made = lines(found, TRUE[name], default=lambda e: result(0.8 + e))
    path = tmp_path / "results.jsonl"
    for line in reversed(made):
        add_line(path, line)
    first, again = Results(found, made), read_results(found, path)
    figures = [dict(found.figures(each)) for each in (first, again)]
    assert list(figures[0]) == list(figures[1])
    for key, figure in figures[0].items():
        data = data_of(figure)
        assert data
        assert json.dumps(data, default=float) == json.dumps(
            data_of(figures[1][key]), default=float
        )
    assert [str(v) for v in first.verdicts()] == [str(v) for v in again.verdicts()]
    page = render(again)
    assert all(f'id="{key}"' in page for key in figures[0])


def test_what_is_far_off_the_scale_of_contrasts_is_named_at_its_edge(name):
    figure = dict(analysis(name).figures(results(analysis(name), TRUE[name])))["contrasts"]
    values = {trace.y[0]: trace.x[0] for trace in figure.data if trace.mode == "markers"}
    far = {y: value for y, value in values.items() if abs(value) > 6}
    assert bool(far) == (name == "misaligned_rewards")  # as was put in
    said = {note.y: note.text for note in figure.layout.annotations}
    assert said.keys() == far.keys()
    assert all(f"{value:+.1f}" in said[y] for y, value in far.items())
    low, high = figure.layout.xaxis.range or (-7, 7)
    assert low < -6 < 6 < high < 8


def test_figures_say_what_their_axes_are_and_in_which_unit(name):
    found = analysis(name)
    for key, figure in found.figures(results(found, TRUE[name])):
        layout = figure.layout
        assert layout.title.text, key
        assert layout.xaxis.title.text or layout.yaxis.title.text, key


def test_where_clipping_never_got_to_the_choice_nothing_is_said_of_it():
    found = analysis("spurious_rewards")
    by_clipping = ("clipping favours what is likely", "it takes several updates a batch")
    same = TRUE[found.name] | {
        "random 0.5": lambda e: result(0.85 + e, slope=e, clip=0.001),
        "no clipping": lambda e: result(0.85 + e, slope=e, clip=0.0),
        "one update, small batches": lambda e: result(0.85 + e, slope=e, clip=0.0),
    }
    reached = same | {"random 0.5": lambda e: result(0.85 + e, slope=e, clip=0.2)}
    for makers, statement in ((same, claims.NOT_SHOWN), (reached, claims.CONTRADICTED)):
        verdicts = {v.contrast.name: v for v in results(found, makers).verdicts()}
        assert {verdicts[name].statement for name in by_clipping} == {statement}
        assert verdicts["a random reward helps"].statement == claims.SHOWN
        assert ("no clipping to compare" in verdicts[by_clipping[0]].why) == (makers is same)


def test_without_runs_nothing_is_claimed(name):
    empty = Results(analysis(name), [])
    assert empty.verdicts() == []
    assert summary(empty)[-1] == "no verdict: runs are missing"
    assert "no verdict" in render(empty)
    assert "not run yet" in readme.row(empty)


def test_a_line_of_other_settings_is_not_read(name, tmp_path):
    found = analysis(name)
    path = tmp_path / "results.jsonl"
    line = lines(found, TRUE[name])[0]
    add_line(path, line)
    add_line(path, line | {"key": "forks 0 0123456789"})
    assert len(read_results(found, path)) == 1


def test_the_readme_has_a_row_a_claim_with_its_interval(name):
    found = results(analysis(name), TRUE[name])
    text = readme.document([found])
    (row,) = [line for line in text.splitlines() if line.startswith("| ") and "shown" in line]
    assert row.count("**shown**") == 3
    assert f"`python -m analyses.{name}`" in row
    assert " to " in row
    assert "8 seeds" in row
    for source in found.analysis.evidence:
        assert source.says in text


def test_the_table_gives_means_with_intervals_over_seeds():
    found = results(analysis("fork_rl"), {"all": lambda e: result(0.9)}, noise=0.0)
    text = "\n".join(summary(found))
    assert "0.900 ± 0.000" in text
    assert "8 of 8" in text


def test_the_plan_adds_up():
    found = [analysis(name) for name in NAMES]
    whole = sum(row[5] for row in plan.rows(found))
    assert whole == pytest.approx(sum(each.minutes for each in found))
    assert plan.hours(found) == pytest.approx(whole / 60 / plan.CORES)
    text = plan.table(found)
    assert f"{whole:.0f} core-minutes" in text
    assert text.count("| fork_rl |") == len(found[0].arms)


def test_the_whole_plan_is_within_its_hours_and_the_committed_one_is_it():
    found = every_analysis()
    assert [each.name for each in found] == list(every.NAMES)
    assert 0 < plan.hours(found) <= plan.HOURS
    assert plan.PLAN.read_text() == plan.document(found)


def test_a_contrast_of_what_is_not_there_is_refused():
    found = analysis("fork_rl")
    wrong = replace(found.contrasts[0], measure="beauty")
    with pytest.raises(ValueError, match="reads 'beauty'"):
        replace(found, contrasts=(wrong,))


def test_another_model_has_results_of_its_own():
    found = analysis("fork_rl")
    assert results_path(found).name == "fork_rl.jsonl"
    assert results_path(found, "../own/model", None).name == "fork_rl.own-model.jsonl"


@pytest.mark.slow
def test_a_quick_run_goes_from_end_to_end(name, tmp_path, capsys):
    report = tmp_path / "report.html"
    assert main(analysis(name), ["--quick", "--report", str(report)]) == 0
    said = capsys.readouterr().out
    for arm in analysis(name).quick_arms:
        assert arm in said
    assert 'id="contrasts"' in report.read_text()
