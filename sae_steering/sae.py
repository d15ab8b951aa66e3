"""What our code needs of a sparse autoencoder, whatever made it: encode, decode, where it reads."""

import copy
import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from entropy_probe.models import LoadError

from .dictionary import PlainDictionary, is_old, is_plain, plain_dictionary
from .lens import sae_lens

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
"""Names of a dictionary's files, as SAELens writes them."""

# A hook before block L reads what the block before it left.
_AFTER = re.compile(r"blocks\.(\d+)\.hook_resid_post|(?:model\.layers|transformer\.h)\.(\d+)")
_BEFORE = re.compile(r"blocks\.(\d+)\.hook_resid_pre")

_FOLDED_AT_THE_END = ("expected_average_only_in", "covariance_whitening")

States = Float[Tensor, "*batch d_model"]
Acts = Float[Tensor, "*batch d_sae"]


@dataclass(frozen=True, eq=False)
class SparseDictionary:
    """A sparse autoencoder: features of the residual stream after one block."""

    body: Any
    """What computes it: a `PlainDictionary`, or a SAELens ``SAE``."""
    layer: int | None
    """The block whose output stream it reads, 0 the first; None: it reads something else."""
    architecture: str
    """What SAELens calls it: "standard", "topk", "jumprelu", ..."""
    normalisation: str = "none"
    """What happens to a state before it is encoded, while it runs: "none", or SAELens' name for
    it. A fixed scale is part of the weights, and not named here; see ``scale``."""
    scale: float = 1.0
    """The factor on states that it was trained with, recorded; the weights hold it already."""
    model: str | None = None
    """Reference of the model whose states it was trained on."""
    weights: str | None = None
    """Fingerprint of that model's weights."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """Everything else that its file says of it."""

    @property
    def W_dec(self) -> Float[Tensor, "d_sae d_model"]:
        """The features' directions, a row each."""
        return self.body.W_dec.detach()

    @property
    def b_dec(self) -> Float[Tensor, " d_model"]:
        """What is decoded where no feature is active."""
        return self.body.b_dec.detach()

    @property
    def d_sae(self) -> int:
        """Count the features."""
        return self.W_dec.shape[0]

    @property
    def d_model(self) -> int:
        """Give the width of a state."""
        return self.W_dec.shape[1]

    @torch.no_grad()
    def encode(self, states: States) -> Acts:
        """Give the activation of each feature, in the dictionary's own type.

        Raises:
            ValueError: states of another width.
        """
        if states.shape[-1] != self.d_model:
            raise ValueError(
                f"the dictionary reads states of width {self.d_model}, got {states.shape[-1]}: "
                "they belong to another model"
            )
        acts = self.body.encode(states)
        return acts.to_dense() if acts.is_sparse else acts

    @torch.no_grad()
    def decode(self, acts: Acts) -> States:
        """Give the states that activations stand for; affine in them.

        Raises:
            ValueError: a dictionary that normalises each state by itself: what activations stand
                for then depends on the state; see `reconstruct`.
        """
        if self.normalisation != "none":
            raise ValueError(
                f"this dictionary normalises each state by itself ({self.normalisation}), so "
                "activations alone stand for no state: use reconstruct(states), or a dictionary "
                "without such a normalisation"
            )
        return self.body.decode(acts)

    @torch.no_grad()
    def reconstruct(self, states: States) -> States:
        """Give what the features say of states, in the states' own type."""
        acts = self.encode(states)
        return self.body.decode(acts).to(states.dtype)

    def to(self, target: torch.device | torch.dtype | str) -> "SparseDictionary":
        """Give the same dictionary on another device, or in another type."""
        # A module would move in place, and it may be the caller's.
        plain = isinstance(self.body, PlainDictionary)
        body = self.body if plain else copy.deepcopy(self.body)
        return dataclasses.replace(self, body=body.to(target))

    def __repr__(self) -> str:
        """Say what it is in one line."""
        where = "elsewhere" if self.layer is None else f"after block {self.layer}"
        return (
            f"SparseDictionary({self.architecture}, {self.d_sae} features of {self.d_model} "
            f"{where} of {self.model or 'an unnamed model'})"
        )


def dictionary(
    W_enc: Float[Tensor, "d_model d_sae"],
    b_enc: Float[Tensor, " d_sae"],
    W_dec: Float[Tensor, "d_sae d_model"],
    b_dec: Float[Tensor, " d_model"],
    *,
    layer: int,
    k: int | None = None,
    threshold: Float[Tensor, " d_sae"] | None = None,
) -> SparseDictionary:
    """Give a dictionary made of tensors: standard, or top-k, or JumpReLU.

    Args:
        W_enc: columns read the features off a state.
        b_enc: added before the activation function.
        W_dec: rows are the features' directions.
        b_dec: added to what is decoded, and taken from a state before it is encoded.
        layer: the block whose output stream it reads.
        k: features active at a state at most.
        threshold: what an activation must exceed.

    Raises:
        ValueError: shapes that do not belong together, or both a limit and thresholds.
    """
    if k is not None and threshold is not None:
        raise ValueError("k belongs to a top-k dictionary, threshold to a JumpReLU one: pass one")
    kind = "jumprelu" if threshold is not None else "standard" if k is None else "topk"
    tensors = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}
    tensors |= {} if threshold is None else {"threshold": threshold}
    body = plain_dictionary({"architecture": kind, "k": k}, tensors)
    return SparseDictionary(body, layer, kind)


