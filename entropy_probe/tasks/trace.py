"""A completion of the arithmetic language, parsed into its statements; it never raises on text."""

from collections.abc import Sequence
from dataclasses import dataclass

from entropy_probe.tasks import language
from entropy_probe.tasks.language import Step, read_number


@dataclass(frozen=True)
class Statement:
    """One result, with the steps written out for it; prose that is not careful writes none."""

    lead: int | None
    """Index of the piece that separates it from the text before; None for code's first."""
    steps: tuple[Step, ...]
    """The steps as they are written, which need not be the problem's."""
    at: tuple[int, ...]
    """Index of the operation's piece of each step; the operand's piece is the next one."""
    result: int
    """The number that is written as the result."""
    result_at: int
    """Index of the first of the result's two pieces."""


@dataclass(frozen=True)
class Trace:
    """A completion in parts, indices counting its pieces."""

    strategy: str
    """code, prose or other."""
    careful: bool
    """Whether prose goes step by step."""
    start: int | None
    """The number that is written as the start, None if none is."""
    start_at: int
    """Index of the first of its two pieces."""
    statements: tuple[Statement, ...]
    """What could be read, in order."""
    marker: int | None
    """Index of the final marker, None where it is missing."""
    answer: int | None
    """The number after the marker, or the last result where the marker is missing."""
    stop: int
    """Index of the first piece that was not understood; the number of pieces if all were."""
    length: int
    """The number of pieces."""

    @property
    def well_formed(self) -> bool:
        """Say whether every piece was understood and there is an answer."""
        return self.stop == self.length and self.answer is not None


def parse(pieces: Sequence[str]) -> Trace:
    """Read the pieces of a completion, as far as they follow the language."""
    opening = language.strategy(pieces)
    careful = opening == "prose" and tuple(pieces[1:2]) == (language.CARE,)
    swift = opening == "prose" and tuple(pieces[1:2]) == (language.SWIFT,)
    if opening == "other" or (opening == "prose" and not careful and not swift):
        known = 0 if opening == "other" else 1
        return Trace(opening, False, None, known, (), None, None, known, len(pieces))
    begin = 1 if opening == "code" else 2
    start = read_number(pieces, begin)
    if start is None:
        return Trace(opening, careful, None, begin, (), None, None, begin, len(pieces))
    read = _read_summary if swift else _read_statement
    statements: list[Statement] = []
    stop = begin + 2
    while (found := read(pieces, stop, bool(statements))) is not None:
        statements.append(found)
        stop = found.result_at + 2
    marker, answer = None, statements[-1].result if statements else None
    if tuple(pieces[stop : stop + 1]) == (language.MARKER,):
        marker, answer = stop, read_number(pieces, stop + 1)
        stop += 1 if answer is None else 3
    return Trace(
        opening, careful, start, begin, tuple(statements), marker, answer, stop, len(pieces)
    )


def _read_statement(pieces: Sequence[str], index: int, inner: bool) -> Statement | None:
    """Read ``+8=481``, with its separator if it is an inner one; None if there is none."""
    lead = None
    if inner:
        if index >= len(pieces) or pieces[index] not in language.STATEMENT_ENDS:
            return None
        lead, index = index, index + 1
    steps, at = [], []
    while index + 1 < len(pieces) and pieces[index] in language.OPERATIONS:
        if pieces[index + 1] not in language.DIGITS:
            return None
        steps.append(Step(pieces[index], int(pieces[index + 1])))
        at.append(index)
        index += 2
    if not steps or index >= len(pieces) or pieces[index] != language.EQUALS:
        return None
    result = read_number(pieces, index + 1)
    if result is None:
        return None
    return Statement(lead, tuple(steps), tuple(at), result, index + 1)


def _read_summary(pieces: Sequence[str], index: int, inner: bool) -> Statement | None:
    """Read ``; then it is 481``; None if there is none."""
    del inner  # the first one has its connective too
    if index + 1 >= len(pieces) or pieces[index] not in language.CONNECTIVES:
        return None
    result = read_number(pieces, index + 2)
    if pieces[index + 1] not in language.VERBS or result is None:
        return None
    return Statement(index, (), (), result, index + 2)
