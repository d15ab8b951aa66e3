"""`probe features`: which features belong to forks, to a way of answering, to right answers."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from entropy_probe.cli.failing import usage
from entropy_probe.cli.options import count_option, fraction_option, model_options, speaking
from entropy_probe.cli.output import note, table, wants_json, write_json, write_path
from entropy_probe.cli.reading import new_file

if TYPE_CHECKING:
    from sae_steering.activities import Activities
    from sae_steering.sae import SparseDictionary
    from sae_steering.tables import FeatureTable

_SHOWN = {
    "contrast": {
        "auroc": "AUROC", "matched": "on equal tokens", "token": "token alone", "effect": "effect",
        "rate": "active", "rate_other": "elsewhere", "token_share": "token's share",
    },
    "reason": {
        "score": "ReasonScore", "entropy": "over words", "null_high": "random words", "p": "p",
        "inside": "around", "outside": "elsewhere",
    },
}  # fmt: skip


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--sae", required=True, metavar="SAE", help="Folder, or RELEASE:ID of SAELens.")
@click.option(
    "--by",
    type=click.Choice(["fork", "outcome", "strategy", "reason"]),
    default="fork",
    show_default=True,
    help="What features are scored by.",
)
@click.option(
    "--split",
    metavar="REGEX",
    help="Completions that begin like this against the others; for --by strategy.",
)
@count_option("--skip", 1, "Tokens of a completion to leave out; for --by strategy.", least=0)
@click.option("--word", "words", multiple=True, help="Reasoning word; repeatable; for --by reason.")
@count_option("--top", 20, "Features to show.")
@count_option(
    "--states", None, "States to score at most; whole completions of them for --by reason.  "
    "[default: what fits in 256 MB]"
)  # fmt: skip
@fraction_option("Share of the tokens that are forks, where a run kept all states.")
@model_options(required=False)
@click.option("-o", "--out", metavar="FILE", help="Page of feature cards; with --model also words.")
@click.option("--save", metavar="FILE", help="All features' scores, as JSON.")
@speaking
def features(
    runs: tuple[str, ...], sae: str, by: str, split: str | None, skip: int, words: tuple[str, ...],
    top: int, states: int | None, fraction: float, model: str | None, device: str | None,
    dtype: str | None, revision: str | None, out: str | None, save: str | None,
) -> None:  # fmt: skip
    """List the features that tell some states of a run from others.

    Beside each score stands what the tokens alone give: a feature that is a word looks like one
    of reasoning until it is compared on equal tokens.
    """
    if (split is None) == (by == "strategy"):
        why = "--split says which completions follow the one strategy, and belongs to it alone"
        raise usage("which strategy?", why, "pass --by strategy --split REGEX, or neither")
    if words and by != "reason":
        raise usage("--word without --by reason", "words belong to that score", "add --by reason")
    from sae_steering import load_sae

    dictionary = load_sae(sae)
    scored, column, middle = _score(
        dictionary, runs, by, _pattern(split), skip, words, states, fraction
    )
    best = scored.best(top, by=column, around=middle)
    lines = scored.lines(best)
    if save is not None:
        scored.save(save)
        note(f"scores of {len(scored)} features: {save}")
    if out is not None:
        held = None
        if model is not None:
            from entropy_probe import load

            held = load(model, device=device, dtype=dtype, revision=revision)
        _write_page(Path(out), dictionary, runs, lines, held, scored)
    if wants_json():
        write_json({"sae": sae, "score": by, "about": dict(scored.about), "features": lines})
        return
    shown = _SHOWN["reason" if by == "reason" else "contrast"]
    rows = [["feature", *shown.values()]]
    rows += [[str(line["feature"]), *(_cell(line, name) for name in shown)] for line in lines]
    click.echo(", ".join(f"{name} {value}" for name, value in scored.about.items()))
    click.echo("\n".join(table(rows)))
    if out is not None:
        write_path(Path(out), {})


def _score(
    sae: "SparseDictionary", runs: tuple[str, ...], by: str, split: "re.Pattern | None", skip: int,
    words: tuple[str, ...], states: int | None, fraction: float,
) -> "tuple[FeatureTable, str, float | None]":  # fmt: skip
    """Give the table, the column that ranks features, and from what number they are far."""
    from sae_steering.activities import activities
    from sae_steering.reason import WORDS, reason_score, word_tokens
    from sae_steering.score import fork_selectivity, outcome_selectivity, strategy_selectivity

    names = words or WORDS
    marks = {"reason": lambda record: word_tokens(record, names)}
    if split is not None:
        marks["strategy"] = lambda record: _sides(record, split)
    found = activities(
        sae, runs, states=states, fraction=fraction, mark=marks.get(by), whole=by == "reason"
    )
    if by == "reason":
        scored = reason_score(
            found.acts, found.marks, rows=found.rows, places=found.places, tokens=found.read,
            clusters=found.prompts, names=names,
        )  # fmt: skip
        return scored, "score", None
    if by == "fork":
        _two_kinds(found.forks, "forks")
        scored = fork_selectivity(
            found.acts, found.forks, tokens=found.read, clusters=found.prompts
        )
        return scored, "matched", 0.5
    if by == "strategy":
        found = found[found.places >= skip]
        positive = found.marks == 1
    else:
        found, positive = _outcomes(found)
    _two_kinds(positive, {"strategy": "completions like --split", "outcome": "right answers"}[by])
    function = strategy_selectivity if by == "strategy" else outcome_selectivity
    scored = function(
        found.acts, positive, tokens=found.read, positions=found.places, clusters=found.prompts
    )
    return scored, "matched", 0.5


def _outcomes(found: "Activities") -> "tuple[Activities, Any]":
    """Give the states of judged completions, and whether each one's answer is right."""
    if found.rewards is None:
        why = "no completion of these runs has a reward"
        fix = "capture with --task, which verifies answers"
        raise usage("no outcomes to tell apart", why, fix)
    found = found[~found.rewards.isnan()]
    return found, found.rewards > 0.5


