"""A sparse autoencoder on plain tensors: standard, top-k and JumpReLU, as SAELens computes them."""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

ARCHITECTURES = ("standard", "topk", "jumprelu")
"""What can be computed without SAELens."""

OLDEST = 6
"""The SAELens version from which on a configuration's keys mean what is read here."""


@dataclass(frozen=True, eq=False)
class PlainDictionary:
    """Encoder and decoder as tensors; activations are never negative."""

    W_enc: Float[Tensor, "d_model d_sae"]
    """Columns read the features off a state."""
    b_enc: Float[Tensor, " d_sae"]
    """Added before the activation function."""
    W_dec: Float[Tensor, "d_sae d_model"]
    """Rows are the features' directions."""
    b_dec: Float[Tensor, " d_model"]
    """Added to what is decoded, and taken from a state first where ``centred``."""
    k: int | None = None
    """Features active at a state at most; None: no limit."""
    threshold: Float[Tensor, " d_sae"] | None = None
    """What an activation must exceed, or else it is 0; None: 0."""
    centred: bool = True
    """Whether ``b_dec`` is taken from a state before it is encoded."""
    rescaled: bool = False
    """Whether activations count in units of the length of the features' directions."""

    def encode(self, states: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_sae"]:
        """Give the activation of each feature."""
        states = states.to(self.W_enc.dtype)
        states = states - self.b_dec if self.centred else states
        acts = states @ self.W_enc + self.b_enc
        acts = acts * self._lengths if self.rescaled else acts
        if self.k is not None:
            best = acts.topk(self.k, dim=-1, sorted=False)
            return torch.zeros_like(acts).scatter(-1, best.indices, best.values.relu())
        if self.threshold is not None:
            return acts.relu() * (acts > self.threshold)
        return acts.relu()

    def decode(self, acts: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_model"]:
        """Give the states that activations stand for."""
        acts = acts / self._lengths if self.rescaled else acts
        return acts @ self.W_dec + self.b_dec

    def to(self, target: torch.device | torch.dtype | str) -> "PlainDictionary":
        """Give the same dictionary on another device, or in another type."""
        names = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
        held = {name: getattr(self, name) for name in names}
        moved = {name: None if t is None else t.to(target) for name, t in held.items()}
        return dataclasses.replace(self, **moved)

    @property
    def _lengths(self) -> Tensor:
        """Give the length of each direction."""
        return self.W_dec.norm(dim=-1)


def is_plain(config: Mapping[str, Any]) -> bool:
    """Tell whether a SAELens configuration is one that is computed here.

    One older than SAELens 6 is not: it says "standard" of a top-k autoencoder, too.
    """
    return (
        not is_old(config)
        and config.get("architecture") in ARCHITECTURES
        and config.get("normalize_activations", "none") == "none"
        and config.get("reshape_activations", "none") == "none"
    )


def is_old(config: Mapping[str, Any]) -> bool:
    """Tell whether a version of SAELens before 6, or one that is not named, wrote it."""
    metadata = config.get("metadata")
    version = metadata.get("sae_lens_version") if isinstance(metadata, Mapping) else None
    major = re.match(r"\d+", str(version or config.get("sae_lens_version")))
    return major is None or int(major[0]) < OLDEST


def plain_dictionary(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> PlainDictionary:
    """Give the dictionary of a SAELens configuration (see `is_plain`) and its tensors.

    Raises:
        ValueError: a tensor is missing, or has another shape.
    """
    kind = config["architecture"]
    names = ["W_enc", "b_enc", "W_dec", "b_dec", *(["threshold"] if kind == "jumprelu" else [])]
    if missing := [name for name in names if name not in tensors]:
        raise ValueError(f"a {kind} dictionary has tensors {names}, but {missing} are not there")
    _check({name: tensors[name] for name in names}, config.get("k") if kind == "topk" else None)
    return PlainDictionary(
        *(tensors[name] for name in names[:4]),
        k=int(config["k"]) if kind == "topk" else None,
        threshold=tensors["threshold"] if kind == "jumprelu" else None,
        centred=bool(config.get("apply_b_dec_to_input", True)),
        rescaled=bool(config.get("rescale_acts_by_decoder_norm", False)) and kind == "topk",
    )


def _check(tensors: Mapping[str, Tensor], k: object) -> None:
    """Refuse shapes that do not belong together."""
    d_sae, d_model = tensors["W_dec"].shape
    wanted = {"W_enc": (d_model, d_sae), "b_dec": (d_model,)}
    for name, tensor in tensors.items():
        shape = wanted.get(name, (d_sae,))
        if name != "W_dec" and tuple(tensor.shape) != shape:
            raise ValueError(
                f"{name} must be {shape} beside W_dec of {(d_sae, d_model)}, got "
                f"{tuple(tensor.shape)}"
            )
    if k is not None and not 1 <= k <= d_sae:
        raise ValueError(f"k must be 1 to {d_sae}, the number of features, got {k}")
