"""A run directory, filled by its plan: chunk after chunk, here, a shard of them, or on Ray."""

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from .computing import Loaded, computing_with, describe, refuse_another_model, run_chunk
from .models.fingerprint import library_versions
from .ray_pool import RayPool
from .rollout import Rollouts
from .storage.estimate import estimate_bytes, words_for
from .storage.locking import writing
from .storage.plan import Plan
from .storage.run import Run, RunConflict
from .storage.writing import (
    begin,
    commit,
    drop_damaged,
    find_run,
    finish,
    join,
    require_writable,
)
from .tasks import Task, get_task

Progress = Callable[[int, int], None]
"""Called with (rows done, rows of the whole plan)."""


def carry_out(
    model,
    tokenizer,
    plan: Plan,
    out: str | Path,
    *,
    task: str | Task | None = None,
    resume: bool = False,
    overwrite: bool = False,
    shard: tuple[int, int] | None = None,
    max_disk: int | None = None,
    progress: Progress | None = None,
) -> Run:
    """Compute the chunks of a plan that its run directory lacks, and commit each.

    Arguments and errors are those of `capture`; a model that is not the plan's, by its weights
    and the type that it computes in, is a `RunConflict`, and nothing on disk is touched then.
    """
    out, loaded = Path(out), describe(model)
    plan = _placed(plan, loaded)
    _refuse_large(loaded.width, plan, max_disk)
    _refuse_taken(out, resume=resume, overwrite=overwrite, shard=shard)
    with writing(out, shard=shard):
        run = _ready(out, plan, loaded.hardware, resume=resume, overwrite=overwrite, shard=shard)
        return _compute(model, tokenizer, run, task=task, shard=shard, progress=progress)


def _compute(
    model,
    tokenizer,
    run: Run,
    *,
    task: str | Task | None,
    shard: tuple[int, int] | None,
    progress: Progress | None,
) -> Run:
    """Compute the chunks that a run lacks, or those of a shard, and commit each."""
    plan = run.plan
    mine = [index for index in run.missing if shard is None or index % shard[1] == shard[0] - 1]
    if mine and plan.kind == "sample" and plan.task is not None and not isinstance(task, Task):
        task = get_task(task or plan.task)  # once: some tasks have a process of their own

    def chunks() -> Iterator[tuple[int, Rollouts]]:
        done = len(run)
        for index in mine:
            report = None if progress is None else partial(_report, progress, done, plan.samples)
            rows = run_chunk(model, tokenizer, plan, index, task=task, progress=report)
            done += len(rows)
            yield index, rows

    with computing_with(plan.threads):
        return _complete(run, chunks(), progress)


def carry_out_on_ray(
    pool: RayPool,
    plan: Plan,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    max_disk: int | None = None,
    progress: Progress | None = None,
) -> Run:
    """Compute the missing chunks of a plan on a Ray cluster; the files are written here.

    The result is the single process's, bit for bit, for the same plan on the same kind of
    machine: only this process writes, and a chunk lost with its actor is computed again.

    Args:
        pool: the actors, which hold the plan's model.
        plan: made by `RayPool.call` with ``"plan_samples"`` or ``"plan_scores"``.
        out: the run directory.
        resume: as for `capture`, like the arguments after it.
        overwrite: replace the run that is there.
        max_disk: bytes that the run may take at most, by the estimate.
        progress: called with (rows done, rows of the run).
    """
    out, loaded = Path(out), pool.call("describe")
    plan = _placed(plan, loaded)
    _refuse_large(loaded.width, plan, max_disk)
    hardware = {**loaded.hardware, "ray actors": pool.actors}
    _refuse_taken(out, resume=resume, overwrite=overwrite)
    with writing(out):
        run = _ready(out, plan, hardware, resume=resume, overwrite=overwrite)
        return _complete(run, pool.chunks(run.plan, run.missing), progress)


def _placed(plan: Plan, loaded: Loaded) -> Plan:
    """Give the plan for the device where its model is now; raise where that is another model."""
    refuse_another_model(plan, loaded)
    return dataclasses.replace(plan, device=loaded.device)


def _ready(
    out: Path,
    plan: Plan,
    hardware: Mapping[str, Any],
    *,
    resume: bool,
    overwrite: bool,
    shard: tuple[int, int] | None = None,
) -> Run:
    """Give the run directory to fill: a new one, one to go on with, or the shards' common one."""
    if shard is not None:
        run = join(out, plan, libraries=library_versions(), hardware=hardware)
        _refuse_another(run, plan)
        return run
    run = find_run(out, resume=resume, overwrite=overwrite)
    if run is not None and resume:
        _refuse_another(run, plan)
        return drop_damaged(run)
    return begin(out, plan, libraries=library_versions(), hardware=hardware)


def _refuse_taken(
    out: Path, *, resume: bool, overwrite: bool, shard: tuple[int, int] | None = None
) -> None:
    """Raise where the directory cannot be written, or is not to be; change nothing."""
    if shard is not None:
        _refuse_odd(shard, resume=resume, overwrite=overwrite)
    else:
        find_run(out, resume=resume, overwrite=overwrite)
    require_writable(out)


def _complete(run: Run, chunks: Iterable[tuple[int, Rollouts]], progress: Progress | None) -> Run:
    """Commit chunks as they come, and mark the run if it is whole then."""
    done = len(run)
    for index, rows in chunks:
        commit(run, index, rows)
        done += len(rows)
        if progress is not None:
            progress(done, run.plan.samples)
    return finish(run)


def _report(progress: Progress, before: int, total: int, rows: int) -> None:
    progress(before + rows, total)


def _refuse_odd(shard: tuple[int, int], *, resume: bool, overwrite: bool) -> None:
    """Raise where a shard is none, or would take the other shards' work away."""
    number, count = shard
    if not 1 <= number <= count:
        raise ValueError(f"shard must be i/n with i from 1 to n, got {number}/{count}")
    if resume or overwrite:
        raise RunConflict(
            "a shard joins the run that is there or begins it",
            f"{'resume' if resume else 'overwrite'} was asked for besides",
            "leave it out; to begin again, delete the folder before starting the shards",
        )


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


def _refuse_large(width: int, plan: Plan, max_disk: int | None) -> None:
    """Raise where the run may take more disk than allowed."""
    size = estimate_bytes(plan, d_model=width)
    if max_disk is not None and size > max_disk:
        raise RunConflict(
            f"the run may take {words_for(size)} on disk, more than the {words_for(max_disk)} "
            "allowed",
            f"{plan.samples} rows, {len(plan.arguments['residual_layers'])} layers at "
            f"{plan.arguments['residual_positions']} positions",
            "raise --max-disk, or keep fewer layers, positions, rows or tokens",
        )
