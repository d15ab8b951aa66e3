"""Completions for tests of rewards, made of texts."""

from collections.abc import Sequence

from entropy_probe.tasks import Problem, get_task
from entropy_probe.training.completion import Completion

TASK = get_task("arithmetic")
PROBLEMS = TASK.problems(4, split="train")


def completion(
    text: str,
    *,
    problem: Problem = PROBLEMS[0],
    group: int = 0,
    row: int = 0,
    step: int = 0,
    seed: int = 0,
    pieces: Sequence[bytes] = (),
    logprobs: Sequence[float] = (),
) -> Completion:
    return Completion(
        problem=problem, text=text, group=group, row=row, step=step, seed=seed,
        tokens=tuple(range(len(pieces))), pieces=tuple(pieces), logprobs=tuple(logprobs),
    )  # fmt: skip


def group_of(texts: Sequence[str], *, group: int = 0, first: int = 0) -> list[Completion]:
    """Give completions of one problem, rows counted up."""
    return [
        completion(text, problem=PROBLEMS[group], group=group, row=first + i)
        for i, text in enumerate(texts)
    ]
