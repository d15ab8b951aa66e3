"""The heatmap in a terminal: coloured with ANSI 256 colours, or plain with the forks bracketed."""

import os
import shutil
import sys

from entropy_probe.rollout import Rollouts
from entropy_probe.viewing.columns import FORK, PROMPT, SPECIAL, VALID, Strip, cut_strip
from entropy_probe.viewing.facts import fork_table
from entropy_probe.viewing.marks import cut_words, drawn_lengths, mark_forks, ordinal_names
from entropy_probe.viewing.scales import ENTROPY, reward_words
from entropy_probe.viewing.visible import columns, spell, visible_text

OPEN, CLOSE = "⟦", "⟧"
"""What stands around a fork where there is no colour."""

TERMINAL_TOKENS = 2_000
"""Tokens that are printed at most; the page shows more."""

# (background, foreground) of levels 1 to 7 among the 256 colours; level 0 is the terminal's own.
_ON_DARK = ((236, 15), (58, 15), (94, 15), (130, 15), (172, 16), (208, 16), (214, 16))
_ON_LIGHT = ((255, 16), (230, 16), (223, 16), (222, 16), (216, 16), (215, 16), (208, 16))


def terminal_heatmap(
    rollouts: Rollouts,
    *,
    fraction: float = 0.2,
    scope: str = "batch",
    color: bool | None = None,
    width: int | None = None,
    top: int = 10,
    max_tokens: int = TERMINAL_TOKENS,
    row: int | None = None,
) -> str:
    """Give the tokens as text for a terminal, forks underlined or bracketed, then the top forks.

    Args:
        rollouts: what to draw.
        fraction: share of the tokens called forks.
        scope: what that share is a share of.
        color: use ANSI colours; None asks the terminal (`NO_COLOR`, `TERM=dumb`, no terminal: no).
        width: columns to fill; None asks the terminal.
        top: how many of the most uncertain forks are listed.
        max_tokens: how many tokens are printed at most.
        row: the one row to print, whole; the forks are still those of the record.
    """
    color = _wants_color() if color is None else color
    width = max(20, shutil.get_terminal_size((100, 24)).columns if width is None else width)
    marks = mark_forks(rollouts, fraction=fraction, scope=scope)
    drawn = drawn_lengths(rollouts, max_tokens)
    spans = dict(enumerate(drawn)) if row is None else {row: int(rollouts.lengths[row])}
    out = [_clip(visible_text(rollouts.provenance.model), width)]
    out += _wrap(marks.sentence(), width)
    strips = []
    for each, length in spans.items():
        strip = cut_strip(rollouts, marks, each, 0, length)
        strips.append(strip)
        out += ["", *_wrap(_heading(rollouts, each, strip), width)]
        out += _tokens(rollouts, strip, color, width)
    if not drawn:
        out += ["", "The record is empty: it has no rollouts to draw."]
    cut = cut_words(rollouts, drawn) if row is None else None
    out += ["", *(_wrap(cut, width) if cut else []), *_wrap(_legend(color), width, color=color)]
    table = fork_table(rollouts, strips)[:top]
    if table:
        out += ["", _clip("entropy   prob.  token, and what else it could have been", width)]
    for fork in table:
        rest = "  ".join(f"{text} {p}" for text, p in fork["others"])
        where = f"{fork['name'][0]}.{fork['name'][1]}:{fork['position']}"
        line = f"{fork['entropy']:>7}  {fork['probability']:>6}  {fork['text']}  |  {rest}"
        out.append(_clip(line, width - columns(where) - 4) + f"  [{where}]")
    return "\n".join(out) + "\n"


def _wants_color() -> bool:
    """Ask the environment whether colours are welcome."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return not plain and sys.stdout.isatty()


def _ramp() -> tuple[tuple[int, int], ...]:
    """Give the colours for the terminal's background, dark unless `COLORFGBG` says light."""
    background = os.environ.get("COLORFGBG", "").rpartition(";")[2]
    return _ON_LIGHT if background in ("7", "15") else _ON_DARK


def _heading(rollouts: Rollouts, row: int, strip: Strip) -> str:
    """Name a rollout with its reward and its counts."""
    prompt, number = ordinal_names(rollouts)[row]
    rewards = rollouts.rewards
    reward = "" if rewards is None else f" · reward {reward_words(float(rewards[row]))}"
    forks = int(((strip.flags & FORK) > 0).sum())
    tokens = int(((strip.flags & VALID) > 0).sum())
    return f"── rollout {prompt}.{number}{reward} · {tokens} tokens, {forks} forks"


def _tokens(rollouts: Rollouts, strip: Strip, color: bool, width: int) -> list[str]:
    """Give a row's tokens in lines of at most so many columns."""
    ids = rollouts.tokens[strip.row, : strip.stop].tolist()
    pieces = [rollouts.pieces.get(i, f"<id {i}>".encode()) for i in ids]
    special = ((strip.flags & SPECIAL) > 0).tolist()
    levels = ENTROPY.levels(strip.entropy).tolist()
    lines, used = [""], 0
    for drawn, flags, level in zip(
        spell(pieces, special), strip.flags.tolist(), levels, strict=True
    ):
        text = "".join(p.text for p in drawn) or "⟨empty⟩"
        fork = bool(flags & FORK)
        text = text if color or not fork else f"{OPEN}{text}{CLOSE}"
        for part in _parts(text, width):
            if used and used + columns(part) > width:
                lines.append("")
                used = 0
            used += columns(part)
            lines[-1] += _paint(part, flags, level) if color else part
        if drawn and drawn[-1].kind == "newline":
            lines.append("")
            used = 0
    return [line for i, line in enumerate(lines) if line or i < len(lines) - 1]


def _parts(text: str, width: int) -> list[str]:
    """Cut a token that is wider than a line."""
    if columns(text) <= width:
        return [text]
    parts, used = [""], 0
    for char in text:
        if used + columns(char) > width:
            parts.append("")
            used = 0
        parts[-1] += char
        used += columns(char)
    return parts


def _paint(text: str, flags: int, level: int) -> str:
    """Put the colours of a token around it."""
    codes = []
    if flags & VALID and level:
        background, foreground = _ramp()[level - 1]
        codes += ["48", "5", str(background), "38", "5", str(foreground)]
    elif flags & PROMPT:
        codes += ["2"]
    if flags & FORK:
        codes += ["1", "4"]
    return f"\x1b[{';'.join(codes)}m{text}\x1b[0m" if codes else text


def _legend(color: bool) -> str:
    """Give the scale, in the colours themselves where there are any."""
    names = [f" {label} " for label in ENTROPY.labels]
    if not color:
        return f"Forks stand in {OPEN}brackets{CLOSE}; entropy in nats (0.7: a coin toss)."
    shown = "".join(_paint(name, VALID, level) for level, name in enumerate(names))
    return f"entropy in nats {shown}  " + _paint("fork", VALID | FORK, 0)


def _wrap(text: str, width: int, *, color: bool = False) -> list[str]:
    """Break a sentence into lines between words; coloured text stays on one line."""
    if color:
        return [text]
    lines = [""]
    for word in text.split():
        if lines[-1] and columns(lines[-1]) + 1 + columns(word) > width:
            lines.append("")
        lines[-1] += (" " if lines[-1] else "") + word
    return lines


def _clip(text: str, width: int) -> str:
    """Cut a line that is too wide."""
    if columns(text) <= width:
        return text
    kept = text[: max(1, width - 1)]
    while columns(kept) > width - 1 and kept:
        kept = kept[:-1]
    return kept + "…"
