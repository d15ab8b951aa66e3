"""What a reader of another tool's file gives: rows of tokens with numbers, or of text alone."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from entropy_probe.rollout import Alternatives, Provenance, Rollouts
from entropy_probe.storage.errors import RunError

UNKNOWN_RANK = -1
"""Rank of a token where the file does not tell."""


@dataclass(frozen=True)
class TokenRow:
    """A prompt and completion, token by token."""

    tokens: Sequence[int]
    """Token ids, prompt first."""
    prompt_length: int
    """Tokens of the prompt, one or more."""
    group: int
    """Which prompt the row belongs to."""
    known: Mapping[int, "Numbers"]
    """Position -> what is known of the distribution that produced its token."""
    reward: float | None = None
    """Reward, where there is one."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else the file says of the row, as plain JSON values."""


@dataclass(frozen=True)
class Numbers:
    """What is known of the distribution that produced a token."""

    entropy: float
    """Nats."""
    logprob: float
    """Of the token itself, in nats."""
    rank: int = UNKNOWN_RANK
    """Tokens that were more probable."""
    alternatives: Sequence[tuple[int, float]] = ()
    """Id and log-probability of the most probable tokens, best first."""


@dataclass(frozen=True)
class TextRow:
    """A prompt and completion of which only the texts are known."""

    prompt: str
    """The prompt, messages written out."""
    completion: str
    """The completion, messages written out."""
    group: int
    """Which prompt the row belongs to."""
    reward: float | None = None
    """Reward, where there is one."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else the file says of the row, as plain JSON values."""


@dataclass(frozen=True)
class Imported:
    """All that was read from a file."""

    rows: Iterable[TokenRow] | Iterable[TextRow]
    """The rows, possibly read while they are asked for."""
    provenance: Provenance
    """Where the numbers come from."""
    alternatives: int = 0
    """Most alternatives that a position holds."""
    rewarded: bool = False
    """Whether any row may have a reward."""
    pieces: Mapping[int, bytes] = field(default_factory=dict)
    """Bytes of token ids, as far as known; it may grow while rows are read."""
    special_ids: frozenset[int] = frozenset()
    """Ids that are control tokens, not text."""
    skipped: int = 0
    """What the file holds besides the rows: errors, and answers without a number."""


def left_out(skipped: int, rows: int) -> str:
    """Say how much of a file became no row; nothing where all of it did."""
    if not skipped:
        return ""
    return f"{skipped:,} of {skipped + rows:,} left out: errors, or without numbers per token"


def named(files: Sequence[Path]) -> str:
    """Name the first of some files, with its folder, and say how many more there are."""
    first, more = files[0], len(files) - 1
    return f"{first.parent.resolve().name}/{first.name}" + (f" and {more} more" if more else "")


def unreadable(path: object, why: str, fix: str = "") -> RunError:
    """Give the error of a file that is not what it should be."""
    fix = fix or "pass --format if it is another tool's, or export the file again"
    return RunError(f"{str(path)!r} cannot be imported", why, fix)


def record_of(rows: Sequence[TokenRow], source: Imported) -> Rollouts:
    """Give rows as a record."""
    shape = len(rows), max(len(row.tokens) for row in rows)
    tokens, ranks = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.int32)
    valid = torch.zeros(shape, dtype=torch.bool)
    entropy, logprobs = torch.zeros(shape), torch.zeros(shape)
    ids = torch.zeros(*shape, source.alternatives, dtype=torch.int32)
    others = torch.zeros(*shape, source.alternatives)
    for i, row in enumerate(rows):
        tokens[i, : len(row.tokens)] = torch.tensor(row.tokens, dtype=torch.long)
        for t, numbers in row.known.items():
            valid[i, t] = True
            entropy[i, t], logprobs[i, t] = numbers.entropy, numbers.logprob
            ranks[i, t] = numbers.rank
            ids[i, t], others[i, t] = -1, -math.inf
            for j, (token, logprob) in enumerate(numbers.alternatives):
                ids[i, t, j], others[i, t, j] = token, logprob
    rewards = torch.tensor([math.nan if row.reward is None else row.reward for row in rows])
    seen = {*tokens.unique().tolist(), *ids.unique().tolist()}
    return Rollouts(
        tokens=tokens,
        valid=valid,
        prompt_lengths=torch.tensor([row.prompt_length for row in rows]),
        groups=torch.tensor([row.group for row in rows]),
        entropy=entropy,
        logprobs=logprobs,
        ranks=ranks,
        alternatives=Alternatives(ids, others),
        provenance=source.provenance,
        captured=torch.zeros(shape, dtype=torch.bool),
        controls=torch.zeros(shape, dtype=torch.bool),
        rewards=rewards if source.rewarded else None,
        pieces={i: source.pieces[i] for i in seen if i in source.pieces},
        special_ids=source.special_ids & seen,
    )
