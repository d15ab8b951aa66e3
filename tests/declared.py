"""What holds for every declared analysis, whatever its runs leave behind."""

import json

from made_results import lines

from analyses import claims
from analyses.experiments.command import main, read_results
from analyses.experiments.pictures import data_of
from analyses.experiments.report import render, summary
from analyses.experiments.results import Results
from analyses.lines import add_line


def statements(results: Results, *, primary: bool = True) -> dict[str, str]:
    """Give contrast -> statement."""
    return {
        v.contrast.name: v.statement for v in results.verdicts() if v.contrast.primary == primary
    }


def check_plan(analysis) -> None:
    """Fail unless the seeds that are planned can decide the primary contrasts."""
    family = [c for c in analysis.contrasts if c.primary]
    assert 1 <= len(family) <= claims.MOST
    for contrast in family:
        seeds = min(analysis.arm(contrast.arm).seeds, analysis.arm(contrast.other).seeds)
        assert claims.too_few(contrast, seeds, family) is None


def check_drawing(analysis, makers, path) -> None:
    """Fail unless the same lines, in any order, give the same figures, verdicts and page."""
    made = lines(analysis, makers)
    for line in reversed(made):
        add_line(path, line)
    first, again = Results(analysis, made), read_results(analysis, path)
    figures = [dict(analysis.figures(each)) for each in (first, again)]
    assert list(figures[0]) == list(figures[1])
    for name, figure in figures[0].items():
        data = [json.dumps(data_of(each[name]), default=float) for each in figures]
        assert data[0] == data[1]
        assert figure.data, name
        assert figure.layout.title.text, name
        assert figure.layout.xaxis.title.text or figure.layout.yaxis.title.text, name
    assert [str(v) for v in first.verdicts()] == [str(v) for v in again.verdicts()]
    page = render(again)
    assert all(f'id="{name}"' in page for name in figures[0])
    empty = Results(analysis, [])
    assert summary(empty)[-1] == "no verdict: runs are missing"


def check_quick(analysis, report, capsys) -> None:
    """Fail unless a quick run goes from end to end."""
    assert main(analysis, ["--quick", "--report", str(report)]) == 0
    said = capsys.readouterr().out
    for arm in analysis.quick_arms:
        assert arm in said
    assert 'id="contrasts"' in report.read_text()
