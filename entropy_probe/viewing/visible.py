"""Token bytes made visible and safe to print: one rule for page, notebook, terminal and CSV.

Token text is hostile until shown otherwise: it comes from a model, a prompt or a data set. What
leaves this module holds no control character, no invisible character and nothing that turns the
direction of text; escaping for the target (HTML, Markdown, CSV) comes on top.

The glyphs:

- space ``·``, newline ``↵``, tab ``⇥``;
- controls, invisible and direction-turning characters: their short name, ``⟨NUL⟩``, ``⟨ESC⟩``,
  ``⟨CR⟩``, ``⟨RLO⟩``, ``⟨ZWSP⟩``, ``⟨NBSP⟩`` (control pictures are missing from many fonts);
- lone surrogates, private and unassigned characters, and the rest: ``⟨U+D800⟩``;
- bytes that are no UTF-8: in hexadecimal, ``⟨FF⟩``;
- a combining mark with nothing to sit on: on a dotted circle, ``◌́``.

Text that holds these glyphs itself looks the same; the bytes, shown beside, tell them apart.
"""

import codecs
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

SPACE, NEWLINE, TAB, DOTTED_CIRCLE = "·", "↵", "⇥", "◌"

_NAMES = {
    0x7F: "DEL", 0x85: "NEL", 0xA0: "NBSP", 0xAD: "SHY", 0x34F: "CGJ", 0x61C: "ALM", 0x200B: "ZWSP",
    0x200C: "ZWNJ", 0x200D: "ZWJ", 0x200E: "LRM", 0x200F: "RLM", 0x2028: "LS", 0x2029: "PS",
    0x202A: "LRE", 0x202B: "RLE", 0x202C: "PDF", 0x202D: "LRO", 0x202E: "RLO", 0x202F: "NNBSP",
    0x2060: "WJ", 0x2066: "LRI", 0x2067: "RLI", 0x2068: "FSI", 0x2069: "PDI", 0x3000: "IDSP",
    0xFE0E: "VS15", 0xFE0F: "VS16", 0xFEFF: "BOM",
}  # fmt: skip

_C0 = (
    "NUL SOH STX ETX EOT ENQ ACK BEL BS TAB LF VT FF CR SO SI "
    "DLE DC1 DC2 DC3 DC4 NAK SYN ETB CAN EM SUB ESC FS GS RS US"
).split()

# Letters and marks by category that draw nothing: Hangul and Khmer fillers, the Braille blank,
# the Mongolian and the variation selectors.
_BLANK = frozenset(
    [0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0, *range(0x180B, 0x1810)]
    + [*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)]
)
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"})
_MARKS = frozenset({"Mn", "Me", "Mc"})

# What a spreadsheet reads as a formula, at the start of a cell (full-width forms too).
_FORMULA = tuple("=+-@\t\r\n＝＋－＠")
_MARKDOWN = {ord(c): f"&#{ord(c)};" for c in "\\`*_{}[]()<>#+-.!|~&:@$\"'^=/"}


class Piece(NamedTuple):
    """A stretch of one token as it is drawn."""

    text: str
    """Printable characters; plain stretches keep their spaces."""
    kind: str
    """"plain", "glyph" (stands for something invisible), "newline" (the glyph; a line ends after
    it), "joined" (a character whose bytes go on in later tokens) or "part" (such later bytes)."""


def visible(piece: bytes) -> str:
    r"""Give a token's bytes as printable text on one line.

    >>> visible(b" a\n"), visible(b"\x1b[31m"), visible("\u202e".encode()), visible(b"\xff")
    ('·a↵', '⟨ESC⟩[31m', '⟨RLO⟩', '⟨FF⟩')
    """
    drawn = (p.text.replace(" ", SPACE) if p.kind == "plain" else p.text for p in _spell(piece))
    return "".join(drawn) or "⟨empty⟩"


def visible_text(text: str) -> str:
    """Give any string as printable text on one line; lone surrogates become their number."""
    return "".join(_glyph(c)[0] if c != " " else " " for c in text)


