"""The figures of `analyses.spurious_rewards` that no other analysis has."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from analyses.experiments import reading
from analyses.experiments.pictures import STYLES, framed, over_seeds
from analyses.experiments.results import Results
from entropy_probe.figures import Figure
from entropy_probe.switches import contributions

NAMES = {"c": "code", "p": "prose", "o": "other"}
"""First letter of a strategy -> its name."""


def drift(results: Results, arms: Sequence[str]) -> go.Figure:
    """Draw the shift of code's log-odds against the log-odds before, a point a wording."""
    figure = framed(
        "Drift of the strategy, by wording (exact probabilities, before anything is written)",
        "log-odds of code before training, nats", "shift of the log-odds, nats",
    )  # fmt: skip
    for number, arm in enumerate(arms):
        points = _wordings([line.result for line in results.runs(arm)])
        name = f"{arm} ({len(results.runs(arm))} seeds)"
        add_points(figure, [x for x, _ in points], [y for _, y in points], name, number)
    figure.add_hline(y=0, line={"color": "#000000", "dash": "dot", "width": 1})
    return figure


def _wordings(found: Sequence[Mapping[str, Any]]) -> list[tuple[float, Figure]]:
    """Give (log-odds before, shift over seeds) of each wording, least likely code first."""
    points = []
    for wording in found[0]["watched"][0]["openings"] if found else ():
        before = [one["watched"][0]["openings"][wording]["logit"] for one in found]
        after = [one["watched"][-1]["openings"][wording]["logit"] for one in found]
        shifts = [b - a for a, b in zip(before, after, strict=True)]
        points.append((float(np.mean(before)), over_seeds(shifts)))
    return sorted(points, key=lambda point: point[0])


def gammas(results: Results, arms: Mapping[float, str]) -> go.Figure:
    """Draw the change of accuracy against the share of completions that a coin rewards."""
    figure = framed(
        "Random rewards, by how often they are given", "share of completions rewarded",
        "accuracy after training less that before",
    )  # fmt: skip
    shares = [share for share, arm in arms.items() if results.runs(arm)]
    gains = [list(results.values(arms[share], reading.gain).values()) for share in shares]
    add_points(figure, shares, [over_seeds(gain) for gain in gains], "mean over seeds", 0)
    for share, gain in zip(shares, gains, strict=True):
        figure.add_scatter(
            x=[share] * len(gain), y=gain, mode="markers", showlegend=False,
            marker={"color": "#56b4e9", "symbol": "circle-open", "size": 7},
        )  # fmt: skip
    figure.add_hline(y=0, line={"color": "#000000", "dash": "dot", "width": 1})
    return figure


def switches(results: Results, arms: Sequence[str]) -> go.Figure:
    """Draw what each switch of strategy adds to accuracy, a group of bars an arm."""
    figure = framed(
        "Where the change of accuracy comes from: strategy before and after", "",
        "contribution to the change of accuracy",
    )  # fmt: skip
    pairs = [(a, b) for a in ("code", "prose") for b in ("code", "prose")]
    found = {arm: [switch_points(x.result) for x in results.runs(arm)] for arm in arms}
    found = {arm: each for arm, each in found.items() if each}
    shown: list[tuple[str, Callable[[Mapping], float]]] = [
        *((f"{a} to {b}", lambda one, pair=(a, b): one.get(pair, 0.0)) for a, b in pairs),
        ("from or to another", lambda one: _others(one, pairs)),
    ]
    shapes = ("", "/", ".", "x", "-")
    for number, (name, read) in enumerate(shown):
        figures = [over_seeds([read(one) for one in each]) for each in found.values()]
        figure.add_bar(
            x=list(found), y=[f.value for f in figures], name=name,
            marker={"color": STYLES[number][0], "pattern": {"shape": shapes[number]}},
            error_y={"array": [f.high - f.value for f in figures], "type": "data"},
        )  # fmt: skip
    figure.add_hline(y=0, line={"color": "#000000", "width": 1})
    return figure


def _others(points: Mapping[tuple[str, str], float], pairs: Sequence[tuple[str, str]]) -> float:
    """Give what all switches add that are none of these."""
    return float(sum(value for pair, value in points.items() if pair not in pairs))


