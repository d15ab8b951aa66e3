"""``python -m analyses.NAME``: run what is missing, say what came out, write the report."""

import argparse
import re
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from analyses.lines import add_line, read_lines
from entropy_probe.storage.files import replacing

from .analysis import Analysis, Run
from .report import render, summary
from .results import Results
from .runner import RunError, line_of, run_missing
from .worker import ROOT, compute

RESULTS = ROOT / "analyses" / "results"
REPORTS = ROOT / "runs" / "analyses"


def main(analysis: Analysis, argv: Sequence[str] | None = None) -> int:
    """Give the command line of an analysis; 1 where some of its runs failed."""
    options = _parse(analysis, argv)
    mine = {name: getattr(options, name) for name in ("model", "task") if getattr(options, name)}
    with ExitStack() as held:
        if options.quick:
            folder = Path(held.enter_context(tempfile.TemporaryDirectory()))
            results, failed = _quickly(analysis, options, mine, folder), None
        else:
            path = options.out or results_path(analysis, options.model, options.task)
            runs = analysis.runs(arms=options.arms, seeds=options.seeds, base=mine)
            failed = None if options.no_runs else _run(analysis, runs, path, options)
            results = read_results(analysis, path, base=mine)
    if failed:
        print(failed, file=sys.stderr)
    print("\n".join(summary(results)))
    report = options.report
    if report is None and not options.quick:
        report = REPORTS / f"{analysis.name}.html"
    if report is not None:
        with replacing(report) as temporary:
            temporary.write_text(render(results), encoding="utf-8")
        print(f"report: {report}")
    return 1 if failed else 0


def read_results(
    analysis: Analysis, path: Path | None = None, *, base: dict[str, Any] | None = None
) -> Results:
    """Give the lines of a file that belong to runs as the analysis has them now.

    Args:
        analysis: what was run.
        path: the file; by default the committed one.
        base: the user's own model and task, where these are not the analysis'.
    """
    lines = read_lines(path or results_path(analysis))
    most = max([int(line["seed"]) + 1 for line in lines], default=1)
    known = {run.key for run in analysis.runs(seeds=most, base=base)}
    newest = {line["key"]: line for line in lines if line["key"] in known}
    return Results(analysis, newest.values())


def results_path(analysis: Analysis, *replaced: str | None) -> Path:
    """Give the file of an analysis' results, another one for another model or task."""
    words = [re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.") for text in replaced if text]
    return RESULTS / f"{'.'.join([analysis.name, *words])}.jsonl"


def _quickly(
    analysis: Analysis, options: argparse.Namespace, mine: dict[str, Any], folder: Path
) -> Results:
    """Compute one seed of small runs in this process; keep nothing."""
    arms = options.arms or analysis.quick_arms
    path = folder / "quick.jsonl"
    for run in analysis.runs(arms=arms, seeds=1, base=mine, over=analysis.quick):
        add_line(path, line_of(analysis.execute, run, compute))
    return Results(analysis, read_lines(path))


def _run(
    analysis: Analysis, runs: Sequence[Run], path: Path, options: argparse.Namespace
) -> str | None:
    """Compute what is missing; give what failed, in words."""
    try:
        run_missing(
            analysis.execute, runs, path, processes=options.processes, ray=options.ray,
            tell=lambda text: print(text, flush=True),
        )  # fmt: skip
    except RunError as error:
        return str(error)
    return None


def _parse(analysis: Analysis, argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=f"python -m analyses.{analysis.name}",
        description=f"{analysis.question} About {analysis.minutes:.0f} core-minutes in all; what "
        "is there already is not run again.",
    )
    names = [arm.name for arm in analysis.arms]
    add = parser.add_argument
    add("--quick", action="store_true", help="one seed of small runs, a minute; nothing is kept")
    add("--arms", nargs="+", choices=names, default=[], metavar="ARM", help=_listed(names))
    add("--seeds", type=int, help="seeds of each arm; by default as many as are planned")
    if "model" in analysis.settings:
        add("--model", help="your own model, by the name or folder that load takes")
        add("--task", help="your own task, as get_task takes it")
    else:
        parser.set_defaults(model=None, task=None)
    add("--processes", type=int, default=2, help="runs at a time, one core each")
    add("--ray", metavar="ADDRESS", help='compute on a Ray cluster; "local" for one here')
    add("--out", type=Path, metavar="FILE", help="the results, by default in analyses/results")
    add("--report", type=Path, metavar="FILE", help="the report, by default in runs/analyses")
    add("--no-runs", action="store_true", help="draw from the results that are there")
    return parser.parse_args(argv)


def _listed(names: Sequence[str]) -> str:
    """Give names for a help text, in which a percent sign is written twice."""
    return ", ".join(repr(name) if " " in name else name for name in names).replace("%", "%%")
