"""What each token of a completion is: planted fork, decoy, result, or bound by what precedes it."""

from collections.abc import Sequence
from dataclasses import dataclass

from entropy_probe.tasks import language
from entropy_probe.tasks.checker import Report, check, may_swap
from entropy_probe.tasks.generator import chain_of
from entropy_probe.tasks.language import Step
from entropy_probe.tasks.problem import Problem

FORKS = {
    "strategy": "code or prose: decides whether the answer is probably right; uncertain",
    "care": "results alone or step by step, in prose: decides as much, and is nearly certain",
    "marker": "the final marker or the end of the text: decides the format, not the answer",
}
"""The planted forks."""

DECOYS = {
    "synonym": "one of two words for the same, in prose",
    "layout": "a semicolon or a line break, in code",
    "order": "which of two steps that commute is written first, in code",
}
"""Choices that are as uncertain and change nothing."""

OTHERS = {
    "result": "a number that has to be worked out",
    "copy": "a number that stands in the text already",
    "bound": "a token that the text before it decides",
    "unknown": "a token that the language does not explain",
}
"""Tokens that are no choice."""

ROLES = (*FORKS, *DECOYS, *OTHERS)


@dataclass(frozen=True)
class Label:
    """What one token is."""

    role: str
    """A key of `FORKS`, `DECOYS` or `OTHERS`."""
    error: str | None
    """A key of `checker.ERRORS` if this is the token where an error happens."""


def label(problem: Problem, pieces: Sequence[str], *, ended: bool = True) -> list[Label]:
    """Give one label a piece and, if the completion ended by itself, one for its end token.

    Args:
        problem: the problem that the completion answers.
        pieces: the completion's pieces, its end-of-text token left out.
        ended: whether that token was there.
    """
    report = check(problem, pieces)
    roles = _roles(report, chain_of(problem).steps)
    errors = {finding.at: finding.error for finding in report.errors}
    count = len(pieces) + ended
    return [Label(roles.get(i, "unknown"), errors.get(i)) for i in range(count)]


def _roles(report: Report, steps: tuple[Step, ...]) -> dict[int, str]:
    """Give index -> role of everything that was parsed, the end token included."""
    trace = report.trace
    if trace.strategy == "other":
        return {}
    roles = {0: "strategy"}
    if trace.strategy == "prose" and trace.start_at > 1:
        roles[1] = "care"
    if trace.start is not None:
        roles |= dict.fromkeys((trace.start_at, trace.start_at + 1), "copy")
    place = 0
    for statement in trace.statements:
        roles |= dict.fromkeys((statement.result_at, statement.result_at + 1), "result")
        roles[statement.result_at - 1] = "bound" if statement.steps else "synonym"
        if statement.lead is not None:
            roles[statement.lead] = "layout" if statement.steps else "synonym"
        for at in statement.at:
            roles |= _step_roles(steps, place, at)
            place += 1
    complete = not any(f.part == "end" and f.error for f in report.findings)
    end = trace.stop if trace.marker is None else trace.marker
    if complete:
        roles[end] = "marker"
    if trace.marker is not None:
        roles.setdefault(end, "bound")
        roles |= dict.fromkeys((end + 1, end + 2), "copy")
        roles[end + 3] = "bound"
    return roles


def _step_roles(steps: tuple[Step, ...], place: int, at: int) -> dict[int, str]:
    """Give the roles of an operation and its operand: where the order is free, one is a decoy."""
    roles = {at: "bound", at + 1: "bound"}
    if place % 2 == 0 and may_swap(steps, place):
        same = steps[place].operation == steps[place + 1].operation
        roles[at + same] = "order"
    return roles


def opening(pieces: Sequence[str]) -> str:
    """Name a completion's way to the answer: code, careful, prose or other."""
    if language.strategy(pieces) == "prose" and tuple(pieces[1:2]) == (language.CARE,):
        return "careful"
    return language.strategy(pieces)