def switch_points(result: Mapping[str, Any]) -> dict[tuple[str, str], float]:
    """Give (strategy before, strategy after) -> what it adds to accuracy; none without wordings."""
    first, last = (result["watched"][at]["ways"] for at in (0, -1))
    asked = sum(wording["problems"] for wording in result["watched"][0]["openings"].values())
    if not asked:
        return {}
    found = contributions(
        np.arange(len(first)) // (len(first) // asked),
        *([NAMES[letter.lower()] for letter in ways] for ways in (first, last)),
        right_before=[letter.isupper() for letter in first],
        right_after=[letter.isupper() for letter in last],
    )
    return {(switch.before, switch.after): switch.points.value for switch in found}


def memorised(results: Results, arms: Sequence[str]) -> go.Figure:
    """Draw the change of accuracy on problems that are known by heart, beside that on new ones."""
    figure = framed(
        "The organism that knows 64 problems by heart", "",
        "accuracy after training less that before",
    )  # fmt: skip
    for number, (name, read) in enumerate((("memorised", memorised_gain), ("new", reading.gain))):
        names = [arm for arm in arms if results.runs(arm)]
        figures = [over_seeds(list(results.values(arm, read).values())) for arm in names]
        figure.add_bar(
            x=names, y=[f.value for f in figures], name=f"{name} problems",
            marker={"color": STYLES[number][0], "pattern": {"shape": ["", "/"][number]}},
            error_y={"array": [f.high - f.value for f in figures], "type": "data"},
        )  # fmt: skip
    figure.add_hline(y=0, line={"color": "#000000", "width": 1})
    return figure


def memorised_gain(result: Mapping[str, Any]) -> float:
    """Give the change of accuracy on memorised problems; NaN where none were asked."""
    looks = [look.get("memorised") for look in result["watched"]]
    if looks[0] is None:
        return reading.NAN
    return looks[-1]["accuracy"] - looks[0]["accuracy"]


def memorised_accuracy(look: int) -> Callable[[Mapping[str, Any]], float]:
    """Give what reads the accuracy on memorised problems at a look; NaN where none were asked."""

    def read(result: Mapping[str, Any]) -> float:
        seen = result["watched"][look].get("memorised")
        return reading.NAN if seen is None else seen["accuracy"]

    return read


def strategies(results: Results, arms: Sequence[str]) -> go.Figure:
    """Draw the accuracy of each strategy against its share, before and after, an arrow an arm."""
    figure = framed(
        "How often code is taken, and how often each strategy is right, after training",
        "share of completions in code", "accuracy within the strategy",
    )  # fmt: skip
    for number, arm in enumerate(arms):
        runs = results.runs(arm)
        if not runs:
            continue
        share = np.mean([reading.strategy_share("code")(line.result) for line in runs])
        for way, mark in (("code", "circle"), ("prose", "square-open")):
            right = [reading.right_within(way)(line.result) for line in runs]
            value = over_seeds([r for r in right if not np.isnan(r)])
            figure.add_scatter(
                x=[share], y=[value.value], mode="markers", name=f"{arm}: {way}",
                marker={"symbol": mark, "size": 11, "color": STYLES[number % len(STYLES)][0]},
                error_y={"array": [value.high - value.value], "type": "data"},
            )  # fmt: skip
    figure.update_xaxes(range=[0, 1.02])
    figure.update_yaxes(range=[0, 1.02])
    return figure


def add_points(
    figure: go.Figure, x: Sequence[float], figures: Sequence[Figure], name: str, number: int
) -> None:
    """Add points with intervals, joined by a line."""
    colour, dash, mark = STYLES[number % len(STYLES)]
    figure.add_scatter(
        x=list(x), y=[f.value for f in figures], name=name, mode="lines+markers",
        line={"color": colour, "dash": dash}, marker={"symbol": mark, "size": 9},
        error_y={
            "array": [f.high - f.value for f in figures], "type": "data", "symmetric": False,
            "arrayminus": [f.value - f.low for f in figures], "color": colour,
        },
    )  # fmt: skip
