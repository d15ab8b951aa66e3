"""Where a record's planted forks and decoys lie, for tasks that know what each token is."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from .rollout import Rollouts
from .tasks import get_task
from .tasks.problem import LabelsTokens, Problem, Task

PLANTED, DECOY = "planted fork", "decoy"


def planted_roles(
    rollouts: Rollouts, problems: Sequence[Problem], task: Task
) -> dict[str, Bool[Tensor, "batch seq"]]:
    """Give "planted fork" and "decoy", each with a mask of the tokens that are one.

    Args:
        rollouts: completions of the problems.
        problems: the problem of each row.
        task: where they come from; if it does not label tokens, the result is empty.
    """
    if not isinstance(task, LabelsTokens):
        return {}
    masks = {name: torch.zeros_like(rollouts.valid) for name in (PLANTED, DECOY)}
    kinds = {role: PLANTED for role in task.fork_roles} | {role: DECOY for role in task.decoy_roles}
    starts, ends = rollouts.prompt_lengths.tolist(), rollouts.lengths.tolist()
    for row, problem in enumerate(problems):
        ids = rollouts.tokens[row, starts[row] : ends[row]].tolist()
        pieces = [rollouts.pieces.get(i, b"").decode("utf-8", "replace") for i in ids]
        ended = bool(ids) and ids[-1] in rollouts.special_ids
        roles = task.token_roles(problem, pieces[: len(pieces) - ended], ended=ended)
        for step, role in enumerate(roles):
            if role in kinds:
                masks[kinds[role]][row, starts[row] + step] = True
    return {name: mask & rollouts.valid for name, mask in masks.items()}


def roles_of_run(run, rollouts: Rollouts) -> dict[str, Bool[Tensor, "batch seq"]]:
    """Give the same for all samples of a run directory; empty where its task labels nothing.

    Args:
        run: a `storage.run.Run`.
        rollouts: its record, every sample that is there.
    """
    plan = run.plan
    if plan is None or not plan.problems or plan.task is None:
        return {}
    try:
        task = get_task(plan.task)
    except (ValueError, ImportError, OSError):  # the user's own task, or a package that is missing
        return {}
    if not isinstance(task, LabelsTokens):
        return {}
    inputs = [number // plan.rows_per_input for number in run.sample_numbers]
    problems = [Problem(prompt=plan.inputs[i], **plan.problems[i]) for i in inputs]
    return planted_roles(rollouts, problems, task)
