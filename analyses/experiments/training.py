"""A run that trains: settings in, the curve of the training and what came of it out.

Settings: ``model``, ``task``, ``reward`` (none: nothing is trained), ``config`` (a `TrainConfig` by
its names), ``seed``, and ``watch``:

    problems, n     held-out problems, other ones for each seed, and completions of each
    every           steps between looks at them, besides one before and one after
    greedy          whether greedy completions are looked at, too, before and after
    prefix          what every completion watched is made to begin with
    memorised       problems that `contaminated` knows word for word, looked at besides
    positions       completions on which the places of the top 20% are followed; 0 for none
"""

import copy
import math
from collections.abc import Mapping
from typing import Any

from entropy_probe import load
from entropy_probe.computing import computing_with
from entropy_probe.models.fingerprint import weights_fingerprint
from entropy_probe.tasks import get_task
from entropy_probe.tasks.generator import memorised_problems
from entropy_probe.training.config import TrainConfig
from entropy_probe.training.trainer import train

from .positions import follow
from .watching import observe, openings

STEP = (
    "step", "reward_mean", "accuracy", "entropy_all", "entropy_kept", "kept_share", "length",
    "gradient_norm", "groups_equal", "mask_on_forks", "mask_on_decoys", "kept_of_forks",
    "kept_of_decoys", "clip_kept", "ratio_gap_kept", "clip_first", "ratio_gap_first", "truncated",
    "loss",
)  # fmt: skip
"""What is kept of a step's line."""


def execute(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Train a model and watch it; give ``steps``, ``watched`` and, where asked, ``positions``."""
    with computing_with(1):
        return rounded(_execute(settings))


def _execute(settings: Mapping[str, Any]) -> dict[str, Any]:
    model, tokenizer = load(settings["model"], device="cpu")
    task = get_task(settings["task"])
    weights = weights_fingerprint(model)
    watcher = Watcher(model, tokenizer, task, settings)
    watcher.look(0)
    steps: list[dict[str, Any]] = []
    if settings.get("reward"):
        config = TrainConfig.from_dict(settings["config"] | {"seed": settings["seed"]})

        def told(line: Mapping[str, Any]) -> None:
            if line["kind"] == "step":
                steps.append(step_of(line))
                watcher.after(line["step"], config.steps)

        train(model, tokenizer, task, config=config, reward=settings["reward"], log=told)
    found = {"weights": weights, "steps": steps, "watched": watcher.found}
    if settings["watch"].get("positions"):
        count = settings["watch"]["positions"]
        found["positions"] = follow(
            model, tokenizer, watcher.problems[:count], watcher.states, seed=settings["seed"],
            max_new_tokens=watcher.how["max_new_tokens"],
        )  # fmt: skip
    return found


def trained(model, tokenizer, task, config: TrainConfig, reward: str) -> list[dict[str, Any]]:
    """Train a model in place, and give what is kept of its steps."""
    steps: list[dict[str, Any]] = []

    def told(line: Mapping[str, Any]) -> None:
        if line["kind"] == "step":
            steps.append(step_of(line))

    train(model, tokenizer, task, config=config, reward=reward, log=told)
    return rounded(steps)


def step_of(line: Mapping[str, Any]) -> dict[str, Any]:
    """Give what is kept of a step's line."""
    return {name: line[name] for name in STEP if name in line}


class Watcher:
    """Looks at a model before, during and after its training."""

    def __init__(self, model, tokenizer, task, settings: Mapping[str, Any]) -> None:
        """Choose the problems."""
        self.model, self.tokenizer, self.task = model, tokenizer, task
        self.watch, seed = settings["watch"], settings["seed"]
        self.problems = task.problems(self.watch["problems"], split="test", seed=1000 + seed)
        self.how = {
            "max_new_tokens": settings["config"].get("max_new_tokens", 256),
            "seed": 5000 + seed,
            "prefix": self.watch.get("prefix", ""),
        }
        self.found: list[dict[str, Any]] = []
        self.states: list[tuple[int, dict[str, Any]]] = []

    def after(self, step: int, last: int) -> None:
        """Look after a step, if it is one to look after."""
        every = self.watch.get("every", 0)
        if step == last or (every and step % every == 0):
            self.look(step, ends=step == last)

    def look(self, step: int, *, ends: bool = True) -> None:
        """Note what the model does now; at the ends, in more detail."""
        it = (self.model, self.tokenizer, self.task)
        seen = {"step": step, **observe(*it, self.problems, n=self.watch["n"], **self.how)}
        seen["openings"] = openings(*it, self.problems)
        if ends and self.watch.get("greedy"):
            seen["greedy"] = observe(*it, self.problems, n=1, temperature=0.0, **self.how)
        if ends and self.watch.get("memorised"):
            known = memorised_problems(self.watch["memorised"])
            seen["memorised"] = observe(*it, known, n=self.watch["n"], **self.how)
        self.found.append(seen)
        if self.watch.get("positions"):
            self.states.append((step, copy.deepcopy(self.model.state_dict())))


def rounded(value: Any) -> Any:
    """Give JSON values with six significant digits; what is no finite number becomes None."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: rounded(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(each) for each in value]
    return value
