"""Runs what is missing: each in a process of its own, each a line of the results when done."""

import fcntl
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from analyses.lines import add_line, read_lines

from .analysis import Run
from .worker import ROOT, compute

Compute = Callable[[str, Mapping[str, Any]], dict[str, Any]]
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class RunError(Exception):
    """Runs that failed; the others are done and written."""


def run_missing(
    execute: str,
    runs: Sequence[Run],
    path: Path,
    *,
    processes: int = 2,
    ray: str | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> None:
    """Compute the runs that a file of results has no line of, and append a line for each.

    A run that another runner has begun, on the same file and machine, is left to it.

    Args:
        execute: ``module:function`` of what computes one.
        runs: those wanted.
        path: the file of results.
        processes: how many at a time.
        ray: address of a Ray cluster to compute on ("local" for one on this machine); None for
            processes of this machine.
        tell: called with a line of text a run.

    Raises:
        RunError: some failed, after all others were tried.
    """
    there = {line["key"] for line in read_lines(path)}
    missing = [run for run in runs if run.key not in there]
    failed: list[str] = []

    def one(run: Run, compute: Compute) -> None:
        with _claimed(path, run.key) as mine:
            if not mine:
                tell(f"{run.arm}, seed {run.seed}: under way elsewhere, or done")
                return
            try:
                line = line_of(execute, run, compute)
            except RunError as error:
                failed.append(f"{run.arm}, seed {run.seed}: {error}")
                tell(failed[-1])
                return
            add_line(path, line)
            tell(f"{run.arm}, seed {run.seed}: {line['seconds']['cpu']:.0f} s")

    with _computing(ray) as compute, ThreadPoolExecutor(processes) as pool:
        list(pool.map(lambda run: one(run, compute), missing))
    if failed:
        raise RunError("\n".join([f"{len(failed)} of {len(missing)} runs failed", *failed]))


def line_of(execute: str, run: Run, compute: Compute) -> dict[str, Any]:
    """Compute a run and give its line: its name and settings, and all that came of it."""
    named = {"key": run.key, "arm": run.arm, "seed": run.seed, "settings": run.settings}
    return named | {"revision": revision()} | compute(execute, run.settings)


def compute_here(execute: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Compute a run in a process of this machine.

    Raises:
        RunError: it ended without a result; the message is the end of what it wrote.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "line.json"
        command = [sys.executable, "-m", "analyses.experiments.worker", execute]
        with subprocess.Popen(
            [*command, json.dumps(settings), str(out)], cwd=ROOT, env=os.environ | _ONE_THREAD,
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        ) as process:  # fmt: skip
            said = process.stderr.read().decode("utf-8", "replace")
        if process.returncode:
            last = said.strip().splitlines()[-1:] or ["it said nothing"]
            raise RunError(f"ended with {process.returncode}: {last[0]}")
        return json.loads(out.read_text())


@contextmanager
def _computing(ray_address: str | None) -> Iterator[Compute]:
    """Give what computes a run: a process here, or a task of a Ray cluster."""
    if ray_address is None:
        yield compute_here
        return
    import ray
    from ray.exceptions import RayError

    where: dict[str, Any] = {"address": ray_address}
    if ray_address == "local":  # without an address Ray would join what runs here already
        where["include_dashboard"] = False
    ray.init(runtime_env={"py_modules": [str(ROOT / "analyses")]}, log_to_driver=False, **where)
    # A process of its own for each, as here.
    remote = ray.remote(num_cpus=1, max_calls=1)(compute)

    def on_cluster(execute: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return ray.get(remote.remote(execute, dict(settings)))
        except RayError as error:
            raise RunError(str(error).strip().splitlines()[-1]) from error

    try:
        yield on_cluster
    finally:
        ray.shutdown()


@contextmanager
def _claimed(path: Path, key: str) -> Iterator[bool]:
    """Keep other runners of this machine from a run; give whether it is this one's to do.

    The system frees the claim of a process that dies.
    """
    digest = hashlib.sha256(f"{path.resolve()} {key}".encode()).hexdigest()[:20]
    lock = Path(tempfile.gettempdir()) / f"entropy-probe-run-{digest}.lock"
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        try:
            yield key not in {line["key"] for line in read_lines(path)}
        finally:
            lock.unlink(missing_ok=True)


def revision() -> str | None:
    """Give the commit of the code, "+" after it where files have changed since; None without git.

    Results do not count as code.
    """
    git = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
        files = ["--", "entropy_probe", "sae_steering", "analyses", ":!analyses/results"]
        status = [*git, "status", "--porcelain", "--untracked-files=no", *files]
        changed = subprocess.run(status, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:
        return None
    return head.stdout.strip() + ("+" if changed else "") if head.returncode == 0 else None
