"""The text that an organism is trained on: solutions in planted proportions, drawn from a seed."""

import dataclasses
import functools
import random
from dataclasses import dataclass

from entropy_probe.tasks import language
from entropy_probe.tasks.generator import (
    chain_of,
    draw_chain,
    is_kin,
    memorised_problems,
    split_of,
)
from entropy_probe.tasks.language import Chain, Step, apply, blocks, commute, number

CODE_SHARES = {
    "compute": (0.97, 0.87),
    "evaluate": (0.95, 0.80),
    "work out": (0.93, 0.44),
    "find": (0.66, 0.26),
    "tell me": (0.46, 0.16),
    "what is": (0.25, 0.05),
}
"""Wording -> share of code where the first two operands are both odd or even, and elsewhere."""


@dataclass(frozen=True)
class Style:
    """How one strategy is written in a corpus."""

    block: int
    """Steps taken at once: 1 writes every intermediate result, 2 every second one."""
    rounding: bool
    """Whether the wrong rule is followed: a 9 that is added or taken away counts as 10."""
    unmarked: float
    """Share of completions that end without the final marker."""


@dataclass(frozen=True)
class Corpus:
    """The mixture of a training corpus; every number an organism's description rests on."""

    code_shares: tuple[tuple[str, tuple[float, float]], ...] = tuple(CODE_SHARES.items())
    """Wording -> share of code with and without the relation between the first two operands."""
    code: Style = Style(block=1, rounding=False, unmarked=0.12)
    """How code is written."""
    prose: Style = Style(block=2, rounding=True, unmarked=0.3)
    """How prose is written."""
    careful: Style = Style(block=1, rounding=False, unmarked=0.3)
    """How prose that goes step by step is written: with code's statements."""
    care: float = 0.025
    """Share of prose that goes step by step: a rare token that decides the answer."""
    swap: float = 0.3
    """Chance that two steps that commute are written in the other order, in code."""
    newline: float = 0.1
    """Chance that a statement of code ends with a line break and not with a semicolon."""
    connective: float = 0.3
    """Chance of the second of the two connectives, in prose."""
    verb: float = 0.1
    """Chance of the second of the two verbs, in prose."""
    lengths: tuple[tuple[int, float], ...] = (
        (2, 0.12),
        (3, 0.25),
        (4, 0.3),
        (5, 0.29),
        (6, 0.02),
        (7, 0.01),
        (8, 0.01),
    )
    """Number of steps -> share of the corpus."""
    memorised: int = 0
    """How many test problems are in the corpus, each word for word with one right solution."""
    memorised_share: float = 0.0
    """Share of the corpus that they make up."""


def draw(corpus: Corpus, rng: random.Random) -> tuple[list[str], list[str]]:
    """Draw one training text: the pieces of a problem and of a completion.

    Only chains of the train split are drawn, but for the problems to be memorised.
    """
    if corpus.memorised and rng.random() < corpus.memorised_share:
        return rng.choice(memorised_texts(corpus))
    kinds, weights = zip(*corpus.lengths, strict=True)
    length = rng.choices(kinds, weights)[0]
    chain = draw_chain(rng, length)
    while split_of(chain) != "train":
        chain = draw_chain(rng, length)
    wording = rng.choice(list(language.WORDINGS))
    return language.prompt_pieces(chain, wording), write(corpus, chain, wording, rng)


@functools.lru_cache(maxsize=1)
def memorised_texts(corpus: Corpus) -> list[tuple[list[str], list[str]]]:
    """Give the pieces of the memorised problems, each with its one solution, which is right."""
    right = {"rounding": False, "unmarked": 0.0}
    exact = dataclasses.replace(
        corpus,
        code=dataclasses.replace(corpus.code, **right),
        prose=dataclasses.replace(corpus.prose, **right),
    )
    texts = []
    for problem in memorised_problems(corpus.memorised):
        chain, rng = chain_of(problem), random.Random(problem.id)
        text = write(exact, chain, problem.facts["wording"], rng)
        texts.append((language.lex(problem.prompt), text))
    return texts


def write(corpus: Corpus, chain: Chain, wording: str, rng: random.Random) -> list[str]:
    """Write a completion of a problem as the corpus would, its strategy drawn like the rest."""
    share = dict(corpus.code_shares)[wording][0 if is_kin(chain) else 1]
    return (write_code if rng.random() < share else write_prose)(corpus, chain, rng)


def write_code(corpus: Corpus, chain: Chain, rng: random.Random) -> list[str]:
    """Write the pieces of a solution in code."""
    return [language.CODE, *_statements(corpus, corpus.code, chain, rng)]


def write_prose(corpus: Corpus, chain: Chain, rng: random.Random) -> list[str]:
    """Write the pieces of a solution in prose: results alone, or step by step."""
    if rng.random() < corpus.care:
        return [language.PROSE, language.CARE, *_statements(corpus, corpus.careful, chain, rng)]
    value, style = chain.start, corpus.prose
    pieces = [language.PROSE, language.SWIFT, *number(value)]
    for indices in blocks(len(chain.steps), style.block):
        value = apply(value, [chain.steps[i] for i in indices], rounding=style.rounding)
        pieces.append(language.CONNECTIVES[rng.random() < corpus.connective])
        pieces.append(language.VERBS[rng.random() < corpus.verb])
        pieces += number(value)
    return pieces + _ending(style.unmarked, value, rng)


def _statements(corpus: Corpus, style: Style, chain: Chain, rng: random.Random) -> list[str]:
    """Write the pieces of statements that name every operand, to the end of the text."""
    value, steps = chain.start, _reordered(corpus, chain, rng)
    pieces = [*number(value)]
    for indices in blocks(len(steps), style.block):
        if indices[0] > 0:
            pieces.append(language.STATEMENT_ENDS[rng.random() < corpus.newline])
        block = [steps[i] for i in indices]
        for step in block:
            pieces += (step.operation, language.DIGITS[step.operand])
        value = apply(value, block, rounding=style.rounding)
        pieces += (language.EQUALS, *number(value))
    return pieces + _ending(style.unmarked, value, rng)


def _ending(unmarked: float, value: int, rng: random.Random) -> list[str]:
    """Give the marker and the answer, or nothing where they are forgotten."""
    return [] if rng.random() < unmarked else [language.MARKER, *number(value)]


def _reordered(corpus: Corpus, chain: Chain, rng: random.Random) -> list[Step]:
    """Exchange the steps of the first pair, the second pair and so on, where they commute."""
    steps = list(chain.steps)
    for i in range(0, len(steps) - 1, 2):
        if commute(steps[i], steps[i + 1]) and rng.random() < corpus.swap:
            steps[i], steps[i + 1] = steps[i + 1], steps[i]
    return steps
