"""How a state changes: features of a dictionary and plain directions, on tensors alone.

Every edit of a dictionary's features changes the stream by the difference of two decodings, so
that what the dictionary does not reconstruct, its error, stays as it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

MODES = ("add", "clamp", "ablate", "replace")


@runtime_checkable
class Dictionary(Protocol):
    """What steering needs of a sparse autoencoder."""

    W_dec: Float[Tensor, "d_sae d_model"]
    """Directions of the features, before any rescaling of `decode`."""

    def encode(self, states: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_sae"]:
        """Give the activation of each feature."""
        ...

    def decode(self, acts: Float[Tensor, "n d_sae"]) -> Float[Tensor, "n d_model"]:
        """Give the states that activations stand for; affine in them."""
        ...


@dataclass(frozen=True, eq=False)
class Direction:
    """A direction in the residual stream that no dictionary is needed for."""

    vector: Float[Tensor, " d_model"]
    """The direction; strengths of "add" count in its length."""
    name: str = "direction"
    """What to call it."""


def feature_directions(
    sae: Dictionary, features: Sequence[int]
) -> Float[Tensor, "features d_model"]:
    """Give what one unit of each feature adds to the stream, any rescaling undone."""
    acts = torch.zeros(
        len(features) + 1, sae.W_dec.shape[0], dtype=sae.W_dec.dtype, device=sae.W_dec.device
    )
    acts[torch.arange(len(features)), torch.tensor(list(features))] = 1.0
    decoded = sae.decode(acts)
    return decoded[:-1] - decoded[-1:]


@dataclass(frozen=True)
class Edit:
    """A change of states, each by itself."""

    mode: str
    """One of `MODES`."""
    directions: Float[Tensor, "k d_model"]
    """What one unit adds to the stream, a row each."""
    strengths: Float[Tensor, " k"]
    """What each of them is changed by, or to."""
    names: tuple[str, ...]
    """What to call them."""
    sae: Dictionary | None = None
    """The dictionary whose features they are."""
    features: tuple[int, ...] = ()
    """Their numbers in it."""

    @property
    def is_nothing(self) -> bool:
        """Tell whether no state can change: no features, or nothing to add or take away."""
        return not len(self.strengths) or (
            self.mode in ("add", "ablate") and not bool(self.strengths.any())
        )

    def __call__(self, states: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_model"]:
        """Give the states changed, in their own dtype; the arithmetic is float32 at least."""
        wide = states if states.dtype == torch.float64 else states.float()
        directions, strengths = self.directions.to(wide), self.strengths.to(wide)
        if self.mode == "add":
            return (wide + strengths @ directions).to(states.dtype)
        if self.mode == "replace":
            return (wide + _towards(wide, directions, strengths)).to(states.dtype)
        if self.sae is None:
            return (wide - _within(wide, directions, strengths)).to(states.dtype)
        encoded = self.sae.encode(states.to(self.sae.W_dec))[:, list(self.features)].to(wide)
        change = strengths - encoded if self.mode == "clamp" else -strengths * encoded
        return (wide + change @ directions).to(states.dtype)

    def describe(self) -> str:
        """Say what is changed, in words."""
        pairs = zip(self.names, self.strengths.tolist(), strict=True)
        words = ", ".join(f"{name} {strength:g}" for name, strength in pairs)
        return f"{self.mode} {words}" if words else "nothing"


def _units(directions: Tensor) -> Tensor:
    """Give directions of length 1."""
    return directions / directions.norm(dim=1, keepdim=True)


def _towards(states: Tensor, directions: Tensor, wanted: Tensor) -> Tensor:
    """Give the smallest change that makes the component along each unit direction the wanted."""
    units = _units(directions)
    return (wanted - states @ units.T) @ torch.linalg.pinv(units.T)


def _within(states: Tensor, directions: Tensor, shares: Tensor) -> Tensor:
    """Give the part of states that lies along directions, each weighed by its share."""
    units = _units(directions)
    coordinates = states @ torch.linalg.pinv(units)
    return (coordinates * shares) @ units


def require_mode(mode: str, with_dictionary: bool) -> None:
    """Refuse a mode that does not exist, or that needs a dictionary where there is none."""
    if mode not in MODES:
        raise ValueError(f"mode must be one of {MODES}, got {mode!r}")
    if mode == "clamp" and not with_dictionary:
        raise ValueError(
            "mode='clamp' sets the activation of a dictionary's feature, and a direction has none: "
            "use mode='replace', which sets the component along it"
        )
