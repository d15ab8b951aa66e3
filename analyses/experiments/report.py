"""What came out: as lines for a terminal, and as one self-contained page."""

import html
import math
from collections.abc import Sequence

import numpy as np

from entropy_probe.intervals import t_interval

from .results import Results

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem;
       color: #1a1a1a; background: #fff; }
table { border-collapse: collapse; font-size: 0.85rem; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid #bbb; padding: 0.2rem 0.6rem; text-align: left; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
p.verdict { border-left: 4px solid #0072b2; padding-left: 0.8rem; margin: 0.4rem 0; }
"""


def summary(results: Results) -> list[str]:
    """Give the table of the arms and a line a verdict, as plain text."""
    rows = table(results)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    verdicts = [str(verdict) for verdict in results.verdicts()]
    return [line.rstrip() for line in lines] + (verdicts or ["no verdict: runs are missing"])


def table(results: Results) -> list[list[str]]:
    """Give a header and a row an arm that has runs: means over seeds with 95% t intervals."""
    analysis = results.analysis
    rows = [["arm", "role", "seeds", *analysis.measures, "minutes a run"]]
    for arm in analysis.arms:
        runs = results.runs(arm.name)
        if not runs:
            continue
        cells = [
            cell(list(results.values(arm.name, measure).values()))
            for measure in analysis.measures.values()
        ]
        minutes = np.mean([line.about["seconds"]["cpu"] for line in runs]) / 60
        seeds = f"{len(runs)} of {arm.seeds}"
        rows.append([arm.name, arm.role, seeds, *cells, f"{minutes:.1f}"])
    return rows


def cell(values: Sequence[float]) -> str:
    """Give a mean over seeds with half its 95% t interval, as text."""
    found = [value for value in values if not math.isnan(value)]
    if len(found) < 2:
        return f"{found[0]:.3f}" if found else "-"
    figure = t_interval(found)
    return f"{figure.value:.3f} ± {figure.high - figure.value:.3f}"


def render(results: Results) -> str:
    """Give the page: question, verdicts, figures, table of the arms, where the numbers are from."""
    analysis = results.analysis
    claim, said = analysis.claim, html.escape
    verdicts = [str(verdict) for verdict in results.verdicts()]
    parts = [
        f"<h1>{said(analysis.question)}</h1>",
        f"<p>Claim ({said(claim.arxiv)}, {said(claim.read)} read): {said(claim.says)}<br>"
        f"Against it would speak: {said(analysis.refuted_by)}</p>",
        *(
            f'<p class="verdict" id="verdict-{i}">{said(verdict)}</p>'
            for i, verdict in enumerate(verdicts or ["no verdict: runs are missing"])
        ),
        *_figures(results),
        "<h2>Arms</h2>",
        _html_table(table(results)),
        "<p>Means over seeds ± half a 95% t interval.</p>",
        "<h2>Runs</h2>",
        _html_table(_runs(results)),
    ]
    if analysis.untested:
        parts.append(f"<p>Not tested here: {said(analysis.untested)}</p>")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{said(analysis.name)}'
        f"</title><style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def _figures(results: Results) -> list[str]:
    """Give each figure as HTML; the first one brings the library."""
    found = []
    for name, figure in results.analysis.figures(results):
        made = figure.to_html(include_plotlyjs=not found, full_html=False, div_id=name)
        found.append(f"<figure>{made}</figure>")
    return found


def _html_table(rows: Sequence[Sequence[str]]) -> str:
    """Give rows, the first one a header, as a table."""
    head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in rows[0])
    body = "".join(
        "<tr>"
        + "".join(
            f'<td class="number">{html.escape(cell)}</td>'
            if cell[:1].isdigit() or cell[:1] in "-−"
            else f"<td>{html.escape(cell)}</td>"
            for cell in row
        )
        + "</tr>"
        for row in rows[1:]
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _runs(results: Results) -> list[list[str]]:
    """Give a row a run: what it was computed with, and where."""
    rows = [["arm", "seed", "weights", "date", "revision", "processor", "torch", "CPU s", "wall s"]]
    for arm in results.analysis.arms:
        for line in results.runs(arm.name):
            about = line.about
            rows.append([
                arm.name, str(line.seed), about["weights"] or "-", about["date"],
                (about["revision"] or "-")[:10], about["hardware"]["processor"],
                about["libraries"]["torch"], f"{about['seconds']['cpu']:.0f}",
                f"{about['seconds']['wall']:.0f}",
            ])  # fmt: skip
    return rows
