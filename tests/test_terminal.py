"""The terminal's view: nothing raw reaches it, forks are marked, lines fit."""

import dataclasses
import math
import re
import unicodedata

import pytest
import torch
from hostile import HOSTILE, empty_record, record_of

from entropy_probe.viewing.terminal import terminal_heatmap
from entropy_probe.viewing.visible import (
    Piece,
    csv_safe,
    markdown_safe,
    spell,
    visible,
    visible_text,
)

ANSI = re.compile(r"\x1b\[[0-9;]*m")
BIDI = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def invisible(text: str) -> set[str]:
    """Give the characters that a terminal would obey or hide."""
    bad = {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp", "Cn")}
    return (bad | (BIDI & set(text)) | ({"\xa0", "\u3164", "\ufe0f"} & set(text))) - {"\n"}


@pytest.mark.parametrize("piece", HOSTILE)
def test_what_is_visible_holds_no_control(piece: bytes):
    shown = visible(piece)
    assert shown
    assert invisible(shown) == set()
    assert "\n" not in shown
    assert " " not in re.sub("⟨[0-9A-F ]+⟩", "", shown)
    shown.encode("utf-8")


def test_the_documented_glyphs():
    wanted = {
        b" a": "·a",
        b"\n": "↵",
        b"\t": "⇥",
        b"\r": "⟨CR⟩",
        b"\x00": "⟨NUL⟩",
        b"\x1b[0m": "⟨ESC⟩[0m",
        b"\x7f": "⟨DEL⟩",
        b"\xc2\x9b": "⟨U+009B⟩",
        "\u202e".encode(): "⟨RLO⟩",
        "\u200b".encode(): "⟨ZWSP⟩",
        "\u2028".encode(): "⟨LS⟩",
        b"\xed\xa0\x80": "⟨U+D800⟩",
        b"\xff\x80": "⟨FF 80⟩",
        b"\xe2\x82": "⟨E2 82⟩",
        "\u0301".encode(): "◌\u0301",
        "e\u0301".encode(): "e\u0301",
        "é漢🙂".encode(): "é漢🙂",
        b"": "⟨empty⟩",
    }
    assert {piece: visible(piece) for piece in wanted} == wanted


def test_splitting_text_anywhere_loses_and_invents_nothing():
    text = "a é 漢🙂\u202eb".encode()
    for first in range(len(text) + 1):
        for second in range(first, len(text) + 1):
            parts = [text[:first], text[first:second], text[second:]]
            drawn = spell(parts, [False] * 3)
            whole = [p for token in drawn for p in token if p.kind != "part"]
            assert "".join(p.text for p in whole) == "a é 漢🙂⟨RLO⟩b"
            owned = sum(
                len(p.text[1:-1].split()) for token in drawn for p in token if p.kind == "part"
            )
            inside = {
                c
                for c in (first, second)
                if text[:c].decode("utf-8", "ignore").encode() != text[:c]
            }
            assert (owned > 0) == bool(inside)


def test_parts_of_a_character_say_their_own_bytes():
    drawn = spell(["é".encode()[:1], "é".encode()[1:] + b"x"], [False, False])
    assert drawn[0] == (Piece("é", "joined"),)
    assert drawn[1] == (Piece("⟨A9⟩", "part"), Piece("x", "plain"))


@pytest.mark.parametrize("start", list("=+-@\t\r"))
def test_a_cell_is_never_a_formula(start: str):
    assert csv_safe(start + "1") == "'" + start + "1"
    assert csv_safe("a" + start) == "a" + start
    assert csv_safe("") == ""


@pytest.mark.parametrize("piece", HOSTILE)
def test_markdown_is_text(piece: bytes):
    safe = markdown_safe(visible(piece))
    assert not set(safe) & set("<>|*_`[]()$!\\\n")
    assert "http:" not in safe


def test_lone_surrogates_in_strings_do_not_raise():
    assert visible_text("a\ud800 b\x1b") == "a⟨U+D800⟩ b⟨ESC⟩"


def test_plain_text_has_no_escape_and_brackets_each_fork():
    record = record_of([b"t%d" % i for i in range(25)], rows=1)
    text = terminal_heatmap(record, color=False, width=80)
    assert "\x1b" not in text
    marked = re.findall(r"⟦(t\d+)⟧", text)
    ranked = sorted(record.entropy[record.valid].tolist(), reverse=True)
    floor = ranked[math.ceil(0.2 * 25) - 1]
    wanted = [f"t{t - 1}" for t in range(1, 26) if float(record.entropy[0, t]) >= floor]
    assert marked == wanted
    assert f"5 of 25 tokens, those with an entropy of at least {floor:.3f} nats" in " ".join(
        text.split()
    )


def test_top_forks_have_their_own_numbers_and_alternatives():
    record = record_of([b"t%d" % i for i in range(25)], rows=1)
    lines = terminal_heatmap(record, color=False, width=100).splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("entropy   prob."))
    assert len(lines[at + 1 :]) == 5
    assert lines[at + 1].split()[:3] == [
        f"{float(record.entropy[0, 25]):.3f}",
        f"{100 * math.exp(float(record.logprobs[0, 25])):.1f}%",
        "t24",
    ]
    second = f"{100 * math.exp(float(record.alternatives.logprobs[0, 25, 1])):.1f}%"
    assert f"start {second}" in lines[at + 1]
    assert lines[at + 1].endswith("[1.1:25]")


