"""Problems with a verifier, by name: the organisms' language, mathematics, reasoning-gym."""

import difflib

from entropy_probe.tasks.arithmetic import Arithmetic
from entropy_probe.tasks.errors import TaskError
from entropy_probe.tasks.generator import SUBSETS
from entropy_probe.tasks.problem import (
    FindsAnswers,
    HasFormat,
    HasStrategies,
    Problem,
    ReadsAnswers,
    Task,
)

__all__ = [
    "FORMS",
    "TASKS",
    "FindsAnswers",
    "HasFormat",
    "HasStrategies",
    "Problem",
    "ReadsAnswers",
    "Task",
    "TaskError",
    "get_task",
]

TASKS = ("arithmetic", *(f"arithmetic:{name}" for name in SUBSETS if name != "default"))
"""The names that `get_task` knows whatever is installed."""

FORMS = (*TASKS, "math:FILE", "gym:NAME")
"""What `get_task` takes: those, a file of problems, and a dataset of reasoning-gym."""


def get_task(name: str) -> Task:
    """Give a task by its name.

    Args:
        name: ``arithmetic`` or one of its subsets, such as ``arithmetic:hard``; ``math:FILE``
            for JSON lines of problem and answer; ``gym:NAME`` or ``gym:NAME:OPTION=VALUE,...``
            for a dataset of reasoning-gym. The last two need the extra ``tasks``.

    Raises:
        ValueError: an unknown name; the message lists the known ones.
        TaskError: a ValueError too: a task that cannot be used here.
    """
    if name in TASKS:
        return Arithmetic(name.partition(":")[2] or "default")
    kind, _, rest = name.partition(":")
    if kind == "math" and rest:
        from entropy_probe.tasks.math import Math

        return Math(rest)
    if kind == "gym" and rest:
        from entropy_probe.tasks.gym import Gym

        task = Gym(*rest.split(":", 1))
        task.check()
        return task
    near = difflib.get_close_matches(name, FORMS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"no task {name!r}: known are {', '.join(FORMS)}{hint}")
