"""Dose and response: how far steering goes at each strength, and what it spoils on the way."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from entropy_probe.figures import Figure
from entropy_probe.tasks.problem import HasStrategies, Problem, Task

from .interventions import Intervention, Steering
from .outcomes import Drawing, Outcome, divergence, measure


@dataclass(frozen=True)
class Dose:
    """What one strength does."""

    strength: float
    """Factor on the strengths of the steering; 0 is the model as it is."""
    accuracy: Figure
    """Mean reward."""
    shares: dict[str, Figure]
    """Strategy -> share of the completions that take it; empty where the task does not tell."""
    accuracies: dict[str, Figure | None]
    """Strategy -> mean reward of those that take it."""
    divergence: Figure
    """KL to the model as it is, in nats a generated token."""
    entropy: float
    """Mean entropy of the generated tokens, in nats."""
    length: float
    """Mean number of generated tokens."""
    repetition: float
    """Share of runs of four tokens that stand in their completion before."""

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as JSON values."""
        return asdict(self)


def sweep(
    model,
    tokenizer,
    task: Task,
    problems: Sequence[Problem],
    steering: Steering,
    doses: Sequence[float | int],
    *,
    drawing: Drawing | None = None,
    progress: Callable[[Dose], None] | None = None,
) -> list[Dose]:
    """Steer at several strengths, on the same problems with the same noise.

    Choose a dose from the sweep of one split, and report on another: `best_dose` takes the best of
    many, which is too good by chance.

    Args:
        model: as for `entropy_probe.sample`.
        tokenizer: its tokenizer.
        task: what verifies the answers.
        problems: the problems of one split.
        steering: what is changed; each dose multiplies its strengths.
        doses: the factors.
        drawing: how completions are drawn.
        progress: called with each dose that is done.
    """
    found = []
    for dose, _ in responses(model, tokenizer, task, problems, steering, doses, drawing=drawing):
        found.append(dose)
        if progress is not None:
            progress(dose)
    return found


def responses(
    model,
    tokenizer,
    task: Task,
    problems: Sequence[Problem],
    steering: Steering,
    doses: Sequence[float | int],
    *,
    drawing: Drawing | None = None,
) -> Iterator[tuple[Dose, Outcome]]:
    """Give what each strength does, one after the other, with what was answered; see `sweep`."""
    drawing = drawing or Drawing()
    for factor in doses:
        arm = Intervention(f"dose {factor:g}", "features", steering.times(factor))
        outcome = measure(model, tokenizer, task, problems, arm if factor else None, drawing)
        heat = drawing.temperature
        yield dose_of(model, tokenizer, task, factor, outcome, temperature=heat), outcome


def dose_of(
    model,
    tokenizer,
    task: Task,
    factor: float | int,
    outcome: Outcome,
    *,
    temperature: float | int = 1.0,
) -> Dose:
    """Describe what one strength did; the temperature is that of the model as it is."""
    ways = task.strategies if isinstance(task, HasStrategies) else ()
    return Dose(
        float(factor),
        outcome.accuracy,
        {way: outcome.share(way) for way in ways},
        {way: outcome.accuracy_of(way) for way in ways},
        divergence(model, tokenizer, outcome.rollouts, temperature=temperature),
        outcome.entropy,
        outcome.length,
        outcome.repetition,
    )


def best_dose(doses: Sequence[Dose]) -> Dose:
    """Give the dose with the highest accuracy; among equals, the one that diverges least."""
    if not doses:
        raise ValueError("there are no doses to choose from")
    return max(doses, key=lambda dose: (dose.accuracy.value, -dose.divergence.value))


def is_monotone(doses: Sequence[Dose], strategy: str, *, slack: float = 0.0) -> bool:
    """Tell whether the share of a strategy never falls, by more than some slack, with the dose."""
    ordered = sorted(doses, key=lambda dose: dose.strength)
    shares = np.array([dose.shares[strategy].value for dose in ordered])
    return bool((np.diff(shares) >= -slack).all())
