"""A problem with an answer, and what a task is: problems, and a verdict on a completion.

A task has to give problems and to verify completions. What some rewards ask for besides is
optional, and lies in protocols of its own: a task has a part by having its methods.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True)
class Problem:
    """One problem of a task."""

    prompt: str
    """The text that the model is given."""
    answer: str
    """The right final answer, as the task writes it."""
    id: str
    """A name that is the same wherever the same problem comes up."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What is known about the problem, as plain JSON values: wording, length, property."""


@runtime_checkable
class Task(Protocol):
    """A source of problems whose completions can be verified."""

    name: str
    """The name that `get_task` knows it by."""

    def problems(self, limit: int, *, split: str = "test", seed: int = 0) -> list[Problem]:
        """Give ``limit`` problems of a split; the same seed gives the same ones."""
        ...

    def verify(self, problem: Problem, completion: str) -> float:
        """Give 1.0 if the completion's final answer is right, else 0.0."""
        ...


@runtime_checkable
class ReadsAnswers(Protocol):
    """A task that says which answer a completion gives, whether it is right or wrong."""

    def answer_of(self, problem: Problem, completion: str) -> str | None:
        """Give the final answer, the same text for equal answers; None where there is none."""
        ...

    def accepts(self, problem: Problem, answer: str) -> bool:
        """Say whether an answer that `answer_of` gave is right."""
        ...


@runtime_checkable
class FindsAnswers(Protocol):
    """A task that says where in a completion its final answer stands."""

    def answer_span(self, completion: str) -> tuple[int, int] | None:
        """Give (start, stop) of the final answer in characters; None where there is none."""
        ...


@runtime_checkable
class HasFormat(Protocol):
    """A task that asks for a format of the final answer."""

    marker: str
    """What announces the final answer."""

    def formatted(self, completion: str) -> bool:
        """Say whether the final answer is there in that format, right or wrong."""
        ...


@runtime_checkable
class HasStrategies(Protocol):
    """A task whose completions take one of several known ways to the answer."""

    strategies: Sequence[str]
    """The names that `strategy` gives."""

    def strategy(self, completion: str) -> str:
        """Name the way that a completion takes."""
        ...


@runtime_checkable
class LabelsTokens(Protocol):
    """A task in whose completions it is known what each token is."""

    fork_roles: Sequence[str]
    """Roles of tokens that decide something: the planted forks."""
    decoy_roles: Sequence[str]
    """Roles of tokens that are as uncertain and change nothing."""

    def token_roles(
        self, problem: Problem, pieces: Sequence[str], *, ended: bool = True
    ) -> list[str]:
        """Give the role of each piece and, if the completion ended by itself, of its end token."""
        ...