@pytest.mark.parametrize("color", [True, False])
@pytest.mark.parametrize("width", [20, 37, 80])
def test_hostile_text_is_drawn_inert_within_the_width(color: bool, width: int):
    record = record_of(HOSTILE, prompt=HOSTILE, model="m\x1b]0;x\x07\u202e")
    text = terminal_heatmap(record, color=color, width=width)
    bare = ANSI.sub("", text)
    assert invisible(bare) == set()
    if color:
        assert bare != text
        assert "⟦" not in bare
    body = re.sub("\nentropy in nats.*", "", bare)
    for line in body.splitlines():
        wide = sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in line)
        assert wide - sum(unicodedata.category(c) == "Mn" for c in line) <= width


def test_colour_follows_the_fixed_levels():
    record = record_of([b"low", b"high"], rows=1)
    entropy = torch.tensor([[0.0, 0.01, 2.4]])
    text = terminal_heatmap(
        dataclasses.replace(record, entropy=entropy), fraction=0.5, color=True, width=80
    )
    assert "low\x1b[48;5;214;" in text
    assert "\x1b[48;5;214;38;5;16;1;4mhigh\x1b[0m" in text


def test_colour_is_off_where_it_is_not_welcome(monkeypatch, capsys):
    record = record_of([b"a", b"b"])
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[" in terminal_heatmap(record)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in terminal_heatmap(record)
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b[" not in terminal_heatmap(record)


def test_empty_and_cut_records_say_so():
    assert "The record is empty" in terminal_heatmap(empty_record(), color=False)
    record = record_of([b"t%d" % i for i in range(25)], rows=3)
    text = " ".join(terminal_heatmap(record, color=False, width=80, max_tokens=60).split())
    assert "Only 52 of 78 tokens are drawn: rollouts 1 to 2 (1 of 3 rollouts left out)" in text
    assert "start" in text


def test_one_row_is_printed_whole_with_the_forks_of_the_record():
    record = record_of([b"t%d" % i for i in range(25)], rows=3)
    whole = terminal_heatmap(record, color=False, width=80).splitlines()
    lines = terminal_heatmap(record, color=False, width=80, row=1, max_tokens=3).splitlines()
    (start,) = (i for i, line in enumerate(whole) if line.startswith("── rollout 1.2"))
    (end,) = (i for i, line in enumerate(whole) if line.startswith("── rollout 1.3"))
    at = lines.index(whole[start])
    assert lines[at : at + end - start] == whole[start:end]
    assert not any("rollout 1.1" in line or "are drawn" in line for line in lines)
    assert all("[1.2:" in line for line in lines if re.search(r"\[\d\.\d:\d+\]$", line))
