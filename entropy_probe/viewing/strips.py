"""Strips of tokens as HTML: a class for the level, an underline for a fork, no text in attributes.

A token is an ``<i>``, a fork a ``<mark>`` with the id that links lead to. The first letter of the
class is the level, ``a`` to ``h``, or ``p`` where no distribution produced the token; a capital
letter says that the token starts with a space, which is drawn as a faint dot. Lines are blocks of
their own, so that a browser lays out only those in sight.
"""

from collections.abc import Iterator, Sequence
from html import escape

from markupsafe import Markup

from entropy_probe.viewing.columns import (
    CONTROL,
    FORK,
    HIDDEN,
    PROMPT,
    SPECIAL,
    VALID,
    Strip,
)
from entropy_probe.viewing.scales import ENTROPY
from entropy_probe.viewing.visible import NEWLINE, SPACE, Piece, spell

LEVELS = "abcdefgh"
LINE_TOKENS = 320
"""Tokens after which a line block ends even without a newline."""
ROLE_CLASSES = ("y", "z")
"""Class of tokens that have the first role, the second role."""


def strip_html(
    strip: Strip,
    pieces: Sequence[bytes],
    *,
    redact: bool,
    roles: Sequence[Sequence[bool]] = (),
) -> Markup:
    """Give the lines of a strip; ``roles`` says for each role which tokens have it."""
    classes = [
        "".join(f" {c}" for c, has in zip(ROLE_CLASSES, roles, strict=False) if has[i])
        for i in range(len(pieces))
    ]
    special = (strip.flags & SPECIAL) > 0
    levels = ENTROPY.levels(strip.entropy)
    spelled = spell(pieces, special.tolist())
    out: list[str] = []
    for start, stop in _lines(spelled):
        goes_on = stop < len(spelled) and not _ends_line(spelled[stop - 1])
        kind = "l c" if goes_on else "l"
        out.append(f'<div class="{kind}" data-p="{strip.start + start}">')
        for i in range(start, stop):
            drawn = spelled[i]
            if redact and strip.flags[i] & PROMPT:
                drawn = (Piece(HIDDEN, "plain"),)
            out.append(_token(strip, i, int(levels[i]), drawn, classes[i]))
        out.append("</div>")
    return Markup("".join(out))


def anchor(row: int, position: int) -> str:
    """Give the id of a fork's element."""
    return f"t{row}-{position}"


def _lines(spelled: Sequence[tuple[Piece, ...]]) -> Iterator[tuple[int, int]]:
    """Cut a strip into lines: after a newline, or after many tokens."""
    start = 0
    for i, drawn in enumerate(spelled):
        if _ends_line(drawn) or i + 1 - start >= LINE_TOKENS:
            yield start, i + 1
            start = i + 1
    if start < len(spelled):
        yield start, len(spelled)


def _ends_line(drawn: tuple[Piece, ...]) -> bool:
    """Say whether a token's last character is a newline."""
    return bool(drawn) and drawn[-1].kind == "newline"


def _token(strip: Strip, i: int, level: int, drawn: tuple[Piece, ...], roles: str) -> str:
    """Give one token's element."""
    flags = int(strip.flags[i])
    kind = LEVELS[level] if flags & VALID else "p"
    if drawn and drawn[0].kind == "plain" and drawn[0].text.startswith(" "):
        kind = f"{kind} w" if drawn[0].text.isspace() else kind.upper()
    kind += " x" if flags & SPECIAL else ""
    kind += " k" if flags & CONTROL else ""
    kind += roles
    if any(p.kind in ("joined", "part") for p in drawn):
        kind += " u"
    inner = "".join(_piece(p, last=p is drawn[-1]) for p in drawn) or "<b>⟨empty⟩</b>"
    quoted = kind if len(kind) == 1 else f'"{kind}"'
    if flags & FORK:
        return f"<mark id={anchor(strip.row, strip.start + i)} class={quoted}>{inner}</mark>"
    return f"<i class={quoted}>{inner}</i>"


def _piece(piece: Piece, *, last: bool) -> str:
    """Give one stretch of a token: glyphs in an element of their own."""
    if piece.kind == "plain":
        body = piece.text.rstrip(" ")
        trailing = len(piece.text) - len(body) if body and last else 0
        text = body if trailing else piece.text
        return escape(text) + (f"<b>{SPACE * trailing}</b>" if trailing else "")
    if piece.kind == "newline":
        return f"<b>{NEWLINE}</b>\n"
    if piece.kind == "joined":
        return escape(piece.text)
    return f"<b>{escape(piece.text)}</b>"
