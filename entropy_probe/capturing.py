"""From prompts to a run directory: a plan of fixed chunks, each computed and committed whole."""

import dataclasses
import math
import os
import platform
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .models.fingerprint import library_versions
from .planning import plan_samples
from .rollout import Rollouts
from .sampling import sample
from .scoring import score
from .storage.estimate import estimate_bytes, words_for
from .storage.plan import Plan
from .storage.run import Run, RunConflict
from .storage.writing import begin, commit, drop_damaged, find_run, finish, require_writable
from .tasks import Problem, Task, get_task

Progress = Callable[[int, int], None]
"""Called with (rows done, rows of the whole plan)."""


def capture(
    model,
    tokenizer,
    prompts: Sequence[object],
    out: str | Path,
    *,
    n: int = 1,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    residual_layers: Sequence[int] = (),
    residual_positions: str = "forks",
    alternatives: int = 5,
    seed: int = 0,
    batch_size: int = 64,
    stop: Sequence[str | int] = (),
    fraction: float = 0.2,
    task: str | Task | None = None,
    chunk_prompts: int | None = None,
    revision: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    max_disk: int | None = None,
    progress: Progress | None = None,
) -> Run:
    """Sample into a run directory, chunk by chunk, so that a killed run can be gone on with.

    Every chunk is computed as `sample` computes it alone; forks to keep states at are chosen
    within each chunk. Resuming computes whole missing chunks with the plan's thread count, and
    gives bit for bit what an unbroken run would have.

    Args:
        model: any Hugging Face decoder; it is left as it was.
        tokenizer: its tokenizer.
        prompts: as for `sample`, or problems of ``task``.
        out: the run directory.
        n: completions a prompt.
        max_new_tokens: see `sample`, as for all arguments up to ``fraction``.
        temperature: 0 is greedy.
        top_p: nucleus mass kept when drawing.
        top_k: candidates kept when drawing, 0 for all.
        residual_layers: blocks whose output stream to keep, negatives from the end.
        residual_positions: "forks", "all" or "none".
        alternatives: most probable tokens to record at each position.
        seed: seed of the sampling noise.
        batch_size: rows decoded together.
        stop: texts and token ids that end a row.
        fraction: share of each chunk's tokens that are forks.
        task: name of a task, or one, whose verifier gives the rewards of its problems.
        chunk_prompts: prompts a chunk; the default makes chunks of a few batches.
        revision: hub revision that the model was loaded at, for whoever goes on with the run.
        resume: go on with the run that is there, if there is one.
        overwrite: replace the run that is there.
        max_disk: bytes that the run may take at most, by the estimate.
        progress: called with (rows done, rows of the run).

    Raises:
        ValueError: an argument that makes no sense; nothing has been written then.
        RunConflict: the directory is taken, the run there has another plan or other weights, or
            the estimate is above ``max_disk``.
        DiskFull: no space left; whole chunks are kept.

    >>> from entropy_probe import capture, load
    >>> model, tokenizer = load("organism:amenable")
    >>> capture(model, tokenizer, ["Compute"], "runs/mine", n=2)  # doctest: +SKIP
    """
    existing = find_run(Path(out), resume=resume, overwrite=overwrite)
    if resume and existing and existing.plan and chunk_prompts is None:
        chunk_prompts = existing.plan.chunk
    arguments = {
        "n": n, "max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p,
        "top_k": top_k, "residual_layers": list(residual_layers),
        "residual_positions": residual_positions, "alternatives": alternatives, "seed": seed,
        "batch_size": batch_size, "stop": list(stop), "fraction": fraction,
    }  # fmt: skip
    plan = plan_samples(
        model, tokenizer, prompts, arguments, task=task, chunk_prompts=chunk_prompts,
        revision=revision,
    )  # fmt: skip
    return carry_out(
        model, tokenizer, plan, out, task=task, resume=resume, overwrite=overwrite,
        max_disk=max_disk, progress=progress,
    )  # fmt: skip


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


def carry_out(
    model,
    tokenizer,
    plan: Plan,
    out: str | Path,
    *,
    task: str | Task | None = None,
    resume: bool = False,
    overwrite: bool = False,
    max_disk: int | None = None,
    progress: Progress | None = None,
) -> Run:
    """Compute the chunks of a plan that its run directory lacks, and commit each.

    Arguments and errors are those of `capture`.
    """
    out = Path(out)
    run = find_run(out, resume=resume, overwrite=overwrite)
    if run is not None and resume:
        _refuse_another(run, plan)
        run, plan = drop_damaged(run), run.plan
    else:
        _refuse_large(model, plan, max_disk)
        require_writable(out)
        run = begin(out, plan, libraries=library_versions(), hardware=hardware_of(model))
    with _threads(plan.threads):
        done = len(run)
        for index in run.missing:
            report = None if progress is None else partial(_report, progress, done, plan.samples)
            rollouts = run_chunk(model, tokenizer, plan, index, task=task, progress=report)
            commit(run, index, rollouts)
            done += len(rollouts)
            _report(progress or _silent, done, plan.samples, 0)
    return finish(run)


def _report(progress: Progress, before: int, total: int, rows: int) -> None:
    progress(before + rows, total)


def _silent(done: int, total: int) -> None:
    """Say nothing."""


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


def _refuse_another(run: Run, plan: Plan) -> None:
    """Raise where a run cannot be gone on with; warn where its last bits may differ."""
    if run.plan is None:
        raise RunConflict(
            f"{str(run.path)!r} was imported", "there is no plan to go on with", "pass another -o"
        )
    if differences := run.plan.differences(plan):
        raise RunConflict(
            f"{str(run.path)!r} cannot be gone on with: it was begun differently",
            "; ".join(differences),
            "give --resume and the run alone, or replace it with --overwrite",
        )
    before, now = run.manifest.libraries, library_versions()
    changed = [f"{k} {before.get(k)} (now {v})" for k, v in now.items() if before.get(k) != v]
    if run.plan.device != plan.device:
        changed.append(f"device {run.plan.device} (now {plan.device})")
    if changed and run.missing:
        warnings.warn(
            f"the run was begun with {', '.join(changed)}: what is computed now may differ from "
            "an unbroken run in the last bits",
            stacklevel=4,
        )


def _refuse_large(model, plan: Plan, max_disk: int | None) -> None:
    """Raise where the run may take more disk than allowed."""
    size = estimate_bytes(plan, d_model=model.config.get_text_config().hidden_size)
    if max_disk is not None and size > max_disk:
        raise RunConflict(
            f"the run may take {words_for(size)} on disk, more than the {words_for(max_disk)} "
            "allowed",
            f"{plan.samples} rows, {len(plan.arguments['residual_layers'])} layers at "
            f"{plan.arguments['residual_positions']} positions",
            "raise --max-disk, or keep fewer layers, positions, rows or tokens",
        )


@contextmanager
def _threads(count: int) -> Iterator[None]:
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
