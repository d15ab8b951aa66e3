"""Ways to make a model answer otherwise without training it: steering, words, temperature."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from entropy_probe.tasks.problem import Problem

from .controls import Splice
from .edits import Dictionary, Direction
from .forks import Threshold
from .steering import Where, steer

KINDS = {
    "features": "the features that the claim is about",
    "mean difference": "the difference of the mean states of two sets of completions",
    "random direction": "a direction of equal length that means nothing",
    "random latent": "another feature of the dictionary, about as often active",
    "shuffled labels": "what the same choice finds for shuffled labels, at its best strength",
    "other places": "the same edit where it should not matter",
    "splice": "the dictionary put in and nothing changed",
    "token injection": "completions that are made to begin with given words",
    "prompt forcing": "words put into the prompt",
    "low temperature": "the same model, drawn from more greedily",
}
"""Kinds of interventions; the first is what the others are held against."""


@dataclass(frozen=True)
class Steering:
    """Which states are changed, and how: the arguments of `steer`."""

    sae: Dictionary | None
    """The dictionary, or None for directions."""
    features: Mapping[int | Direction, float | int]
    """Feature or direction -> strength."""
    layer: int | None = None
    """The block; None: the dictionary's."""
    mode: str = "add"
    """One of `edits.MODES`."""
    where: Where = "all"
    """Which places."""
    threshold: float | int | Threshold | None = None
    """Nats, for the places that are decided by entropy."""

    def on(self, model):  # noqa: ANN201 - a context manager of `Steered`
        """Steer a model, as `steer` does."""
        return steer(
            model, self.sae, self.features, layer=self.layer, mode=self.mode, where=self.where,
            threshold=self.threshold,
        )  # fmt: skip

    def times(self, factor: float | int) -> "Steering":
        """Give the same with every strength multiplied."""
        return replace(self, features={k: factor * s for k, s in self.features.items()})

    def along(self, direction: Direction, strength: float | int) -> "Steering":
        """Give the same along another direction, which is added."""
        features = {direction: strength}
        return replace(self, sae=None, features=features, layer=self.layer_number, mode="add")

    def describe(self) -> str:
        """Say what is changed, in words."""
        pairs = (
            f"{key.name if isinstance(key, Direction) else f'feature {key}'} {strength:.4g}"
            for key, strength in self.features.items()
        )
        named = isinstance(self.where, str)
        where = self.where if named else getattr(self.where, "__name__", "chosen")
        return f"{self.mode} {', '.join(pairs)} after layer {self.layer_number}, where={where}"

    @property
    def layer_number(self) -> int | None:
        """Give the block, also where the dictionary names it."""
        return getattr(self.sae, "layer", None) if self.layer is None else self.layer


@dataclass(frozen=True)
class Intervention:
    """One way to make a model answer otherwise."""

    name: str
    """What to call it, once in a set."""
    kind: str
    """A key of `KINDS`."""
    steering: Steering | Splice | None = None
    """What is changed in the stream."""
    prefix: str = ""
    """What completions are made to begin with."""
    prompt: Callable[[Problem], str] | None = field(default=None, compare=False)
    """Writes a problem down otherwise."""
    temperature: float | None = None
    """Sampling temperature, in place of the others'."""

    def __post_init__(self) -> None:
        """Refuse a kind that does not exist, or one that is not what it does."""
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {tuple(KINDS)}, got {self.kind!r}")
        parts = {
            "token injection": self.prefix,
            "prompt forcing": self.prompt,
            "low temperature": self.temperature is not None,
        }
        if not parts.get(self.kind, self.steering is not None):
            raise ValueError(f"{self.name!r} is a {self.kind}, but nothing says which")

    @contextmanager
    def on(self, model) -> Iterator[object]:
        """Give the model to sample from."""
        if self.steering is None:
            yield model
            return
        with self.steering.on(model) as steered:
            yield steered

    def describe(self) -> str:
        """Say what it does, in words."""
        parts = [] if self.steering is None else [self.steering.describe()]
        parts += [f"completions begin with {self.prefix!r}"] if self.prefix else []
        parts += ["prompts are written otherwise"] if self.prompt else []
        parts += [] if self.temperature is None else [f"temperature {self.temperature:g}"]
        return "; ".join(parts)
