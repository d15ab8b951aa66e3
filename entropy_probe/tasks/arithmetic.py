"""The task of the organisms: a subset of the arithmetic problems with its verifier."""

from collections.abc import Sequence
from dataclasses import dataclass

from entropy_probe.tasks import labeller, language, verifier
from entropy_probe.tasks.generator import problems as draw_problems
from entropy_probe.tasks.problem import Problem


@dataclass(frozen=True)
class Arithmetic:
    """Chained arithmetic modulo 1000, one of its subsets."""

    subset: str = "default"
    """A name in `generator.SUBSETS`."""

    @property
    def name(self) -> str:
        """Give the name that `get_task` knows this task by."""
        return "arithmetic" if self.subset == "default" else f"arithmetic:{self.subset}"

    @property
    def marker(self) -> str:
        """Give what announces the final answer."""
        return language.MARKER

    @property
    def strategies(self) -> tuple[str, ...]:
        """Give the names of the ways to an answer."""
        return ("code", "prose", "other")

    def problems(self, limit: int, *, split: str = "test", seed: int = 0) -> list[Problem]:
        """Give ``limit`` distinct problems; a larger limit continues the same list.

        Raises:
            ValueError: an unknown split, or a limit below 1.
        """
        return draw_problems(self.subset, limit, split=split, seed=seed)

    def verify(self, problem: Problem, completion: str) -> float:
        """Give 1.0 if the completion's final answer is right, marked or not, else 0.0."""
        return verifier.verify(problem, completion)

    def answer_of(self, problem: Problem, completion: str) -> str | None:
        """Give the three digits of the final answer; None where the text does not end in one."""
        del problem  # the same rule for all
        return verifier.final_answer(completion)

    def accepts(self, problem: Problem, answer: str) -> bool:
        """Say whether three digits are the right answer."""
        return answer == problem.answer

    def answer_span(self, completion: str) -> tuple[int, int] | None:
        """Give where the final answer's digits stand; None where there is none."""
        answer = verifier.final_answer(completion)
        return None if answer is None else (len(completion) - len(answer), len(completion))

    def formatted(self, completion: str) -> bool:
        """Say whether the final answer is there and the marker announces it."""
        return verifier.marked(completion)

    def strategy(self, completion: str) -> str:
        """Name the way a completion takes: code, prose or other."""
        return language.strategy(language.lex(completion)[:1])

    @property
    def fork_roles(self) -> tuple[str, ...]:
        """Give the roles of the planted forks."""
        return tuple(labeller.FORKS)

    @property
    def decoy_roles(self) -> tuple[str, ...]:
        """Give the roles of choices that change nothing."""
        return tuple(labeller.DECOYS)

    def token_roles(
        self, problem: Problem, pieces: Sequence[str], *, ended: bool = True
    ) -> list[str]:
        """Give the role of each piece and, if the completion ended by itself, of its end token."""
        return [label.role for label in labeller.label(problem, pieces, ended=ended)]
