"""What verbs that fill a run directory share: where it goes, what it takes, how to go on."""

import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from entropy_probe.storage.errors import DiskFull, RunError

from .failing import Failure, explain, usage
from .machines import Choice, Filling, Here, OnRay, running
from .output import note, progress, write_path

if TYPE_CHECKING:
    from entropy_probe.storage.plan import Plan
    from entropy_probe.storage.run import Run

# With --resume these may differ from what the run was begun with, or be left out.
_FREE = frozenset({"model", "device", "dtype", "revision", "out", "resume", "max_disk", "ray"})


def goes_on_alone(context: click.Context) -> bool:
    """Tell whether a run is to be gone on with exactly as it was begun."""
    given = {
        name
        for name in context.params
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT
    }
    if "resume" not in given:
        return False
    if "out" not in given:
        why = "--resume goes on with the run at -o, and there is no -o"
        raise usage("which run to go on with?", why, f"`{context.command_path} --resume -o RUN`")
    return given <= _FREE


def require_model(model: str | None) -> str:
    """Give the model's name, or say how to pass one."""
    if model is None:
        fix = "pass --model with a local folder or a hub id, or organism:amenable"
        raise usage("missing option --model", "there is no model to run", fix)
    return model


def check_out(
    out: str | None, model: str, how: Filling, ray: str | None
) -> "tuple[Path, Plan | None]":
    """Give where the run goes, and the plan to go on with; fail before anything slow begins."""
    from entropy_probe.storage.writing import find_run, require_writable

    path = Path(out) if out is not None else default_out(model)
    if how.shard is None:
        run = find_run(path, resume=how.resume, overwrite=how.overwrite)
        require_writable(path)
        return path, run.plan if run is not None and how.resume else None
    if out is None:
        why = "every shard writes to the same run, and there is no -o"
        raise usage("a shard of which run?", why, "pass the same -o RUN to every shard")
    if ray is not None:
        why = "Ray shares the chunks out by itself"
        raise usage("--shard and --ray exclude each other", why, "leave one of them out")
    require_writable(path)
    return path, None


def default_out(model: str) -> Path:
    """Give a new folder under ``runs``, named after the model and the time."""
    name = Path(model.partition(":")[2] or model).name.removesuffix(".gguf")
    name = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "model"
    path = Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    return path if not path.exists() else path.with_name(f"{path.name}-{datetime.now():%f}")


def layer_numbers(
    where: Here | OnRay, layers: tuple[int, ...] | str | None, activations: str
) -> list[int]:
    """Give the layers to keep, ``all`` written out; refuse options that nothing would read."""
    source = click.get_current_context().get_parameter_source
    given = [
        name for name in ("activations", "fraction") if source(name) is ParameterSource.COMMANDLINE
    ]
    if layers is None:
        if not given:
            return []
        why = f"--{given[0]} was given, but no layer to keep activations of"
        fix = "add --layers last, or 0,8,-1, or all"
        fix += "; `probe report` and `probe forks` take a --fraction of their own"
        raise usage("activations of which layers?", why, fix)
    if "fraction" in given and activations != "forks":
        why = f"--activations {activations} does not go by forks"
        raise usage("--fraction of what?", why, "leave --fraction out")
    return list(range(where.depth())) if layers == "all" else list(layers)


def go_on(out: str, kind: str, choice: Choice, how: Filling, ray: str | None) -> "Run":
    """Go on with a run by the plan that it holds; what the choice leaves open is the plan's."""
    from entropy_probe.storage.chunks import is_intact
    from entropy_probe.storage.run import open_run

    run = open_run(out)
    plan = run.plan
    if plan is None:
        why = "it was imported, so that nothing of it is missing"
        raise usage(f"{out!r} cannot be gone on with", why, "read it as it is: probe show")
    if plan.kind != kind:
        why = "another verb began it"
        raise usage(f"{out!r} cannot be gone on with", why, resume_command(run.path, plan.kind))
    if run.complete and all(is_intact(run.path, i, plan.samples_of(i)) for i in run.chunks):
        note(f"{out} is complete already")
        return run
    choice = Choice(
        choice.reference or plan.model,
        choice.device,
        choice.dtype or plan.dtype,
        choice.revision or plan.revision,
    )
    with running(choice, ray, plan.threads) as where:
        return fill(where, plan, run.path, how)


