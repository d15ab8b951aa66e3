"""`probe show`: a run's facts, or one of its samples, in the terminal."""

import shlex
from typing import TYPE_CHECKING, Any

import click

from .failing import usage
from .options import count_option, fork_options, speaking
from .output import is_quiet, table, wants_json, write_json
from .reading import read_run

if TYPE_CHECKING:
    from entropy_probe.rollout import Rollouts
    from entropy_probe.storage.run import Run
    from entropy_probe.viewing.marks import Marks

_EXCERPT = 60


@click.command()
@click.argument("run")
@click.option("--sample", type=int, metavar="I", help="The sample to draw, by its number.")
@fork_options
@count_option("--top", 10, "Forks of the sample to list, or samples of the run, at most.", least=0)
@click.option("--color/--no-color", default=None, help="[default: colour on a terminal]")
@count_option("--width", None, "Columns to fill.  [default: the terminal's]", least=20)
@speaking
def show(
    run: str, sample: int | None, fraction: float, scope: str, top: int, color: bool | None,
    width: int | None,
) -> None:  # fmt: skip
    """Show a run, or one of its samples, in the terminal.

    With --sample the text, its forks marked and coloured by entropy; forks and their threshold
    are those of the whole run. Without, where the numbers come from and which samples there are.
    """
    found, rollouts = read_run(run)
    from entropy_probe.viewing.marks import mark_forks

    if sample is None:
        _show_run(found, rollouts, mark_forks(rollouts, fraction=fraction, scope=scope), top)
        return
    row = _row_of(found, sample)
    if wants_json():
        marks = mark_forks(rollouts, fraction=fraction, scope=scope)
        write_json({"run": run, "sample": sample, "tokens": _tokens(rollouts, marks, row)})
        return
    from entropy_probe.viewing.terminal import terminal_heatmap

    text = terminal_heatmap(
        rollouts, fraction=fraction, scope=scope, color=color, width=width, top=top, row=row
    )
    click.echo(text, nl=False, color=True)


def _row_of(run: "Run", sample: int) -> int:
    """Give where in the record a sample of the run is."""
    numbers = run.sample_numbers
    if sample not in numbers:
        planned = run.plan.samples if run.plan else len(numbers)
        later = 0 <= sample < planned
        why = (
            "its chunk has not been computed yet"
            if later
            else f"the run has samples 0 to {planned - 1}"
        )
        fix = "go on with the run, or pass another" if later else "pass one of them"
        raise usage(f"there is no sample {sample}", why, fix)
    return numbers.index(sample)


def _show_run(run: "Run", rollouts: "Rollouts", marks: "Marks", top: int) -> None:
    """Write where a run's numbers come from, and its first samples."""
    from entropy_probe.viewing.facts import headline, origin
    from entropy_probe.viewing.visible import visible_text

    lines = _samples(run, rollouts, marks, top)
    planned = run.plan.samples if run.plan else len(run)
    status = "complete" if run.complete else "not complete"
    if wants_json():
        about = rollouts.provenance.to_dict()
        write_json(
            {
                "run": str(run.path), "status": status, "samples": len(run), "planned": planned,
                "tokens": marks.total, "forks": marks.kept, "provenance": about, "list": lines,
            }
        )  # fmt: skip
        return
    facts = [["Run", f"{visible_text(str(run.path))}: {len(run)} of {planned} samples, {status}"]]
    facts += [[label, value] for label, value in origin(rollouts)]
    numbers = headline(rollouts, marks)
    facts += [[label.capitalize(), f"{value} {unit}"] for label, value, unit in numbers]
    click.echo("\n".join(table(facts)))
    if not lines:
        return
    click.echo()
    rows = [["sample", "rollout", "tokens", "forks", "reward", "text"]]
    for line in lines:
        reward = "—" if line["reward"] is None else f"{line['reward']:.3g}"
        names = [str(line[name]) for name in ("sample", "rollout", "tokens", "forks")]
        rows.append([*names, reward, line["text"]])
    click.echo("\n".join(table(rows, right=frozenset(range(5)))))
    if len(lines) < len(run) and not is_quiet():
        click.echo(f"and {len(run) - len(lines)} more samples; --top {len(run)} lists them all")
    click.echo(
        f"\nprobe show {visible_text(shlex.quote(str(run.path)))} --sample {lines[0]['sample']}"
    )


def _samples(run: "Run", rollouts: "Rollouts", marks: "Marks", top: int) -> list[dict[str, Any]]:
    """Give a line for each of the first samples, its rollout named as on the page."""
    from entropy_probe.viewing.marks import ordinal_names
    from entropy_probe.viewing.visible import visible_text

    lines, names = [], ordinal_names(rollouts)
    for row, number in enumerate(run.sample_numbers[:top]):
        reward = None if rollouts.rewards is None else float(rollouts.rewards[row])
        text = visible_text(rollouts.completion(row))
        lines.append(
            {
                "sample": number,
                "prompt": int(rollouts.groups[row]),
                "rollout": "{}.{}".format(*names[row]),
                "tokens": int(rollouts.valid[row].sum()),
                "forks": int(marks.forks[row].sum()),
                "reward": None if reward is None or reward != reward else reward,
                "text": text if len(text) <= _EXCERPT else text[: _EXCERPT - 1] + "…",
            }
        )
    return lines


def _tokens(rollouts: "Rollouts", marks: "Marks", row: int) -> list[dict[str, Any]]:
    """Give each token of a row with what is known of it; None where there is nothing to know."""
    from entropy_probe.viewing.facts import token_text

    start, end = int(rollouts.prompt_lengths[row]), int(rollouts.lengths[row])
    found = []
    for t in range(end):
        token, valid = int(rollouts.tokens[row, t]), bool(rollouts.valid[row, t])
        rank = int(rollouts.ranks[row, t])
        found.append(
            {
                "position": t,
                "token": token_text(rollouts, token),
                "token_id": token,
                "is_prompt": t < start,
                "entropy": float(rollouts.entropy[row, t]) if valid else None,
                "logprob": float(rollouts.logprobs[row, t]) if valid else None,
                "rank": rank if valid and rank >= 0 else None,
                "fork": bool(marks.forks[row, t]),
            }
        )
    return found
