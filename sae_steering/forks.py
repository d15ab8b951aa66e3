"""Forks decided while sampling: a step is run again, edited, where its entropy is high enough."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from entropy_probe.entropy import token_entropy
from entropy_probe.forking import forking_mask
from entropy_probe.models.engine import Draws, Engine
from entropy_probe.rollout import Rollouts

from .places import Places


@dataclass(frozen=True)
class Threshold:
    """An entropy from which on a step is a fork, and where it comes from."""

    nats: float
    """The entropy."""
    origin: str
    """Where it comes from, in words."""

    def describe(self) -> str:
        """Say both."""
        return f"{self.nats:.4g} nats or more ({self.origin})"


def fork_threshold(
    source: float | int | Rollouts | str | Path | Threshold, *, fraction: float = 0.2
) -> Threshold:
    """Give the entropy of the least uncertain fork of an unsteered run.

    Args:
        source: nats; or a record or a run's folder, of whose valid tokens the ``fraction`` with
            the highest entropy are its forks (0.2: the 80th percentile).
        fraction: share of the tokens that are forks.
    """
    if isinstance(source, Threshold):
        return source
    if isinstance(source, int | float):
        if not math.isfinite(source):
            raise ValueError(f"threshold must be finite, in nats, got {source}")
        return Threshold(float(source), "given")
    name = "a record"
    if isinstance(source, str | Path):
        from entropy_probe.storage.run import open_run

        name, source = f"run {Path(source).name}", open_run(source).rollouts(residuals=False)
    if source.provenance.edit is not None:
        raise ValueError(
            f"the threshold is to come from an unsteered run, but {name} was sampled under: "
            f"{source.provenance.edit}"
        )
    if not bool(source.valid.any()):
        raise ValueError(f"{name} has no valid tokens to take a threshold from")
    forks = forking_mask(source.entropy, source.valid, fraction=fraction)
    model = source.provenance.model
    origin = f"percentile {100 * (1 - fraction):g} of {name} of {model}"
    return Threshold(float(source.entropy[forks].min()), origin)


class ForkSteps:
    """Edits the last position of the steps whose entropy reaches a threshold, and counts them."""

    def __init__(self, threshold: Threshold, *, below: bool = False) -> None:
        """Begin with nothing sampled.

        Args:
            threshold: what a step's entropy is held against.
            below: edit the steps that do not reach it, in place of those that do.
        """
        self.threshold, self.below = threshold, below
        self.recomputed = 0
        """Positions run twice, for all samplings so far: the cost beyond sampling unsteered."""
        self.passes = 0
        """Passes that were run again, for all samplings so far."""
        self._edited: Tensor | None = None
        self._unedited: Tensor | None = None
        self._rows: Tensor | None = None
        self._sampling = self._inside = False

    def around(self, engine: Engine) -> Engine:
        """Give an engine whose passes this knows to be its own."""

        def run(**inputs) -> Tensor:
            if not self._sampling:
                raise ValueError(_ONLY_IN_SAMPLE)
            self._inside = True
            try:
                return engine.run(**inputs)
            finally:
                self._inside = False

        return dataclasses.replace(engine, run=run)

    @contextmanager
    def sampling(self, rows: int, steps: int) -> Iterator[None]:
        """Forget the sampling before; passes are ours until this one ends."""
        self._edited = torch.zeros(rows, steps, dtype=torch.bool)
        self._unedited = torch.zeros(rows, steps)
        self._sampling = True
        try:
            yield
        finally:
            self._sampling = False

    @contextmanager
    def scoring(self, rows: Tensor, prompt_lengths: Tensor) -> Iterator[None]:
        """Refuse: on given tokens nothing is decided step by step."""
        raise ValueError(
            "where='forks' is decided while sampling: to score what it gave, steer with "
            "where=replaying(steered.steps.edited(rollouts))"
        )
        yield

    def revise(self, draws: Draws, again: Callable[[], Tensor]) -> Float[Tensor, "batch vocab"]:
        """Run the forks among the steps again, edited."""
        entropy = token_entropy(draws.logits, temperature=draws.temperature)
        forks = draws.alive & ((entropy >= self.threshold.nats) != self.below)
        at = (draws.rows.cpu(), draws.step.cpu()[:, None])
        alive = draws.alive.cpu()[:, None].expand(at[0].shape)
        rows, steps = at[0][alive], at[1].expand(at[0].shape)[alive]
        self._edited[rows, steps] = forks.cpu()[:, None].expand(at[0].shape)[alive]
        self._unedited[rows, steps] = entropy.cpu()[:, None].expand(at[0].shape)[alive]
        if not bool(forks.any()):
            return draws.logits
        self.passes += 1
        self.recomputed += len(forks)
        self._rows = forks
        try:
            return torch.where(forks[:, None], again(), draws.logits)
        finally:
            self._rows = None

    def choose_places(self, places: Places) -> Bool[Tensor, "batch seq"]:
        """Choose nothing at first, and the last position of the forks when a step is run again."""
        if not self._inside:
            raise ValueError(_ONLY_IN_SAMPLE)
        chosen = torch.zeros_like(places.real)
        if self._rows is not None:
            chosen[:, -1] = self._rows
        return chosen

    def edited(self, rollouts: Rollouts) -> Bool[Tensor, "batch seq"]:
        """Give True at the tokens of the last sampling whose distribution was edited.

        Args:
            rollouts: what that sampling gave.
        """
        return self._placed(self._edited, rollouts)

    def unedited_entropy(self, rollouts: Rollouts) -> Float[Tensor, "batch seq"]:
        """Give the entropy, in nats, that decided about each token of the last sampling.

        It is that of the step before its edit, on the prefix steered so far.
        """
        return self._placed(self._unedited, rollouts)

    def _placed(self, value: Tensor | None, rollouts: Rollouts) -> Tensor:
        """Put what is known by row and step where the record has it."""
        if value is None or len(value) != len(rollouts):
            count = 0 if value is None else len(value)
            raise ValueError(f"the last sampling had {count} rows, these are {len(rollouts)}")
        row, position = rollouts.valid.nonzero(as_tuple=True)
        out = value.new_zeros(rollouts.valid.shape)
        out[row, position] = value[row, position - rollouts.prompt_lengths[row]]
        return out


_ONLY_IN_SAMPLE = (
    "where='forks' is decided step by step: the step is run, its entropy read, its cache rolled "
    "back, and the step run again edited. `sample` does that on what steer gives (`with "
    "steer(...) as steered: sample(steered, ...)`); generate and other passes cannot. Use "
    "where='all', 'prompt' or 'generated' there"
)
