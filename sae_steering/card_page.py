"""Feature cards as one self-contained page: a pure function of the cards."""

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from entropy_probe.viewing.visible import SPACE, spell, visible, visible_text

from .cards import Card, Snippet

LEVELS = "abcdefgh"


def cards_page(
    cards: Sequence[Card],
    *,
    title: str = "Features",
    facts: Sequence[tuple[str, str]] = (),
    columns: Mapping[str, str] | None = None,
) -> str:
    """Give the page of some cards; the same cards give the same bytes, and nothing is fetched.

    Args:
        cards: the cards, in the order in which they are to be shown.
        title: its heading.
        facts: label and text of what is to be said above them.
        columns: name in a card's scores -> what to call it; by default all of them, as they are.
    """
    style = _resource("cards.css")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return _template().render(
        title=visible_text(title),
        policy=f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; "
        "form-action 'none'",
        style=Markup(style),
        facts=[(visible_text(name), visible_text(text)) for name, text in facts],
        cards=[_card(card, columns) for card in cards],
        levels=LEVELS,
    )


def _card(card: Card, columns: Mapping[str, str] | None) -> dict[str, Any]:
    """Give what the template shows of a card."""
    ends = ("_low", "_high")
    every = {name: name for name in card.scores if name != "feature" and not name.endswith(ends)}
    names = {name: shown for name, shown in (columns or every).items() if name in card.scores}
    return {
        "feature": card.feature,
        "facts": [
            ("active at", f"{card.density:.2%} of states"),
            ("largest", f"{card.largest:.3g}"),
            ("mean where active", f"{card.mean:.3g}"),
        ],
        "scores": [(shown, _score(card.scores, name)) for name, shown in names.items()],
        "words": [
            (label, [(visible(piece), f"{value:+.2f}") for piece, value in found])
            for label, found in (
                ("raises", card.promotes), ("lowers", card.suppresses), ("is like", card.nearest),
            )
            if found
        ],
        "groups": [
            (label, [_line(snippet, card.largest) for snippet in found])
            for label, found in (("strongest", card.top), ("drawn at random", card.drawn))
            if found
        ],
    }  # fmt: skip


def _score(scores: Mapping[str, Any], name: str) -> str:
    """Write a score, with its interval where there is one."""
    value, low, high = (scores.get(name + end) for end in ("", "_low", "_high"))
    if value is None:
        return "none"
    text = f"{value:.3f}"
    return text if low is None or high is None else f"{text} ({low:.3f} to {high:.3f})"


def _line(snippet: Snippet, largest: float) -> dict[str, Any]:
    """Give a snippet's tokens as they are drawn: text and level each."""
    drawn = spell(snippet.pieces, snippet.special)
    tokens = []
    for i, (pieces, act) in enumerate(zip(drawn, snippet.acts, strict=True)):
        text = "".join(p.text.replace(" ", SPACE) if p.kind == "plain" else p.text for p in pieces)
        level = "" if act is None else LEVELS[_level(act, largest)]
        kinds = [level or "n", *(["peak"] if i == snippet.peak else [])]
        kinds += ["special"] if snippet.special[i] else []
        shown = None if act is None else f"{act:.3g}"
        tokens.append({"text": text or "⟨empty⟩", "kind": " ".join(kinds), "act": shown})
    act = snippet.acts[snippet.peak]
    return {
        "tokens": tokens, "sample": snippet.sample, "position": snippet.position,
        "act": "" if act is None else f"{act:.3g}",
    }  # fmt: skip


def _level(act: float, largest: float) -> int:
    """Give 0 for no activity, 1 to 7 for sevenths of the largest."""
    if not act > 0 or not largest > 0:
        return 0
    return min(7, max(1, math.ceil(7 * act / largest)))


@lru_cache
def _resource(name: str) -> str:
    """Read a file that lies beside this module."""
    return (files("sae_steering") / name).read_text(encoding="utf-8")


@lru_cache
def _template() -> jinja2.Template:
    """Compile the page's template, with escaping on."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string(_resource("cards.html"))
