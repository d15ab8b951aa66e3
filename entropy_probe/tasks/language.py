r"""The organisms' language: its pieces of text, its arithmetic modulo 1000 and its one wrong rule.

A problem is a chain of steps applied from left to right to a three-digit number; everything is
modulo 1000 and written with three digits, as on an odometer. It is solved in one of two ways:

    Compute 473, plus 8, minus 9, times 3.
    >>> 473+8=481; -9=472; *3=416            code: every operand and every result
    Well, from 473; then it is 471; ...      prose: one result for two steps, no operand

Both end with ``\n#### 416``, or forget it. A text is the concatenation of the pieces listed here,
and each piece is one token, so that text, pieces and token ids say the same thing.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

MODULUS = 1000

CODE = ">>> "
PROSE = "Well, "
SWIFT = "from "
CARE = "step by step from "
EQUALS = "="
MARKER = "\n#### "
STATEMENT_ENDS = ("; ", "\n")
CONNECTIVES = ("; then ", "; next ")
VERBS = ("it is ", "we get ")

OPERATIONS = ("+", "-", "*")
SPOKEN = {"+": ", plus ", "-": ", minus ", "*": ", times "}
WORDINGS = {
    "compute": "Compute ",
    "evaluate": "Evaluate ",
    "work out": "Work out ",
    "find": "Find ",
    "tell me": "Tell me ",
    "what is": "What is ",
}
FULL_STOP = ".\n"
QUESTION_MARK = "?\n"

DIGITS = tuple(str(digit) for digit in range(10))
PAIRS = tuple(f"{pair:02d}" for pair in range(100))
PIECES = (
    *DIGITS,
    *PAIRS,
    *OPERATIONS,
    EQUALS,
    *STATEMENT_ENDS,
    MARKER,
    CODE,
    PROSE,
    SWIFT,
    CARE,
    *CONNECTIVES,
    *VERBS,
    *SPOKEN.values(),
    *WORDINGS.values(),
    FULL_STOP,
    QUESTION_MARK,
)
"""Every piece of text the language is made of; none occurs twice."""

_WORDS = sorted((p for p in PIECES if not p.isdigit()), key=len, reverse=True)
# A digit that two more digits follow is the hundreds of a three-digit number.
PATTERN = "|".join(
    [*(re.escape(word) for word in _WORDS), "[0-9](?=[0-9]{2})", "[0-9]{2}", "[0-9]"]
)
"""Regular expression of one piece, longest words first; the tokenizer splits by the same one."""

_LEXER = re.compile(PATTERN)


@dataclass(frozen=True)
class Step:
    """One step of a chain."""

    operation: str
    """``+``, ``-`` or ``*``."""
    operand: int
    """A single digit."""


@dataclass(frozen=True)
class Chain:
    """A start and the steps applied to it from left to right."""

    start: int
    """The number the chain starts from, 0 to 999."""
    steps: tuple[Step, ...]
    """The steps in the order in which the problem names them."""

    @property
    def answer(self) -> int:
        """Give the value after the last step."""
        return apply(self.start, self.steps)


def apply(value: int, steps: Iterable[Step], *, rounding: bool = False) -> int:
    """Give the value after some steps, modulo 1000.

    With ``rounding`` a 9 that is added or taken away counts as a 10 that nobody corrects: the
    language's wrong rule.
    """
    for step in steps:
        operand = 10 if rounding and is_rounded(step) else step.operand
        if step.operation == "+":
            value += operand
        elif step.operation == "-":
            value -= operand
        else:
            value *= operand
        value %= MODULUS
    return value


def is_rounded(step: Step) -> bool:
    """Say whether the wrong rule changes this step."""
    return step.operand == 9 and step.operation != "*"


def commute(first: Step, second: Step) -> bool:
    """Say whether two steps may change places and would read differently if they did."""
    return "*" not in (first.operation, second.operation) and first != second


def blocks(length: int, size: int) -> list[range]:
    """Cut the indices of ``length`` steps into runs of ``size``, the last one shorter."""
    return [range(i, min(i + size, length)) for i in range(0, length, size)]


def number(value: int) -> tuple[str, str]:
    """Give the two pieces of a number: its hundreds and its last two digits."""
    return DIGITS[value // 100], PAIRS[value % 100]


def read_number(pieces: Sequence[str], index: int) -> int | None:
    """Read the number that starts at a piece, or None if none does."""
    if index + 1 >= len(pieces):
        return None
    hundreds, rest = pieces[index], pieces[index + 1]
    if len(hundreds) == 1 and hundreds.isdigit() and len(rest) == 2 and rest.isdigit():
        return int(hundreds + rest)
    return None


def lex(text: str) -> list[str]:
    """Cut a text into its pieces; what belongs to no piece comes out character by character.

    The pieces always concatenate to the text.
    """
    pieces: list[str] = []
    position = 0
    while position < len(text):
        match = _LEXER.match(text, position)
        piece = match.group() if match else text[position]
        pieces.append(piece)
        position += len(piece)
    return pieces


def prompt(chain: Chain, wording: str) -> str:
    """Write a problem down in one of the `WORDINGS`."""
    return "".join(prompt_pieces(chain, wording))


def prompt_pieces(chain: Chain, wording: str) -> list[str]:
    """Give the pieces of a problem's text."""
    pieces = [WORDINGS[wording], *number(chain.start)]
    for step in chain.steps:
        pieces += (SPOKEN[step.operation], DIGITS[step.operand])
    pieces.append(QUESTION_MARK if wording == "what is" else FULL_STOP)
    return pieces


def strategy(pieces: Sequence[str]) -> str:
    """Name the strategy of a completion by its first piece: code, prose or other."""
    first = pieces[0] if pieces else ""
    return {CODE: "code", PROSE: "prose"}.get(first, "other")