def load_sae(reference: str | Path, *, device: str = "cpu") -> SparseDictionary:
    """Load a sparse autoencoder: one that `train_sae` or SAELens wrote, or a release of SAELens.

    Standard, top-k and JumpReLU ones are computed here and load without SAELens; all others, and
    what SAELens wrote before its version 6, are its own objects. A batch-top-k autoencoder is one
    for training alone: SAELens writes it, and it comes back, as a JumpReLU one, so that a state
    activates k features on average only.

    Args:
        reference: a folder with ``cfg.json`` and ``sae_weights.safetensors``, or "release:id",
            which SAELens fetches from the hub.
        device: where to put it.

    Raises:
        LoadError: nothing there, damaged files, or SAELens is needed and not installed.

    >>> sae = load_sae("saes/amenable-1")  # doctest: +SKIP
    >>> sae.encode(rollouts.residuals[1]).shape  # doctest: +SKIP
    torch.Size([4096, 512])
    """
    path = Path(reference)
    if (path / CONFIG).is_file():
        return _from_folder(path, device)
    release, colon, name = str(reference).partition(":")
    if not colon or path.exists():
        raise LoadError(
            f"no sparse autoencoder at {str(reference)!r}",
            f"there is no {CONFIG} in such a folder",
            "pass the folder that `probe sae train` wrote, or RELEASE:ID for one of SAELens",
        )
    lens = sae_lens(f"release {release!r}")
    try:
        return wrap_sae(lens.SAE.from_pretrained(release, name, device=device))
    except (ValueError, KeyError, OSError) as error:
        raise LoadError(
            f"cannot load {name!r} of release {release!r}",
            str(error).splitlines()[0][:200] if str(error) else type(error).__name__,
            "check the names in SAELens' table of releases, and that the hub can be reached",
        ) from None


def wrap_sae(sae: Any) -> SparseDictionary:
    """Give a SAELens ``SAE`` as our code needs it; the object is used, not copied.

    Raises:
        ValueError: its normalisation is not folded into its weights: the training is not over.
    """
    return _described(sae, sae.cfg.to_dict())


def _from_folder(path: Path, device: str) -> SparseDictionary:
    """Load what SAELens' disk format holds."""
    try:
        config = json.loads((path / CONFIG).read_text())
        if is_plain(config):
            tensors = load_file(path / WEIGHTS, device=device)
            return _described(plain_dictionary(config, tensors), config)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise LoadError(
            f"{str(path)!r} holds no whole sparse autoencoder",
            str(error).splitlines()[0][:200],
            "train it again, or restore the folder from a copy",
        ) from None
    kind = config.get("architecture")
    age = " in the format before SAELens 6" if is_old(config) else ""
    lens = sae_lens(f"an autoencoder of kind {kind!r}{age}")
    try:
        return wrap_sae(lens.SAE.load_from_disk(path, device=device))
    except (ValueError, KeyError, TypeError, OSError, RuntimeError, SafetensorError) as error:
        raise LoadError(
            f"SAELens cannot load {str(path)!r}, of kind {kind!r}{age}",
            f"{type(error).__name__}: {str(error).splitlines()[0][:200]}",
            "load it with the version of SAELens that wrote it",
        ) from None


def _described(body: Any, config: Mapping[str, Any]) -> SparseDictionary:
    """Put a body together with what its configuration says of it."""
    about = dict(config.get("metadata") or {})
    during = config.get("normalize_activations", "none")
    if during in _FOLDED_AT_THE_END:
        raise ValueError(
            f"its normalisation ({during}) was not folded into its weights, which happens at the "
            "end of a training: this is a checkpoint, and its scale is not known"
        )
    return SparseDictionary(
        body,
        about["layer"] if "layer" in about else layer_of(about.get("hook_name") or ""),
        config["architecture"],
        normalisation=during,
        scale=float(about.get("activation_scale") or 1.0),
        model=about.get("model_name"),
        weights=about.get("model_weights"),
        about=about,
    )


def layer_of(hook: str) -> int | None:
    """Give the block after which a hook of TransformerLens, or a module's output, is the stream.

    >>> layer_of("blocks.3.hook_resid_post"), layer_of("blocks.3.hook_resid_pre")
    (3, 2)
    """
    if match := _AFTER.fullmatch(hook):
        return int(match[1] or match[2])
    if (match := _BEFORE.fullmatch(hook)) and int(match[1]):
        return int(match[1]) - 1
    return None
