"""Are the top 20% of tokens by entropy the ones that decide? ``python -m analyses.forking_tokens``.

In an organism's language it is known which tokens decide the answer (planted forks) and which are
as uncertain and change nothing (decoys). So what a paper has to read off word clouds is counted
here, and forks and other tokens are sampled at temperatures of their own.
"""

import html
import math
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from analyses.claims import Contrast
from analyses.experiments.analysis import Analysis, Arm, Source
from analyses.experiments.command import main
from analyses.experiments.pictures import add_band, forest, framed, intervals, over_seeds
from analyses.experiments.results import Results
from entropy_probe.planted import DECOY, PLANTED

TEMPERATURES = (0.0, 0.3, 0.6, 1.5, 2.0, 3.0)
"""Swept one at a time, the other one at 1."""
ORGANISMS = ("misleading", "absent", "taught", "contaminated", "shallow", "amenable-300k")

SETTINGS = {
    "model": "organism:amenable",
    "task": "arithmetic",
    "problems": 200,
    "n": 8,
    "max_new_tokens": 72,
    "fraction": 0.2,
}

primary = partial(Arm, seeds=8, minutes=0.3, role="primary")
explored = partial(Arm, seeds=3, minutes=0.3)


def swept(place: str, temperature: float) -> Arm:
    """Give the arm that samples forks, or the other tokens, at a temperature."""
    at = {"at_forks": 1.0, "elsewhere": 1.0}
    at["at_forks" if place == "forks" else "elsewhere"] = temperature
    kind = primary if temperature in (0.3, 2.0) else explored
    return kind(f"{place} at {temperature:g}", f"{place} at temperature {temperature:g}", at)


ARMS = (
    primary("base", "as it is, at temperature 1"),
    *(swept(place, t) for t in TEMPERATURES for place in ("forks", "others")),
    explored("both at 1", "both temperatures 1: nothing is changed",
             {"at_forks": 1.0, "elsewhere": 1.0}, role="negative control"),
    *(explored(name, f"the organism {name}", {"model": f"organism:{name}"}) for name in ORGANISMS),
)  # fmt: skip


def planted(kind: str, what: str) -> Callable[[Mapping[str, Any]], float]:
    """Give what reads how the top 20% meet planted forks or decoys; NaN where nobody knows."""

    def read(result: Mapping[str, Any]) -> float:
        value = result.get("planted", {}).get(kind, {}).get(what)
        return math.nan if value is None else value

    return read


def read(name: str) -> Callable[[Mapping[str, Any]], float]:
    """Give what reads a number of the result; NaN where it is not there."""
    return lambda result: result.get(name, math.nan)


MEASURES = {
    "accuracy": read("accuracy"),
    "tokens under 0.01 nats": read("certain"),
    "entropy in the top 20%": read("mass"),
    "80th percentile, nats": lambda r: r.get("quantiles", {}).get("0.8", math.nan),
    "top 20% on planted forks": planted(PLANTED, "precision"),
    "top 20% on decoys": planted(DECOY, "precision"),
    "planted forks in the top 20%": planted(PLANTED, "recall"),
    "decoys in the top 20%": planted(DECOY, "recall"),
    "planted forks among all tokens": planted(PLANTED, "share"),
}

CONTRASTS = (
    Contrast("the uncertain tokens decide", "base", "base", "top 20% on planted forks", "higher",
             0.05, "primary", "top 20% on decoys"),
    Contrast("cooling forks hurts more", "forks at 0.3", "others at 0.3", "accuracy", "lower",
             0.02, "primary"),
    Contrast("heating others hurts more", "forks at 2", "others at 2", "accuracy", "higher", 0.02,
             "primary"),
    Contrast("better than chance", "base", "base", "top 20% on planted forks", "higher", 0.05,
             against="planted forks among all tokens"),
    # Added when the rest was known: decoys are more than forks, and so are those among the top 20%.
    Contrast("decoys are the more uncertain", "base", "base", "decoys in the top 20%", "higher",
             0.02, against="planted forks in the top 20%"),
    Contrast("cold forks hurt", "forks at 0.3", "base", "accuracy", "lower", 0.02),
    Contrast("cold others do not help", "others at 0.3", "base", "accuracy", "not higher", 0.02),
    Contrast("hot forks do no harm", "forks at 2", "base", "accuracy", "not lower", 0.02),
    Contrast("hot others harm", "others at 2", "base", "accuracy", "lower", 0.02),
    Contrast("ones are nothing", "both at 1", "base", "accuracy", "equal", 0.001),
)  # fmt: skip


def figures(results: Results) -> list[tuple[str, Any]]:
    """Give the figures of the report."""
    names = ["base", *ORGANISMS]
    accuracy = partial(intervals, results, measure=MEASURES["accuracy"])
    return [
        ("contrasts", forest(results)),
        ("distribution", distribution(results)),
        ("ground-truth", ground_truth(results, names)),
        ("tokens", tokens(results)),
        ("temperatures", temperatures(results)),
        ("accuracy", accuracy([arm.name for arm in ARMS], title="Accuracy, all arms",
                              x="accuracy, held-out problems")),
    ]  # fmt: skip