def _two_kinds(mask: Any, name: str) -> None:
    """Refuse a comparison with nothing on one side."""
    if not bool(mask.any()) or bool(mask.all()):
        count = "all" if bool(mask.all()) else "none"
        why = f"{count} of the {len(mask)} states are of {name}"
        raise usage("nothing to compare", why, "take other runs, or another --by or --split")


def _sides(record: Any, split: "re.Pattern") -> Any:
    """Give 1 at the tokens of completions that begin like a pattern, 0 at all others."""
    import torch

    like = [bool(split.match(record.completion(row))) for row in range(len(record))]
    return torch.tensor(like).long()[:, None].expand(record.tokens.shape)


def _pattern(text: str | None) -> "re.Pattern | None":
    """Compile what --split says."""
    try:
        return None if text is None else re.compile(text)
    except re.error as error:
        why = f"{text!r}: {error}"
        raise usage(
            "--split is no regular expression", why, "escape what is meant as text"
        ) from None


def _write_page(
    path: Path, sae: "SparseDictionary", runs: tuple[str, ...], lines: list[dict[str, Any]],
    held: "tuple | None", scored: "FeatureTable",
) -> None:  # fmt: skip
    """Write the cards of the listed features."""
    from dataclasses import replace

    from sae_steering.card_page import cards_page
    from sae_steering.cards import feature_cards

    model, tokenizer = held or (None, None)
    numbers = [line["feature"] for line in lines]
    cards = feature_cards(sae, runs, numbers, model=model, tokenizer=tokenizer)
    cards = [replace(card, scores=line) for card, line in zip(cards, lines, strict=True)]
    facts = [("dictionary", repr(sae)), ("score", scored.score)]
    facts += [(name, str(value)) for name, value in scored.about.items()]
    page = cards_page(
        cards, title=f"Features of {sae.model}, by {scored.score}", facts=facts,
        columns=_SHOWN["reason" if scored.score == "reason" else "contrast"],
    )  # fmt: skip
    with new_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _cell(line: dict[str, Any], name: str) -> str:
    """Write a number, with its interval where there is one."""
    value, low, high = (line.get(name + end) for end in ("", "_low", "_high"))
    if value is None:
        return "-"
    text = f"{value:.3f}"
    return text if low is None or high is None else f"{text} ({low:.3f} to {high:.3f})"
