"""What `capability_boundary` reads from its runs, and the figures that it draws."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from analyses.experiments.pictures import STYLES, add_band, framed, over_seeds
from analyses.experiments.results import Results
from entropy_probe.capability import (
    accuracy_histogram,
    containment,
    guessed_at,
    halves,
    ks_up_to,
    pass_curve,
)

Read = Callable[[Mapping[str, Any]], float]
COUNTED = {"right": "answer right", "valid": "every step valid"}


def solved_at(k: int, name: str, count: str, matched: bool = False) -> Read:
    """Give what reads pass@k on a set of problems; NaN where it was not asked, or not so often.

    Args:
        k: tries.
        name: the set.
        count: "right" or "valid".
        matched: whether at the temperature that gives the base's entropy.
    """

    def read(result: Mapping[str, Any]) -> float:
        reach = result.get("matched", {}).get("reach", {}) if matched else result["reach"]
        found = reach.get(name, {})
        if count not in found or k > found["n"]:
            return math.nan
        return pass_curve(found[count], found["n"], [k])[k].value

    return read


def never(name: str, count: str) -> Read:
    """Give what reads the share of problems that no try solved; NaN where not asked.

    At many tries guesses solve some: by valid steps, none.
    """

    def read(result: Mapping[str, Any]) -> float:
        found = result["reach"].get(name, {})
        return accuracy_histogram(found[count], found["n"]).never.value if found else math.nan

    return read


def nearly_always(name: str, least: float = 0.9) -> Read:
    """Give what reads the share of problems that so many of the tries solve; NaN where not asked.

    All of 256 tries at temperature 1 would be too many to ask for.
    """

    def read(result: Mapping[str, Any]) -> float:
        found = result["reach"].get(name, {})
        if not found:
            return math.nan
        return sum(c >= least * found["n"] for c in found["right"]) / len(found["right"])

    return read


def guesses(name: str) -> Read:
    """Give what reads how often an answer is right for another problem; NaN where not asked."""

    def read(result: Mapping[str, Any]) -> float:
        rate = result["reach"].get(name, {}).get("guess")
        return math.nan if rate is None else rate

    return read


def pass_curves(
    results: Results, arms: Sequence[str], name: str, title: str, counts: Sequence[str] = ()
) -> Any:
    """Draw pass@k of each arm by each way to count, with what guesses would solve."""
    figure = framed(f"{title}: solved in k tries", "k, tries (logarithmic)", "pass@k")
    number, most = 0, 1
    for arm in arms:
        found = [line.result["reach"].get(name) for line in results.runs(arm)]
        found = [each for each in found if each]
        most = max([most, *(each["n"] for each in found)])
        for count in counts or COUNTED:
            if found and count in found[0]:
                ks = ks_up_to(min(each["n"] for each in found))
                curves = [pass_curve(each[count], each["n"], ks) for each in found]
                values = [over_seeds([curve[k].value for curve in curves]) for k in ks]
                add_band(figure, ks, values, f"{arm}, {COUNTED[count]}", number)
            number += 1
        rates = [each["guess"] for each in found if each["guess"] is not None]
        if rates and arm == arms[0] and "right" in (counts or COUNTED):
            ks = ks_up_to(found[0]["n"])
            solved = [guessed_at(k, sum(rates) / len(rates)) for k in ks]
            figure.add_scatter(
                x=ks, y=solved, name=f"guesses, as {arm} makes them", mode="lines",
                line={"color": "#999999", "dash": "dot"},
            )  # fmt: skip
    figure.update_xaxes(type="log", tickvals=ks_up_to(most))
    figure.update_yaxes(range=[0, 1.02])
    return figure


def histograms(
    results: Results, arms: Sequence[str], name: str, words: str, count: str = "right"
) -> Any:
    """Draw how many problems have which accuracy, those at 0 and at 1 apart."""
    figure = framed(
        f"Accuracy of single problems of {words}, 256 tries each, counted by {COUNTED[count]}",
        "accuracy of a problem", "share of the problems (95% t over seeds)",
    )  # fmt: skip
    for number, arm in enumerate(arms):
        found = [line.result["reach"].get(name) for line in results.runs(arm)]
        found = [accuracy_histogram(each[count], each["n"]) for each in found if each]
        if not found:
            continue
        edges = found[0].edges
        bins = [f"{low:g} to {high:g}" for low, high in zip(edges, edges[1:], strict=False)]
        each = [over_seeds(s) for s in zip(*(f.shares for f in found), strict=True)]
        figure.add_bar(
            x=["never", *bins, "always"], y=[f.value for f in each], name=arm,
            marker={"color": STYLES[number][0], "pattern": {"shape": ("", "/")[number % 2]}},
            error_y={"array": [f.high - f.value for f in each], "thickness": 1},
        )  # fmt: skip
    figure.update_layout(barmode="group")
    return figure


def containments(results: Results, triples: Sequence[tuple[str, str, str]]) -> Any:
    """Draw how solved problems, all steps valid, divide between a trained model and its base.

    Problems of all seeds that both have are put together. What two samples of one model differ by
    is shown beside it: the base's tries in two halves, all ways to halve them averaged.
    """
    figure = framed(
        "Problems solved by valid steps in all tries; halves of a base's own tries beside them",
        "share of the problems, of all seeds together",
        "",
    )
    parts = {
        "both": ("both", "#0072b2", ""), "only_outer": ("the base alone", "#e69f00", "/"),
        "only_inner": ("the trained model alone", "#d55e00", "x"),
        "neither": ("nobody", "#bbbbbb", "."),
    }  # fmt: skip
    names: list[str] = []
    found: list[dict[str, float]] = []
    for arm, base, name in triples:
        ours = {line.seed: line.result["reach"].get(name) for line in results.runs(arm)}
        theirs = {line.seed: line.result["reach"].get(name) for line in results.runs(base)}
        seeds = [s for s in ours if theirs.get(s) and ours[s] and "valid" in ours[s]]
        if seeds:
            inner = [count for s in seeds for count in ours[s]["valid"]]
            outer = [count for s in seeds for count in theirs[s]["valid"]]
            sets = containment(inner, outer)
            found.append({part: getattr(sets, part) / len(inner) for part in parts})
            within = sets.share
            said = "-" if within is None else f"{within.value:.0%} of its solved"
            names.append(f"{arm} against {base}, {name}: {said} ({len(inner)} problems)")
            n = min(theirs[s]["n"] for s in seeds)
            itself = f"{base} against itself, {name}: halves of {n // 2} tries"
            if itself not in names:  # a bar of the same name would be stacked on the first
                found.append(halves(outer, n))
                names.append(itself)
    for part, (words, colour, pattern) in parts.items():
        figure.add_bar(
            y=names, orientation="h", name=words, x=[each[part] for each in found],
            marker={"color": colour, "pattern": {"shape": pattern}},
        )  # fmt: skip
    figure.update_layout(barmode="stack", height=220 + 44 * len(names))
    figure.update_yaxes(autorange="reversed")
    return figure


def perplexity(results: Results, arms: Sequence[str]) -> Any:
    """Draw the distribution of the base's perplexity of what each model writes."""
    figure = framed(
        "Perplexity of completions under the base, near problems",
        "perplexity under the base (logarithmic)", "share of the completions below",
    )  # fmt: skip
    number = 0
    for arm in arms:
        runs = [line.result["perplexity"] for line in results.runs(arm)]
        for source, words in (("base", f"{arm}'s base's own"), ("own", f"{arm}'s")):
            if runs:
                each = [over_seeds(c).value for c in zip(*(r[source] for r in runs), strict=True)]
                colour, dash, mark = STYLES[number % len(STYLES)]
                figure.add_scatter(
                    x=each, y=runs[0]["fractions"], name=words, mode="lines+markers",
                    line={"color": colour, "dash": dash}, marker={"symbol": mark},
                )  # fmt: skip
            number += 1
    figure.update_xaxes(type="log")
    return figure
