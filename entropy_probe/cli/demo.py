"""`probe demo`: the shipped model, live, on a handful of problems."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from entropy_probe.storage.errors import RunConflict

from .machines import Choice, Filling, Here
from .options import count_option, speaking
from .output import note, progress, write_path
from .reading import new_file
from .running import resumable

if TYPE_CHECKING:
    from entropy_probe.storage.plan import Plan
    from entropy_probe.storage.run import Run

MODEL, TASK = "organism:amenable", "arithmetic"
ARGUMENTS = {
    "max_new_tokens": 96, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "residual_layers": [-1],
    "residual_positions": "forks", "alternatives": 5, "seed": 0, "batch_size": 64, "stop": [],
    "fraction": 0.2,
}  # fmt: skip
_NAMED = 3


@click.command()
@click.option(
    "-o",
    "--out",
    metavar="RUN",
    default="probe-demo",
    show_default=True,
    help="Run directory; an earlier demo there is replaced.",
)
@count_option("--limit", 6, "Problems.")
@count_option("--n", 4, "Samples a problem.")
@click.option("--overwrite", is_flag=True, help="Replace a run that is no demo.")
@speaking
def demo(out: str, limit: int, n: int, overwrite: bool) -> None:
    """Run the shipped model on a few problems; leave a report.

    Needs no network, no GPU and no account. The answers are verified, and the page shows where
    the model was unsure and what else it could have said.
    """
    path = Path(out)
    _refuse_foreign(path, overwrite)
    from entropy_probe.storage.writing import find_run, require_writable

    find_run(path, resume=False, overwrite=True)
    require_writable(path)
    where = Here(Choice(MODEL, "cpu", None, None))
    from entropy_probe.computing import computing_with
    from entropy_probe.tasks import get_task

    problems = get_task(TASK).problems(limit)
    note(f"solving {limit} problems, {n} times each")
    # One thread: on busy cores several would wait for each other, and the model is tiny.
    with computing_with(1):
        plan = where.plan_samples(problems, ARGUMENTS | {"n": n}, {"task": TASK})
        with resumable(path, plan.kind), progress("sample") as report:
            run = where.carry_out(plan, path, Filling(overwrite=True), report)
    _tell(run, _write_report(run))


def is_demo(plan: "Plan | None") -> bool:
    """Tell whether a run was made by this verb, whatever the version of its model."""
    if plan is None or (plan.kind, plan.model, plan.task) != ("sample", MODEL, TASK):
        return False
    kept = {"n", "residual_layers"}
    return all(plan.arguments[name] == v for name, v in ARGUMENTS.items() if name not in kept)


def _refuse_foreign(path: Path, overwrite: bool) -> None:
    """Raise where replacing what is there would lose somebody's work."""
    from entropy_probe.storage.manifest import MANIFEST, read_manifest

    if overwrite or not (path / MANIFEST).is_file():
        return
    if not is_demo(read_manifest(path).plan):
        raise RunConflict(
            f"{str(path)!r} holds a run that is no demo",
            "a demo replaces only an earlier demo",
            "pass another -o, or --overwrite to replace it",
        )


def _write_report(run: "Run") -> dict[str, Any]:
    """Write the page into the run, and give what it shows."""
    from entropy_probe.planted import roles_of_run
    from entropy_probe.storage.manifest import PAGE
    from entropy_probe.viewing.marks import mark_forks
    from entropy_probe.viewing.page import heatmap

    from .forks import count_by_token

    rollouts = run.rollouts(residuals=False)
    path = run.path / PAGE
    with new_file(path) as temporary:
        page = heatmap(rollouts, roles=roles_of_run(run, rollouts))
        temporary.write_text(page, encoding="utf-8")
    marks = mark_forks(rollouts)
    return {
        "report": str(path),
        "run": str(run.path),
        "samples": len(rollouts),
        "tokens": marks.total,
        "forks": marks.kept,
        "threshold": marks.threshold(0),
        "mean_reward": float(rollouts.rewards.mean()),
        "often": count_by_token(rollouts, marks.forks, run.sample_numbers)[:_NAMED],
    }


def _tell(run: "Run", shown: dict[str, Any]) -> None:
    """Say what the page shows, and what to do next."""
    right = round(shown["mean_reward"] * shown["samples"])
    note(f"{MODEL}: {right} of {shown['samples']} answers right")
    note(
        f"unsure at {shown['forks']} of {shown['tokens']} tokens (the top 20%: "
        f"{shown['threshold']:.2f} nats or more), most often at "
        + ", ".join(f"{line['token']!r} ({line['forks']}x)" for line in shown["often"])
    )
    name = shlex.quote(str(run.path))
    first = shown["often"][0]["where"][0]["sample"]
    note("next: open the report below in a browser, or")
    note(f"  probe forks {name}")
    note(f"  probe show {name} --sample {first}")
    note('  probe capture --model ./your-model -p "Let me think." --n 8 -o runs/mine')
    write_path(Path(shown["report"]), shown)
