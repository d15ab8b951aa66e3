"""A model as it is beside itself steered: the same prompts, the same noise, and what changed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from entropy_probe.figures import Figure, mean
from entropy_probe.rollout import Rollouts
from entropy_probe.tasks.problem import HasStrategies, Task

from .forks import Threshold, fork_threshold
from .interventions import Intervention, Steering
from .outcomes import Drawing, divergence, draw, repetition
from .steering import ENTROPIC

LEAST_PROMPTS = 5
"""With fewer prompts an interval over prompts would say nothing, and none is given."""


@dataclass(frozen=True)
class Measure:
    """One quantity on both sides."""

    name: str
    """What it is, with its unit."""
    plain: Figure | None
    """Of the model as it is, over prompts."""
    steered: Figure
    """Of the model steered."""
    difference: Figure | None
    """Steered less plain, paired by prompt."""

    prompts: int
    """How many the intervals are over."""

    def to_dict(self) -> dict[str, Any]:
        """Give the figures as JSON values, intervals as None where prompts are few."""
        return {name: self._values(figure) for name, figure in self._parts().items()}

    def words(self) -> list[str]:
        """Give a line of a table: name, as it is, steered, difference."""
        cells = [self.name]
        for name, figure in self._parts().items():
            sign = "+" if name == "difference" else ""
            text = "" if figure is None else f"{figure.value:{sign}.3f}"
            if figure is not None and self.prompts >= LEAST_PROMPTS:
                text += f" ({figure.low:{sign}.3f} to {figure.high:{sign}.3f})"
            cells.append(text)
        return cells

    def _parts(self) -> dict[str, Figure | None]:
        return {"plain": self.plain, "steered": self.steered, "difference": self.difference}

    def _values(self, figure: Figure | None) -> dict[str, Any] | None:
        few = {"low": None, "high": None} if self.prompts < LEAST_PROMPTS else {}
        return None if figure is None else figure.to_dict() | few


@dataclass(frozen=True)
class Sides:
    """What a model wrote as it is, and steered."""

    plain: Rollouts = field(repr=False)
    """As it is."""
    steered: Rollouts = field(repr=False)
    """Steered."""
    edit: str
    """What was changed, in words."""
    measures: tuple[Measure, ...]
    """How the two differ."""
    threshold: Threshold | None = None
    """What a step's entropy was held against, where places are decided by it."""
    edited: Bool[Tensor, "batch seq"] | None = field(default=None, repr=False)
    """True at tokens whose distribution was edited, where they are."""
    recomputed: int = 0
    """Positions that were run twice, where they are."""


