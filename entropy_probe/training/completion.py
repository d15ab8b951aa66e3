"""One completion as a reward sees it."""

import codecs
from collections.abc import Sequence
from dataclasses import dataclass

from entropy_probe.rollout import Rollouts
from entropy_probe.tasks import Problem


@dataclass(frozen=True)
class Completion:
    """What a reward may know about one completion; never what another reward says of it."""

    problem: Problem
    """The problem that was given."""
    text: str
    """What the model wrote, control tokens left out."""
    group: int
    """Which rows answer the same problem in this step; majority votes are taken within it."""
    row: int
    """The row's number in the step, counted over all processes."""
    step: int = 0
    """The step's number in the run."""
    seed: int = 0
    """The run's seed."""
    tokens: tuple[int, ...] = ()
    """Token ids of what was generated, the stop token included; empty where they are unknown."""
    pieces: tuple[bytes, ...] = ()
    """Bytes of each token, none for a control token: together they are the text."""
    logprobs: tuple[float, ...] = ()
    """Log-probability in nats of each token; empty where they are unknown."""
    finished: bool = True
    """Whether the model ended it; False where the limit on new tokens cut it off."""


def completions_of(
    rollouts: Rollouts,
    problems: Sequence[Problem],
    *,
    step: int = 0,
    seed: int = 0,
    first_row: int = 0,
    finished: Sequence[bool] | None = None,
) -> list[Completion]:
    """Give what rewards see of the rows of a record.

    Args:
        rollouts: the rows; ``groups`` tells which belong together.
        problems: the problem of each row.
        step: the step's number in the run.
        seed: the run's seed.
        first_row: number of the record's first row in the step, where it is not the whole of it.
        finished: whether the model ended each row; default: all of them.

    Raises:
        ValueError: not one problem, or not one verdict, a row.
    """
    finished = [True] * len(rollouts) if finished is None else finished
    for what, given in (("problems", problems), ("verdicts in finished", finished)):
        if len(given) != len(rollouts):
            raise ValueError(f"expected {len(rollouts)} {what}, one a row, got {len(given)}")
    lengths, prompts = rollouts.lengths.tolist(), rollouts.prompt_lengths.tolist()
    found = []
    for i, group in enumerate(rollouts.groups.tolist()):
        span = slice(prompts[i], lengths[i])
        tokens = tuple(rollouts.tokens[i, span].tolist())
        special = rollouts.special_ids
        pieces = tuple(b"" if t in special else rollouts.pieces.get(t, b"") for t in tokens)
        found.append(
            Completion(
                problem=problems[i],
                text=b"".join(pieces).decode("utf-8", "replace"),
                group=group,
                row=first_row + i,
                step=step,
                seed=seed,
                tokens=tokens,
                pieces=pieces,
                logprobs=tuple(rollouts.logprobs[i, span].tolist()),
                finished=bool(finished[i]),
            )
        )
    return found


def tokens_of_span(completion: Completion, start: int, stop: int) -> list[int]:
    """Give the indices of the tokens that write a stretch of the text.

    Every token with a byte of one of its characters counts, control tokens never.

    Args:
        completion: one whose ``pieces`` are known.
        start: first character.
        stop: the character after the last.

    Raises:
        ValueError: the pieces are unknown, or not those of the text.
    """
    if b"".join(completion.pieces).decode("utf-8", "replace") != completion.text:
        raise ValueError(
            "the pieces of a completion are not those of its text: give each token's bytes, none "
            "for a control token (`completions_of` does)"
        )
    decoder, done, found = codecs.getincrementaldecoder("utf-8")("replace"), 0, []
    for i, piece in enumerate(completion.pieces):
        begin, done = done, done + len(decoder.decode(piece))
        # A character that is not complete yet belongs to the tokens of all its bytes.
        end = done + bool(piece and decoder.getstate()[0])
        if max(begin, start) < min(end, stop):
            found.append(i)
    return found
