"""The task of the organisms: a subset of the arithmetic problems with its verifier."""

from dataclasses import dataclass

from entropy_probe.tasks.generator import problems as draw_problems
from entropy_probe.tasks.problem import Problem
from entropy_probe.tasks.verifier import verify as verify_answer


@dataclass(frozen=True)
class Arithmetic:
    """Chained arithmetic modulo 1000, one of its subsets."""

    subset: str = "default"
    """A name in `generator.SUBSETS`."""

    @property
    def name(self) -> str:
        """Give the name that `get_task` knows this task by."""
        return "arithmetic" if self.subset == "default" else f"arithmetic:{self.subset}"

    def problems(self, limit: int, *, split: str = "test", seed: int = 0) -> list[Problem]:
        """Give ``limit`` distinct problems; a larger limit continues the same list.

        Raises:
            ValueError: an unknown split, or a limit below 1.
        """
        return draw_problems(self.subset, limit, split=split, seed=seed)

    def verify(self, problem: Problem, completion: str) -> float:
        """Give 1.0 if the completion's final answer is right, marked or not, else 0.0."""
        return verify_answer(problem, completion)
