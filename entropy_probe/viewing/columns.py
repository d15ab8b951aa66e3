"""The numbers inside the page: one JSON block a strip of tokens, columns of fixed-width digits.

A column is one string of base-64 digits (``A-Z a-z 0-9 - _``, most significant first), ``width``
digits a value. A script reads value ``i`` of it without parsing the rest; 10,000 tokens with five
alternatives each take 0.4 MB whatever the numbers are. Nats are stored in thousandths.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from entropy_probe.rollout import Rollouts
from entropy_probe.viewing.marks import Marks
from entropy_probe.viewing.scales import LARGEST, thousandths
from entropy_probe.viewing.visible import SPACE, hex_bytes, visible

DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
VALID, FORK, CONTROL, CAPTURED, SPECIAL, PROMPT = (1 << bit for bit in range(6))

NUMBER_WIDTH = 3
"""Digits of an entropy, a log-probability or a rank: up to 262143."""
UNKNOWN_BYTES = "not known"
"""What stands for the bytes of an id that the record does not name."""
HIDDEN = "▒"
"""What stands for a prompt token that is not shown."""


@dataclass
class Pool:
    """The token strings that a page mentions, each once."""

    pieces: dict[int, bytes]
    """Token id -> bytes, as the record has them."""
    index: dict[int, int] = field(default_factory=dict)
    """Token id -> place in the pool."""

    def place(self, token: int) -> int:
        """Give a token's place, adding it on first use."""
        return self.index.setdefault(token, len(self.index))

    def piece(self, token: int) -> bytes:
        """Give a token's bytes; an id that the record does not name says so."""
        return self.pieces.get(token, f"<id {token}>".encode())

    def entries(self) -> list[Any]:
        """Give the pool: the visible text, with the bytes where they are not plain to see."""
        out: list[Any] = []
        for token in self.index:
            piece = self.piece(token)
            shown = visible(piece)
            if token not in self.pieces:
                out.append([shown, UNKNOWN_BYTES])
                continue
            plain = shown.replace(SPACE, " ").encode() == piece
            out.append(shown if plain else [shown, hex_bytes(piece)])
        return out

    @property
    def width(self) -> int:
        """Count the digits of a place."""
        return next(w for w in (2, 3, 4, 5) if len(self.index) < 64**w)


@dataclass(frozen=True)
class Strip:
    """A run of one row's tokens that is drawn together: a rollout, or its prompt alone."""

    row: int
    """Row of the record."""
    start: int
    """Position of the first token drawn."""
    stop: int
    """Position after the last one."""
    flags: np.ndarray
    """Per token: valid, fork, control, captured, special, prompt (bits)."""
    entropy: np.ndarray
    """Thousandths of nats; 0 where not valid."""
    logprobs: np.ndarray
    """Thousandths of nats, negated."""
    ranks: np.ndarray
    """Tokens that were more probable."""


def cut_strip(rollouts: Rollouts, marks: Marks, row: int, start: int, stop: int) -> Strip:
    """Take the tokens start to stop of a row out of the record."""
    span = slice(start, stop)
    special = np.isin(rollouts.tokens[row, span].numpy(), sorted(rollouts.special_ids))
    flags = (
        rollouts.valid[row, span].numpy() * VALID
        + marks.forks[row, span].numpy() * FORK
        + rollouts.controls[row, span].numpy() * CONTROL
        + rollouts.captured[row, span].numpy() * CAPTURED
        + special * SPECIAL
        + (np.arange(start, stop) < int(rollouts.prompt_lengths[row])) * PROMPT
    )
    valid = (flags & VALID) > 0
    ranks = rollouts.ranks[row, span].numpy()
    return Strip(
        row,
        start,
        stop,
        flags,
        np.where(valid, thousandths(rollouts.entropy[row, span].numpy()), 0),
        np.where(valid, thousandths(rollouts.logprobs[row, span].numpy(), negate=True), 0),
        # A rank that is not known is the largest number, which the page calls unknown.
        np.where(valid, np.where(ranks < 0, LARGEST, ranks.clip(0, LARGEST)), 0),
    )


def strip_data(rollouts: Rollouts, strip: Strip, pool: Pool, *, redact: bool) -> dict[str, Any]:
    """Give the JSON block of a strip; with ``redact`` nothing in it tells of prompt tokens."""
    hidden = redact * (strip.flags & PROMPT)
    tokens = rollouts.tokens[strip.row, strip.start : strip.stop].tolist()
    shown = [0 if h else 1 + pool.place(t) for t, h in zip(tokens, hidden, strict=True)]
    has = ((strip.flags & VALID) > 0) & (hidden == 0)
    first, last = (int(has.argmax()), len(has) - int(has[::-1].argmax())) if has.any() else (0, 0)
    span = slice(strip.start + first, strip.start + last)
    ids = rollouts.alternatives.ids[strip.row, span].tolist()
    places = [
        [1 + pool.place(t) if ok and t >= 0 else 0 for t in line]
        for line, ok in zip(ids, has[first:last], strict=True)
    ]
    numbers = thousandths(rollouts.alternatives.logprobs[strip.row, span].numpy(), negate=True)
    return {
        "row": strip.row,
        "start": strip.start,
        "first": first,
        "k": rollouts.alternatives.ids.shape[2],
        "flags": pack(strip.flags, 1),
        "token": shown,
        "entropy": pack(strip.entropy[first:last], NUMBER_WIDTH),
        "logprob": pack(strip.logprobs[first:last], NUMBER_WIDTH),
        "rank": pack(strip.ranks[first:last], NUMBER_WIDTH),
        "other": places,
        "others": pack(numbers.reshape(-1), NUMBER_WIDTH),
    }


def finish(data: dict[str, Any], width: int) -> dict[str, Any]:
    """Pack a block's places in the pool, once the pool is complete and its width known."""
    flat = [place for line in data["other"] for place in line]
    return data | {"token": pack(data["token"], width), "other": pack(flat, width)}


def pack(values: Sequence[int] | np.ndarray, width: int) -> str:
    """Write non-negative integers as fixed-width base-64 digits."""
    array = np.asarray(values, dtype=np.int64)
    if array.size and (array.min() < 0 or array.max() >= 64**width):
        raise ValueError(
            f"expected values from 0 to {64**width - 1} for {width} digits, got "
            f"{array.min()} to {array.max()}; clip them first"
        )
    table = np.frombuffer(DIGITS.encode(), dtype=np.uint8)
    shifts = 64 ** np.arange(width - 1, -1, -1)
    return table[(array.reshape(-1, 1) // shifts) % 64].tobytes().decode()


def script_json(value: Any) -> str:
    """Give JSON that cannot end a script element, whatever text is inside."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    unsafe = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028"}
    for char, escaped in (unsafe | {"\u2029": "\\u2029"}).items():
        text = text.replace(char, escaped)
    return text
