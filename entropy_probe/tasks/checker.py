"""Whether each step of a completion is valid, and if not, what kind of error it is.

A step is judged from the number written before it, so that one error does not make all that
follows invalid. Two steps of the first pair, the second pair and so on may change places where
they commute.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from entropy_probe.tasks.generator import chain_of
from entropy_probe.tasks.language import Step, apply, blocks, commute, number
from entropy_probe.tasks.problem import Problem
from entropy_probe.tasks.trace import Statement, Trace, parse

PROSE_BLOCK = 2

ERRORS = {
    "copy": "the start is not the problem's",
    "operand": "an operation or an operand is not the problem's",
    "rounding": "the result is the wrong rule's: a 9 that is added or taken away counts as 10",
    "arithmetic": "the result is wrong in another way",
    "extra": "a result after the problem's last step",
    "missing": "the text ends before the problem's last step",
    "answer": "the answer after the marker is not the last result",
    "format": "the text does not follow the language",
}
"""Kind of error -> what it means."""


@dataclass(frozen=True)
class Finding:
    """What the checker says of one part of a completion."""

    part: str
    """start, step, end or answer."""
    error: str | None
    """A key of `ERRORS`, None where the part is valid."""
    at: int
    """Index of the piece that is wrong, or of the part's last piece where nothing is."""


@dataclass(frozen=True)
class Report:
    """The verdict on a completion, part by part."""

    trace: Trace
    """The completion as it was parsed."""
    findings: tuple[Finding, ...]
    """One for the start, each step, the end and a marked answer, in the order of the text."""

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Give the findings that are errors."""
        return tuple(finding for finding in self.findings if finding.error)

    @property
    def valid(self) -> bool:
        """Say whether the completion is right from start to end."""
        return not self.errors


def check(problem: Problem, pieces: Sequence[str]) -> Report:
    """Judge the pieces of a completion, its end-of-text token left out."""
    chain, trace = chain_of(problem), parse(pieces)
    if trace.start is None:
        return Report(trace, (Finding("start", "format", trace.stop),))
    findings = [_number("start", "copy", trace.start, chain.start, trace.start_at)]
    value, taken = trace.start, 0
    orders = _Orders(chain.steps)
    for index, statement in enumerate(trace.statements):
        if statement.steps:
            findings.append(_written(statement, value, orders))
            taken += len(statement.steps)
        else:
            findings.append(_skipped(statement, value, chain.steps, index))
            taken += PROSE_BLOCK
        value = statement.result
    end = trace.stop if trace.marker is None else trace.marker
    if taken < len(chain.steps):
        cut_off = trace.marker is None and trace.stop < trace.length
        findings.append(Finding("end", "format" if cut_off else "missing", end))
    elif trace.stop < trace.length or trace.answer is None:
        findings.append(Finding("end", "format", trace.stop))
    else:
        findings.append(Finding("end", None, end))
    if trace.marker is not None and trace.answer is not None:
        findings.append(_number("answer", "answer", trace.answer, value, trace.marker + 1))
    return Report(trace, tuple(findings))


class _Orders:
    """Which step may come next, where steps of a pair may change places."""

    def __init__(self, steps: tuple[Step, ...]) -> None:
        self.steps, self.taken, self.swapped = steps, 0, False

    def take(self, step: Step) -> Step | None:
        """Move on by one step; give the one that is right here, None after the last.

        Where two are right, it is the given one if it is one of them.
        """
        place, self.taken = self.taken, self.taken + 1
        if place >= len(self.steps):
            return None
        if place % 2:
            return self.steps[place - 1 if self.swapped else place]
        self.swapped = may_swap(self.steps, place) and step == self.steps[place + 1]
        return self.steps[place + 1 if self.swapped else place]


def may_swap(steps: tuple[Step, ...], place: int) -> bool:
    """Say whether the step at an even place may change places with the next one."""
    return place + 1 < len(steps) and commute(steps[place], steps[place + 1])


def _written(statement: Statement, value: int, orders: _Orders) -> Finding:
    """Judge a statement that writes its steps out."""
    rights = [orders.take(step) for step in statement.steps]
    for step, right, at in zip(statement.steps, rights, statement.at, strict=True):
        if right is None:
            return Finding("step", "extra", at)
        if step != right:
            return Finding("step", "operand", at + (step.operation == right.operation))
    return _result(statement, value, statement.steps)


def _skipped(statement: Statement, value: int, steps: tuple[Step, ...], index: int) -> Finding:
    """Judge a result of prose, which stands for the next two steps of the problem."""
    every = blocks(len(steps), PROSE_BLOCK)
    if index >= len(every):
        return Finding("step", "extra", statement.lead)
    return _result(statement, value, [steps[i] for i in every[index]])


def _result(statement: Statement, value: int, steps: Sequence[Step]) -> Finding:
    """Judge a result by the steps that lead to it."""
    expected = apply(value, steps)
    rounded = statement.result == apply(value, steps, rounding=True)
    kind = "rounding" if rounded else "arithmetic"
    return _number("step", kind, statement.result, expected, statement.result_at)


def _number(part: str, kind: str, written: int, expected: int, at: int) -> Finding:
    """Judge a number of two pieces; an error is at the first piece that differs."""
    if written == expected:
        return Finding(part, None, at + 1)
    return Finding(part, kind, at + (number(written)[0] == number(expected)[0]))
