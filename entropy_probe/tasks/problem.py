"""A problem with an answer, and what a task is: problems, and a verdict on a completion."""

from collections.abc import Mapping
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