def fill(where: Here | OnRay, plan: "Plan", out: Path, how: Filling) -> "Run":
    """Carry out a plan: estimate first, progress meanwhile, the way on if it is cut off."""
    from entropy_probe.storage.estimate import estimate_bytes, words_for

    size, free = estimate_bytes(plan, d_model=where.width()), _free_space(out)
    room = f"{words_for(free)} are free"
    room += "" if size < free else ": they may not do, pass --max-disk or keep less"
    note(f"{counted(plan.samples, 'sample')} in {out}: at most {words_for(size)} on disk, {room}")
    with resumable(out, plan.kind, how.shard), progress("sample") as report:
        return where.carry_out(plan, out, how, report)


def resume_command(out: Path, kind: str) -> str:
    """Give the command that goes on with a run."""
    verb = "capture" if kind == "sample" else "score"
    return f"probe {verb} --resume -o {shlex.quote(str(out))}"


@contextmanager
def resumable(out: Path, kind: str, shard: tuple[int, int] | None = None) -> Iterator[None]:
    """Turn what cuts a run off into how many chunks are safe and the command that goes on."""
    on = resume_command(out, kind) if shard is None else "the same command again"
    try:
        yield
    except KeyboardInterrupt as error:
        raise _cut_off("interrupted", "interrupted", "", out, on) from error
    except DiskFull as error:
        raise _cut_off("run", error.what, error.why, out, on, error.fix) from error
    except RunError:
        raise
    except (ValueError, RuntimeError, MemoryError, OSError) as error:
        told = explain(error)
        if isinstance(error, ValueError) and not _saved(out):
            raise
        raise _cut_off(told.kind, told.what, told.why, out, on, told.fix) from error


def _cut_off(kind: str, what: str, why: str, out: Path, on: str, fix: str = "") -> Failure:
    """Say what a run that was cut off has left, and what goes on with it."""
    from entropy_probe.storage.manifest import read_manifest

    try:
        planned = read_manifest(out).plan
    except RunError:
        return Failure(kind, what, why or "nothing was saved", fix or "run it again")
    saved = _saved(out)
    if saved and kind != "interrupted":
        kind = "partial"
    chunks = planned.chunks if planned else saved
    safe = f"{saved} of {chunks} chunks are saved and whole in {str(out)!r}"
    return Failure(kind, what, f"{why}; {safe}" if why else safe, f"go on with: {on}")


def _saved(out: Path) -> int:
    """Count the chunks that are saved."""
    from entropy_probe.storage.parts import committed_chunks

    return len(committed_chunks(out))


def conclude(run: "Run") -> None:
    """Say what a run holds, and write its path."""
    from entropy_probe.storage.run import open_run

    run = open_run(run.path)
    samples = run.samples()
    ends = zip(samples["length"].to_pylist(), samples["prompt_length"].to_pylist(), strict=True)
    tokens = sum((end or 0) - (start or 0) for end, start in ends)
    rewards = [r for r in samples["reward"].to_pylist() if r is not None and r == r]
    reward = sum(rewards) / len(rewards) if rewards else None
    words = "" if reward is None else f", mean reward {reward:.3g}"
    note(f"{counted(len(run), 'sample')}, {counted(tokens, 'token')}{words}")
    if run.complete:
        note(f"next: probe report {shlex.quote(str(run.path))}")
    else:
        note(f"{len(run.chunks)} of {run.plan.chunks} chunks are there")
    values = {
        "run": str(run.path), "status": run.manifest.status, "samples": len(run),
        "tokens": tokens, "mean_reward": reward,
    }  # fmt: skip
    write_path(run.path, values)


def counted(count: int, noun: str) -> str:
    """Give a number of things."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def _free_space(out: Path) -> int:
    """Give the free bytes where a folder is or will be."""
    there = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    return shutil.disk_usage(there).free