def distribution(results: Results) -> Any:
    """Draw how many tokens are more uncertain than so much."""
    figure = framed(
        "How uncertain tokens are", "entropy, nats (logarithmic)",
        "share of the tokens with more entropy",
    )  # fmt: skip
    for number, arm in enumerate(("base", *ORGANISMS)):
        runs = [line.result for line in results.runs(arm)]
        if runs:
            edges = runs[0]["edges"]
            above = [[1 - sum(r["histogram"][: i + 1]) for i in range(len(edges))] for r in runs]
            figures = [over_seeds(column) for column in zip(*above, strict=True)]
            add_band(figure, edges, figures, arm, number)
    figure.update_xaxes(type="log", range=[-5, 0.5], dtick=1, exponentformat="power")
    figure.add_hline(y=0.2, line={"color": "#000000", "dash": "dot", "width": 1})
    return figure


def ground_truth(results: Results, names: list[str]) -> Any:
    """Draw what the top 20% consist of, and how much of the planted forks they hold."""
    figure = framed(
        "The top 20% by entropy against what is known", "share (mean over seeds, 95% t)", ""
    )
    shown = (
        ("top 20% on planted forks", "#0072b2", "diamond"),
        ("top 20% on decoys", "#d55e00", "square"),
        ("planted forks in the top 20%", "#000000", "circle-open"),
        ("planted forks among all tokens", "#009e73", "x"),
    )
    names = [name for name in names if results.runs(name)]
    for measure, colour, symbol in shown:
        each = [list(results.values(name, MEASURES[measure]).values()) for name in names]
        found = [over_seeds(values) for values in each]
        figure.add_scatter(
            x=[f.value for f in found], y=names, name=measure, mode="markers",
            marker={"color": colour, "symbol": symbol, "size": 11},
            error_x={"array": [f.high - f.value for f in found], "color": colour},
        )  # fmt: skip
    figure.update_yaxes(categoryorder="array", categoryarray=names[::-1])
    figure.update_layout(height=220 + 40 * len(names))
    return figure


def tokens(results: Results) -> Any:
    """Draw the tokens that most of the base's forks are, over all its seeds."""
    figure = framed(
        "The tokens drawn at most of the base's forks", "share of the forks", "token as drawn"
    )
    counts: dict[str, int] = {}
    forks = 0.0
    for line in results.runs("base"):
        forks += line.result["tokens"] * line.result["fraction"]
        for piece, count, _ in line.result["forking"]:
            counts[piece] = counts.get(piece, 0) + count
    most = sorted(counts, key=lambda piece: -counts[piece])[:12]
    figure.add_bar(
        x=[counts[piece] / forks for piece in most], orientation="h", marker_color="#0072b2",
        # A token is anybody's text, and labels are read as markup.
        y=[html.escape(ascii(piece)[:40]) for piece in most],
    )  # fmt: skip
    figure.update_yaxes(autorange="reversed", type="category")
    return figure


def temperatures(results: Results) -> Any:
    """Draw accuracy over the temperature at forks, and over that elsewhere."""
    figure = framed(
        "Two temperatures, one varied with the other at 1", "temperature",
        "accuracy, held-out problems",
    )  # fmt: skip
    for number, place in enumerate(("forks", "others")):
        arms = {t: f"{place} at {t:g}" for t in TEMPERATURES} | {1.0: "base"}
        found = {
            t: list(results.values(arms[t], MEASURES["accuracy"]).values()) for t in sorted(arms)
        }
        found = {t: over_seeds(values) for t, values in found.items() if values}
        words = {"forks": "varied at the top 20%", "others": "varied elsewhere"}[place]
        add_band(figure, list(found), list(found.values()), words, number)
    return figure


ANALYSIS = Analysis(
    name="forking_tokens",
    question="Are the top 20% of tokens by entropy the ones that decide?",
    claim=Source(
        "2506.01939",
        "Half of all tokens are nearly certain (50.6% under 0.01 nats, 80th percentile 0.672); the "
        "few uncertain ones are forks at which reasoning takes a direction: a low temperature "
        "there hurts, a high one is tolerable, and elsewhere it is the other way round.",
        "text",
    ),
    refuted_by="more decoys than planted forks among the top 20%; a low temperature at forks that "
    "hurts no more than one elsewhere; a high one at forks that hurts as much",
    execute="analyses.experiments.profiles:execute",
    settings=SETTINGS,
    arms=ARMS,
    measures=MEASURES,
    contrasts=CONTRASTS,
    figures=figures,
    quick={"problems": 20, "n": 2},
    quick_arms=("base", "forks at 0.3", "others at 0.3", "others at 2", "both at 1", "taught"),
    evidence=(
        Source(
            "2608.19611",
            "Most jumps of outcome along a path are sampling noise; few steps are sharp forks.",
            "text",
            "against",
        ),
        Source(
            "2412.08905",
            "Tokens at which the chance of success jumps are found by search, and "
            "are not the improbable ones.",
            "text",
            "against",
        ),
        Source(
            "2411.19943", "Single tokens decide whether an answer is wrong.", "secondary", "for"
        ),
    ),  # fmt: skip
    discussion="How many of the uncertain tokens decide anything is a property of the text: here "
    "the corpus holds more synonyms and free orders than choices of strategy, by design, as prose "
    "does. That the top 20% hold more decoys than forks is a matter of these numbers: one by one, "
    "forks are no less uncertain than decoys, rather a little more. Entropy finds choices; whether "
    "a choice matters it cannot know. (The contrast of single forks and decoys was added when the "
    "others were known.)",
    untested="word classes of natural language, and what long chains of thought do at their forks",
)

if __name__ == "__main__":
    sys.exit(main(ANALYSIS))
