"""What `probe train` says: a line a step, what came of it, and what it would do."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .output import note, table, wants_json, write_json, write_path

if TYPE_CHECKING:
    from entropy_probe.tasks import Task
    from entropy_probe.training.config import TrainConfig
    from entropy_probe.training.distributed import Ranks
    from entropy_probe.training.trainer import TrainResult


def tell(line: Mapping[str, Any], steps: int) -> None:
    """Say a line of the log in a few words."""
    if line["kind"] == "evaluation":
        note(
            f"after step {line['step']}: {line['accuracy']:.3f} right at T={line['temperature']:g} "
            f"({line['accuracy_low']:.3f} to {line['accuracy_high']:.3f}, "
            f"{line['problems']} problems)"
        )
    if line["kind"] == "step":
        note(
            f"step {line['step']}/{steps}: reward {line['reward_mean']:.3f}, "
            f"{line['accuracy']:.3f} right, {line['length']:.0f} tokens, "
            f"{100 * (line['kept_share'] or 0):.1f}% kept, gradient {line['gradient_norm']:.3g}, "
            f"{line['seconds_rollout']:.1f} + {line['seconds_update']:.1f} s"
        )


def conclude(result: "TrainResult", path: Path) -> None:
    """Say where the model and its rollouts are."""
    evaluations = [line for line in result.log if line["kind"] == "evaluation"]
    accuracy = evaluations[-1]["accuracy"] if evaluations else None
    rollouts = sorted((path / "rollouts").glob("step-*"))
    note(f"the model: {result.checkpoint}")
    if rollouts:
        note(f"next: probe report {shlex.quote(str(rollouts[-1]))}")
    values = {
        "run": str(path), "steps": result.steps, "checkpoint": str(result.checkpoint),
        "accuracy": accuracy,
    }  # fmt: skip
    write_path(path, values)


def show(
    loaded: tuple[Any, Any], task: "Task", reward: str, config: "TrainConfig", ranks: "Ranks"
) -> None:
    """Write what a run would do, how much memory it takes, and the same in TRL."""
    from entropy_probe.models.prompts import encode_prompts
    from entropy_probe.storage.estimate import words_for
    from entropy_probe.training.equivalents import not_in_trl, trl_arguments
    from entropy_probe.training.estimate import estimate_memory
    from entropy_probe.training.preparing import check_training, training_problems

    check_training(*loaded, task, config, reward)
    prompts = [problem.prompt for problem in training_problems(task, config)]
    longest = max(map(len, encode_prompts(loaded[1], prompts)))
    memory = estimate_memory(loaded[0], config, longest_prompt=longest, processes=ranks.count)
    arguments, missing = (
        each(config, processes=ranks.count) for each in (trl_arguments, not_in_trl)
    )
    if not ranks.main:
        return
    if wants_json():
        write_json(
            {
                "task": task.name,
                "reward": reward,
                "config": config.to_dict(),
                "memory": dict(memory),
                "trl": arguments,
                "not_in_trl": missing,
            }  # fmt: skip
        )
        return
    rows = [["task", task.name], ["reward", reward]]
    for name, value in config.to_dict().items():
        inner = value.items() if isinstance(value, dict) else ()
        rows += [[f"{name}.{k}", json.dumps(v)] for k, v in inner] or [[name, json.dumps(value)]]
    click.echo("\n".join(["configuration", *_indented(rows)]))
    rows = [[k, words_for(v)] for k, v in memory.items()] + [
        ["sum", words_for(sum(memory.values()))]
    ]
    click.echo("\n".join(["memory of a process, at most", *_indented(rows)]))
    rows = [[k, repr(v)] for k, v in arguments.items()]
    click.echo("\n".join(["GRPOConfig of TRL 1.16", *_indented(rows)]))
    click.echo("\n".join(["not in TRL 1.16", *(f"  {line}" for line in missing or ["nothing"])]))


def _indented(rows: list[list[str]]) -> list[str]:
    return [f"  {line}" for line in table(rows)]
