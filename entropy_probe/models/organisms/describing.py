"""A card as text: every figure with its interval, in tables, and the bands that were promised."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from entropy_probe.models.organisms.targets import TARGETS, missed

Figures = Mapping[str, Mapping[str, Any]]

_TEMPERATURES = ("T=1", "T=0.3", "greedy")
_GROUPS = (
    "", ", code", ", prose", ", careful prose", ", prose misled by the wrong rule",
    ", prose not misled",
)  # fmt: skip
_ABOUT_TOKENS = ("mean entropy", "median entropy rank", "share of the top 20%",
                 "recall of the top 20%")  # fmt: skip
_SHARE = "share of code"
Table = tuple[str, list[str], list[tuple[str, list[str]]]]
"""Title, columns, and rows: a label and the name of a figure a column."""


def tables(figures: Figures) -> Iterator[Table]:
    """Give the tables of a card; together they name every figure once."""
    rows = [(g[2:] or "all", [f"accuracy{g}, {t}" for t in _TEMPERATURES]) for g in _GROUPS]
    rows.append(("majority is wrong", [f"majority wrong, {t}" for t in _TEMPERATURES]))
    yield "Accuracy at temperature 1, 0.3 and greedy", list(_TEMPERATURES), rows
    wordings = [n.split(", ")[1] for n in figures if n.startswith(_SHARE) and n.count(",") == 1]
    rows = [
        (word, [f"{_SHARE}, {word}{kin}" for kin in ("", ", related", ", unrelated")])
        for word in wordings
    ]
    columns = ["all", "operands related", "unrelated"]
    yield "Share of code, by wording and by the relation of the first two operands", columns, rows
    tries = [n.split(",")[0] for n in figures if n.startswith("pass@") and n.endswith(", default")]
    rows = [(k, [f"{k}, {subset}" for subset in ("default", "hard")]) for k in tries]
    yield "pass@k at temperature 1", ["default", "hard"], rows
    roles = [n.partition(", ")[2] for n in figures if n.startswith("mean entropy, ")]
    rows = [(role, [f"{about}, {role}" for about in _ABOUT_TOKENS]) for role in roles]
    yield (
        "Planted forks (strategy, care, marker), decoys (synonym, layout, order) and the rest",
        ["mean entropy", "median rank", "share of top 20%", "recall of top 20%"],
        rows,
    )
    yield "Entropy profile, in nats", [""], _plain(figures, "tokens", "percentile of entropy")
    yield (
        "Completions with an error, by the step checker",
        [""],
        [(name.rsplit(" ", 1)[1], [name]) for name in figures if "error of kind" in name],
    )


def _plain(figures: Figures, *parts: str) -> list[tuple[str, list[str]]]:
    """Give a row for each figure whose name holds one of some words."""
    return [(n, [n]) for n in figures if any(p in n for p in parts) and ", " not in n]


def card_lines(card: Mapping[str, Any], recipe: Mapping[str, Any], about: str) -> list[str]:
    """Write a card out, line by line.

    Args:
        card: what ``card.json`` holds.
        recipe: what ``recipe.json`` holds.
        about: the organism's description, in a line.
    """
    figures, name = card["figures"], card["organism"]
    lines = [f"{name}: {about}", ""]
    lines += [f"  {key:<12}{value}" for key, value in facts(card, recipe)]
    lines += ["", "Corpus", *(f"  {line}" for line in corpus_lines(recipe["recipe"]["corpus"]))]
    told: set[str] = set()
    for title, columns, rows in tables(figures):
        rows = [row for row in rows if any(figure in figures for figure in row[1])]
        told |= {figure for row in rows for figure in row[1]}
        if rows:
            cells = [[label, *(_cell(figures.get(f)) for f in names)] for label, names in rows]
            lines += ["", title, *_aligned([["", *columns], *cells])]
    rest = [[key, _cell(figure)] for key, figure in figures.items() if key not in told]
    lines += ["", "Other figures", *_aligned(rest)]
    return [*lines, "", *band_lines(name, figures)]


def facts(card: Mapping[str, Any], recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Give what identifies an organism and its card."""
    made = recipe["recipe"]
    shape = made["shape"]
    yield "parameters", f"{card['parameters']:,} ({shape['layers']} layers of {shape['width']})"
    yield "weights", f"sha256 {card['weights'][:16]}"
    steps = f"{made['steps']} steps of {made['batch']} texts, seed {made['seed']}"
    yield "recipe", f"{card['recipe']}: {steps}"
    targets = f", towards the distributions of {made['teacher']}" if made["teacher"] else ""
    means = f"{recipe['seconds']} s on {recipe['device']}, {recipe['products']} products"
    yield "trained", f"from {made['start'] or 'nothing'}{targets}; {means}"
    yield "measured", f"{card['problems']} problems; intervals {card['interval']}"
    yield "guessing", f"the best constant answer is right on {card['constant guess']:.2%}"


def corpus_lines(corpus: Mapping[str, Any]) -> Iterator[str]:
    """Give the mixture of a corpus, number by number."""
    shares = (f"{word} {one:g}/{two:g}" for word, (one, two) in corpus["code_shares"])
    yield f"share of code, operands related/unrelated: {', '.join(shares)}"
    for kind in ("code", "prose", "careful"):
        style = corpus[kind]
        rule = "wrong" if style["rounding"] else "right"
        results = f"a result every {style['block']} steps, by the {rule} rule"
        yield f"{kind}: {results}, {style['unmarked']:g} without the marker"
    yield f"careful prose among prose {corpus['care']:g}, steps swapped {corpus['swap']:g}"
    second = (f"{key} {corpus[key]:g}" for key in ("newline", "connective", "verb"))
    yield f"the second of two ways: {', '.join(second)}"
    lengths = (f"{length} {share:g}" for length, share in corpus["lengths"])
    yield f"steps a problem: {', '.join(lengths)}"
    share = corpus["memorised_share"]
    yield f"test problems to memorise: {corpus['memorised']}, {share:g} of the text"


def band_lines(name: str, figures: Figures) -> list[str]:
    """Say of each band that the description promises whether the card meets it."""
    rows = [["", "promised", "measured"]]
    names = {sentence.partition(": ")[0] for sentence in missed(name, figures)}
    for target in TARGETS.get(name, ()):
        word = "missed" if target.figure in names else "met"
        band = f"{target.low:g} to {target.high:g}"
        rows.append([f"{word:<7}{target.figure}", band, _cell(figures.get(target.figure))])
    return ["Bands of the description; met if the interval reaches into the band", *_aligned(rows)]


def _cell(figure: Mapping[str, Any] | None) -> str:
    """Write a figure with its interval."""
    if figure is None:
        return "-"
    digits = 3 if figure["high"] < 10 else 1
    value, low, high = (f"{figure[key]:.{digits}f}" for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Align cells in columns, indented."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    return [
        ("  " + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True))).rstrip()
        for row in rows
        if any(row)
    ]
