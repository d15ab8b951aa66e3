"""Figures over seeds: curves with bands, points with intervals, and the verdicts side by side."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from entropy_probe.figures import Figure
from entropy_probe.intervals import t_interval

from .results import Results

STYLES = (
    ("#0072b2", "solid", "circle"), ("#d55e00", "dash", "square"), ("#000000", "dot", "diamond"),
    ("#009e73", "dashdot", "triangle-up"), ("#cc79a7", "longdash", "x"),
    ("#e69f00", "solid", "cross"), ("#56b4e9", "dash", "star"), ("#7f7f7f", "dot", "hexagon"),
)  # fmt: skip
"""Colour (Okabe and Ito's, told apart by the colour-blind), dash and mark of each series."""

Curve = Callable[[Mapping[str, Any]], tuple[Sequence[float], Sequence[float | None]]]
"""Reads (steps, values) from a run's result."""


def curves(
    results: Results, arms: Sequence[str], read: Curve, *, title: str, x: str, y: str
) -> go.Figure:
    """Give each arm's mean over seeds, with the 95% t interval as a band."""
    figure = framed(title, x, y)
    for number, arm in enumerate(arms):
        runs = [read(line.result) for line in results.runs(arm)]
        runs = [(steps, values) for steps, values in runs if len(steps)]
        if not runs:
            continue
        steps = sorted(set.intersection(*(set(steps) for steps, _ in runs)))
        each = [dict(zip(at, values, strict=True)) for at, values in runs]
        figures = [over_seeds([values[step] for values in each]) for step in steps]
        add_band(figure, steps, figures, f"{arm} ({_seeds(len(runs))})", number)
    return figure


def add_band(
    figure: go.Figure, x: Sequence[float], figures: Sequence[Figure], name: str, number: int
) -> None:
    """Add a line with its band to a figure."""
    colour, dash, mark = STYLES[number % len(STYLES)]
    rgb = ",".join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))
    highs, lows = [f.high for f in figures], [f.low for f in figures]
    figure.add_scatter(
        x=[*x, *reversed(x)], y=[*highs, *reversed(lows)], fill="toself", hoverinfo="skip",
        mode="lines",
        fillcolor=f"rgba({rgb},0.15)", line={"width": 0}, legendgroup=name, showlegend=False,
    )  # fmt: skip
    figure.add_scatter(
        x=list(x), y=[f.value for f in figures], name=name, legendgroup=name,
        mode="lines+markers", line={"color": colour, "dash": dash},
        marker={"symbol": mark, "size": 7},
    )  # fmt: skip


def intervals(
    results: Results,
    arms: Sequence[str],
    measure: Callable[[Mapping[str, Any]], float],
    *,
    title: str,
    x: str,
    at: float | None = None,
) -> go.Figure:
    """Give each arm's seeds as dots and their mean with its 95% t interval.

    Args:
        results: the runs.
        arms: those to show, from the top.
        measure: reads a number from a run's result.
        title: of the figure.
        x: of the axis, with its unit.
        at: where to draw a line, as a base or as 0; None for none.
    """
    figure = framed(title, x, "")
    names = [arm for arm in arms if results.runs(arm)]
    for arm in names:
        values = [v for v in results.values(arm, measure).values() if not np.isnan(v)]
        figure.add_scatter(
            x=values, y=[arm] * len(values), mode="markers", showlegend=False,
            marker={"color": "#56b4e9", "size": 7, "symbol": "circle-open"},
        )  # fmt: skip
        _add_interval(figure, over_seeds(values), arm, "#000000")
    _line(figure, at)
    figure.update_yaxes(categoryorder="array", categoryarray=names[::-1])
    figure.update_layout(height=180 + 34 * len(names))
    return figure


_EDGE = 6.0
"""Smallest effects of interest that a forest shows to scale on each side."""


def forest(results: Results) -> go.Figure:
    """Give the difference of each contrast with its interval and its smallest effect of interest.

    Differences are in units of that smallest effect, so that contrasts of other measures fit in.
    What is far larger stands at the edge, with an arrow and its value.
    """
    figure = framed(
        "Contrasts: arm less the other one, 95% t interval over seeds",
        "difference / smallest effect of interest", "",
    )  # fmt: skip
    verdicts = [v for v in results.verdicts() if v.difference is not None]
    names, far = [], {}
    for verdict in verdicts:
        contrast, d = verdict.contrast, verdict.difference
        names.append(f"{contrast.name}: {verdict.statement}")
        scaled = Figure(*(v / contrast.least for v in (d.value, d.low, d.high)), d.n)
        _add_interval(figure, scaled, names[-1], "#0072b2" if contrast.primary else "#7f7f7f")
        if abs(scaled.value) > _EDGE:
            far[names[-1]] = scaled.value
    for name, value in far.items():
        figure.add_annotation(
            x=math.copysign(_EDGE, value), y=name, showarrow=False, bgcolor="#ffffff",
            text=f"{value:+.1f} \u25b6" if value > 0 else f"\u25c0 {value:+.1f}",
        )  # fmt: skip
    if far:
        figure.update_xaxes(range=[-1.15 * _EDGE, 1.15 * _EDGE])
    figure.add_vrect(x0=-1, x1=1, fillcolor="#000000", opacity=0.06, line_width=0)
    _line(figure, 0.0)
    figure.update_yaxes(categoryorder="array", categoryarray=names[::-1])
    figure.update_layout(height=180 + 44 * len(names))
    return figure


def framed(title: str, x: str, y: str) -> go.Figure:
    """Give an empty figure with its titles."""
    figure = go.Figure()
    figure.update_layout(
        template="plotly_white", title={"text": title, "font": {"size": 16}}, height=460,
        xaxis_title=x, yaxis_title=y, legend={"orientation": "h", "y": -0.22}, hovermode="closest",
        margin={"l": 70, "r": 20, "t": 60, "b": 60},
    )  # fmt: skip
    figure.update_yaxes(automargin=True)
    return figure


def data_of(figure: go.Figure) -> list[dict[str, Any]]:
    """Give what a figure shows, as plain values: equal for equal results."""
    return [
        {name: list(trace[name]) for name in ("x", "y") if trace[name] is not None}
        | {"name": trace.name}
        for trace in figure.data
    ]


def over_seeds(values: Sequence[float | None]) -> Figure:
    """Give the mean with its interval; without one where there is a single value."""
    found = [value for value in values if value is not None]
    if len(found) < 2:
        value = found[0] if found else float("nan")
        return Figure(value, value, value, len(found))
    return t_interval(found)


def _add_interval(figure: go.Figure, value: Figure, name: str, colour: str) -> None:
    """Add a point with its interval."""
    figure.add_scatter(
        x=[value.value], y=[name], mode="markers", showlegend=False,
        marker={"color": colour, "size": 11, "symbol": "diamond"},
        error_x={
            "array": [value.high - value.value], "arrayminus": [value.value - value.low],
            "type": "data", "symmetric": False, "color": colour, "thickness": 2,
        },
    )  # fmt: skip


def _line(figure: go.Figure, at: float | None) -> None:
    """Draw a vertical line."""
    if at is not None:
        figure.add_vline(x=at, line={"color": "#000000", "dash": "dot", "width": 1})


def _seeds(count: int) -> str:
    return f"{count} seed" if count == 1 else f"{count} seeds"
