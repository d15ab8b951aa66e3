"""Problems with a verifier: the organisms' own language, ready by name."""

import difflib

from entropy_probe.tasks.arithmetic import Arithmetic
from entropy_probe.tasks.generator import SUBSETS
from entropy_probe.tasks.problem import Problem, Task

__all__ = ["TASKS", "Problem", "Task", "get_task"]

TASKS = ("arithmetic", *(f"arithmetic:{name}" for name in SUBSETS if name != "default"))
"""The names that `get_task` knows."""


def get_task(name: str) -> Task:
    """Give a task by its name, such as ``arithmetic`` or ``arithmetic:hard``.

    Raises:
        ValueError: an unknown name; the message lists the known ones.
    """
    if name in TASKS:
        return Arithmetic(name.partition(":")[2] or "default")
    near = difflib.get_close_matches(name, TASKS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"no task {name!r}: known are {', '.join(TASKS)}{hint}")