def compare(
    model,
    tokenizer,
    prompts: Sequence[Any],
    steering: Steering,
    *,
    task: Task | None = None,
    drawing: Drawing | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Sides:
    """Let a model complete prompts as it is and steered.

    Where places are decided by entropy and the steering names no threshold, it is the 80th
    percentile of what the model wrote as it is, here.

    Args:
        model: as for `entropy_probe.sample`.
        tokenizer: its tokenizer.
        prompts: as for `entropy_probe.sample`; with a task, its problems.
        steering: what is changed.
        task: what verifies answers, and tells strategies apart.
        drawing: how completions are drawn.
        progress: called with (sides done, 2).
    """
    drawing = Drawing() if drawing is None else drawing
    report = progress or (lambda done, total: None)
    texts = prompts if task is None else [problem.prompt for problem in prompts]
    plain = draw(model, tokenizer, texts, None, drawing).rollouts
    report(1, 2)
    threshold = None
    if steering.where in ENTROPIC:
        given = steering.threshold
        threshold = _own(plain, drawing) if given is None else fork_threshold(given)
        steering = replace(steering, threshold=threshold)
    arm = Intervention("steered", "features", steering)
    found = draw(model, tokenizer, texts, arm, drawing)
    report(2, 2)
    steered = found.rollouts
    pair = (plain, steered)
    measures = [
        _both("tokens a completion", pair, [side.valid.sum(dim=1).float() for side in pair]),
        _both("entropy, nats, by completion", pair, [_entropy(side) for side in pair]),
        _both("repetition", pair, [_repetition(side) for side in pair]),
        _alone("completions changed", steered, mean(_of_prompts(steered, _changed(*pair)))),
    ]
    if drawing.temperature:
        nats = divergence(model, tokenizer, steered, temperature=drawing.temperature)
        measures.append(_alone("KL from as it is, nats a token", steered, nats))
    if task is not None:
        plain, steered = (_judged(side, prompts, task) for side in pair)
        measures = _answers((plain, steered), task) + measures
    return Sides(
        plain, steered, steering.describe(), tuple(measures), threshold, found.edited, found.cost,
    )  # fmt: skip


def _own(plain: Rollouts, drawing: Drawing) -> Threshold:
    """Give the threshold of the unsteered side, and name it."""
    found = fork_threshold(plain)
    about = f"{len(plain)} completions of {plain.provenance.model} as it is, seed {drawing.seed}"
    return Threshold(found.nats, f"percentile 80 of {about}")


def _judged(side: Rollouts, problems: Sequence[Any], task: Task) -> Rollouts:
    """Give a record with its rewards."""
    each = len(side) // len(problems)
    texts = [side.completion(row) for row in range(len(side))]
    return side.with_rewards([task.verify(problems[r // each], t) for r, t in enumerate(texts)])


def _answers(pair: Sequence[Rollouts], task: Task) -> list[Measure]:
    """Give how often answers are right, and how often each way is taken, where the task tells."""
    found = [_both("right", pair, [side.rewards for side in pair])]
    if not isinstance(task, HasStrategies):
        return found
    ways = [[task.strategy(side.completion(row)) for row in range(len(side))] for side in pair]
    for way in task.strategies:
        taken = [torch.tensor([w == way for w in each]).float() for each in ways]
        if any(bool(each.any()) for each in taken):
            found.append(_both(f"share of {way}", pair, taken))
    return found


def _both(name: str, pair: Sequence[Rollouts], values: Sequence[Tensor]) -> Measure:
    """Describe a quantity of each completion."""
    plain, steered = (_of_prompts(*each) for each in zip(pair, values, strict=True))
    return Measure(name, mean(plain), mean(steered), mean(steered - plain), len(plain))


def _alone(name: str, steered: Rollouts, figure: Figure) -> Measure:
    """Describe a quantity that the model as it is does not have."""
    return Measure(name, None, figure, None, len(steered.groups.unique()))


def _of_prompts(side: Rollouts, values: Float[Tensor, " rows"]) -> Float[np.ndarray, " prompts"]:
    """Give the mean over each prompt's completions."""
    _, prompt, counts = side.groups.unique(return_inverse=True, return_counts=True)
    sums = torch.zeros(len(counts), dtype=torch.float64).index_add_(0, prompt, values.double())
    return (sums / counts).numpy()


def _entropy(side: Rollouts) -> Float[Tensor, " rows"]:
    """Give the mean entropy of each completion."""
    held = side.entropy.where(side.valid, torch.zeros(()))
    return held.sum(dim=1) / side.valid.sum(dim=1).clamp(min=1)


def _repetition(side: Rollouts) -> Float[Tensor, " rows"]:
    """Give the share of runs of four tokens that stand in their completion before."""
    return torch.tensor([repetition(side[row]) for row in range(len(side))])


def _changed(plain: Rollouts, steered: Rollouts) -> Float[Tensor, " rows"]:
    """Give 1 for completions that are not the same on both sides."""
    texts = [[side.completion(row, special=True) for row in range(len(side))]
             for side in (plain, steered)]  # fmt: skip
    return torch.tensor([float(a != b) for a, b in zip(*texts, strict=True)])
