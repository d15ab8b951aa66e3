"""One chunk of a plan, computed: the same rows wherever and whenever it is done."""

import dataclasses
import math
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from .models.engine import decoder_of
from .models.fingerprint import model_name, weights_fingerprint
from .rollout import Rollouts
from .sampling import sample
from .scoring import score
from .storage.errors import RunConflict
from .storage.plan import Plan
from .tasks import Problem, Task, get_task


@dataclass(frozen=True)
class Loaded:
    """A model where it computes: what a plan must match, and what a run notes of it."""

    name: str
    """What it was loaded by."""
    weights: str
    """Fingerprint of its weights."""
    dtype: str
    """Type that it computes in."""
    device: str
    """Type of its device."""
    width: int
    """Width of its residual stream."""
    hardware: Mapping[str, Any]
    """What computes the run."""


def describe(model) -> Loaded:
    """Say what a model is, in this process."""
    decoder = decoder_of(model)
    return Loaded(
        name=model_name(decoder),
        weights=weights_fingerprint(decoder),
        dtype=str(decoder.dtype).removeprefix("torch."),
        device=decoder.device.type,
        width=decoder.config.get_text_config().hidden_size,
        hardware=hardware_of(decoder),
    )


def refuse_another_model(plan: Plan, model: Loaded) -> None:
    """Raise where a model has other weights, or computes in another type, than the plan's.

    Raises:
        RunConflict: it does; rows of two models would make one run.
    """
    if (plan.weights, plan.dtype) != (model.weights, model.dtype):
        raise RunConflict(
            "the model is not the one that the run was planned with",
            f"that was {plan.model} in {plan.dtype} (weights {plan.weights}), this is "
            f"{model.name} in {model.dtype} (weights {model.weights})",
            "go on with the weights, the --revision and the --dtype that it was planned with; "
            "for others pass another -o, or begin anew with --overwrite",
        )


def run_chunk(
    model,
    tokenizer,
    plan: Plan,
    index: int,
    *,
    task: str | Task | None = None,
    progress: Callable[[int], None] | None = None,
) -> Rollouts:
    """Compute one chunk of a plan, alone: the same rows wherever and whenever it is done.

    Args:
        model: the model that the plan names.
        tokenizer: its tokenizer.
        plan: the plan.
        index: which chunk.
        task: the plan's task, for one that `get_task` does not know.
        progress: called with the rows of the chunk that are done.
    """
    inputs = [plan.inputs[i] for i in plan.inputs_of(index)]
    if plan.kind == "score":
        rollouts = _score_rows(model, tokenizer, plan, inputs)
        about = dataclasses.replace(rollouts.provenance, origin=plan.origin)
        rollouts = dataclasses.replace(rollouts, provenance=about)
    else:
        start = plan.inputs_of(index).start
        rollouts = sample(
            model, tokenizer, inputs, offset=start, progress=progress, **plan.arguments
        )
        if plan.task is not None:
            rollouts = _verified(rollouts, plan, index, task or plan.task)
    if plan.chunks > 1 and rollouts.residuals and plan.arguments["residual_positions"] == "forks":
        words = f"{rollouts.provenance.capture}; a batch is a chunk of {plan.chunk} inputs"
        about = dataclasses.replace(rollouts.provenance, capture=words)
        rollouts = dataclasses.replace(rollouts, provenance=about)
    return rollouts


def _score_rows(model, tokenizer, plan: Plan, rows: Sequence[Mapping[str, Any]]) -> Rollouts:
    """Score rows of a plan as one batch."""
    width = max(len(row["tokens"]) for row in rows)
    tokens = torch.zeros(len(rows), width, dtype=torch.long)
    valid = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        tokens[i, : len(row["tokens"])] = torch.tensor(row["tokens"])
        for start, stop in row["valid"]:
            valid[i, start:stop] = True
    lengths, groups = ([row[name] for row in rows] for name in ("prompt_length", "group"))
    rollouts = score(
        model, tokenizer, tokens, valid, prompt_lengths=lengths, groups=groups, **plan.arguments
    )
    if all(row["reward"] is None for row in plan.inputs):
        return rollouts
    rewards = (row["reward"] for row in rows)
    return rollouts.with_rewards([math.nan if r is None else r for r in rewards])


def _verified(rollouts: Rollouts, plan: Plan, index: int, task: str | Task) -> Rollouts:
    """Add the reward of each row, by the task's verifier."""
    task = get_task(task) if isinstance(task, str) else task
    rewards = []
    for row, number in enumerate(plan.samples_of(index)):
        at = number // plan.rows_per_input
        problem = Problem(prompt=plan.inputs[at], **plan.problems[at])
        rewards.append(task.verify(problem, rollouts.completion(row)))
    return rollouts.with_rewards(rewards)


@contextmanager
def computing_with(count: int) -> Iterator[None]:
    """Compute with a number of CPU threads, on which the last bits depend."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def hardware_of(model) -> dict[str, Any]:
    """Say what computes the run."""
    found = {"machine": platform.machine(), "cpus": os.cpu_count(), "device": str(model.device)}
    if model.device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(model.device)
    return found