def spell(pieces: Sequence[bytes], special: Sequence[bool]) -> list[tuple[Piece, ...]]:
    """Give each token of a row as it is drawn, characters split over tokens put together.

    The first token of a split character shows the whole character ("joined"), the later ones
    their own bytes ("part"). A special token never takes part in a character.
    """
    out: list[tuple[Piece, ...]] = []
    while len(out) < len(pieces):
        start = len(out)
        stop = start + 1
        if not special[start]:
            decoder = codecs.getincrementaldecoder("utf-8")("replace")
            decoder.decode(pieces[start])
            while decoder.getstate()[0] and stop < len(pieces) and not special[stop]:
                decoder.decode(pieces[stop])
                stop += 1
        if stop == start + 1:
            out.append(_spell(pieces[start]))
        else:
            out.extend(_spell_together(pieces[start:stop]))
    return out


def csv_safe(text: str) -> str:
    """Give a cell that no spreadsheet runs: a quote goes before a leading = + - @, TAB or CR.

    >>> csv_safe("=1+1"), csv_safe("a=1")
    ("'=1+1", 'a=1')
    """
    return "'" + text if text.startswith(_FORMULA) else text


def markdown_safe(text: str) -> str:
    """Give text that Markdown (with HTML, tables, links or mathematics) shows as it stands."""
    return visible_text(text).translate(_MARKDOWN)


def hex_bytes(piece: bytes) -> str:
    """Give bytes in hexadecimal, a space between two."""
    return piece.hex(" ").upper()


def columns(text: str) -> int:
    """Count the terminal columns that printable text takes."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.category(c) in ("Mn", "Me") for c in text)


@lru_cache(maxsize=65536)
def _spell(piece: bytes) -> tuple[Piece, ...]:
    """Draw one token on its own."""
    return _spell_together([piece])[0]


def _spell_together(pieces: Sequence[bytes]) -> list[tuple[Piece, ...]]:
    """Draw neighbouring tokens, decoding their bytes as one."""
    whole = b"".join(pieces)
    owner = [t for t, piece in enumerate(pieces) for _ in piece]
    drawn: list[list[Piece]] = [[] for _ in pieces]
    at = 0
    while at < len(whole):
        size, char = _character(whole, at)
        owners = owner[at : at + size]
        first = owners[0]
        if char is None:
            drawn[first].append(Piece(hex_bytes(whole[at : at + size]), "bytes"))
        elif owners[-1] == first:
            drawn[first].append(Piece(*_glyph(char, after=drawn[first])))
        else:
            drawn[first].append(Piece(_glyph(char, after=[])[0], "joined"))
            for later in sorted(set(owners) - {first}):
                own = bytes(b for b, o in zip(whole[at:], owners, strict=False) if o == later)
                drawn[later].append(Piece(hex_bytes(own), "part"))
        at += size
    return [tuple(_merge(p)) for p in drawn]


def _character(whole: bytes, at: int) -> tuple[int, str | None]:
    """Give the length of the character at an offset, and it; None for a byte that is no UTF-8."""
    lead = whole[at]
    size = 1 if lead < 0x80 else 2 if 0xC2 <= lead < 0xE0 else 3 if 0xE0 <= lead < 0xF0 else 4
    try:
        return size, whole[at : at + size].decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return 1, None


def _glyph(char: str, after: Sequence[Piece] = ()) -> tuple[str, str]:
    """Give what is drawn for a character, and its kind."""
    code = ord(char)
    if char == "\n":
        return NEWLINE, "newline"
    if char == " " or 0x20 < code < 0x7F:
        return char, "plain"
    if char == "\t":
        return TAB, "glyph"
    if code < 0x20:
        return f"⟨{_C0[code]}⟩", "glyph"
    category = unicodedata.category(char)
    if code in _NAMES or code in _BLANK or category in _HIDDEN:
        return f"⟨{_NAMES.get(code) or f'U+{code:04X}'}⟩", "glyph"
    if category in _MARKS and (not after or after[-1].kind != "plain"):
        return DOTTED_CIRCLE + char, "plain"
    return char, "plain"


def _merge(pieces: Iterable[Piece]) -> Iterable[Piece]:
    """Join neighbouring stretches of one kind; bytes get their brackets here."""
    text, kind = "", ""
    for piece in pieces:
        if piece.kind == kind and kind in ("plain", "bytes", "part"):
            text += (" " if kind != "plain" else "") + piece.text
            continue
        if text:
            yield _close(text, kind)
        text, kind = piece
    if text:
        yield _close(text, kind)


def _close(text: str, kind: str) -> Piece:
    """Finish a stretch: bytes in hexadecimal are drawn in brackets."""
    if kind == "bytes":
        return Piece(f"⟨{text}⟩", "glyph")
    return Piece(f"⟨{text}⟩" if kind == "part" else text, kind)
